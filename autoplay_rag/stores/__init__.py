"""Stores: where chunks are kept and found."""

from typing import TYPE_CHECKING

from autoplay_rag._lazy import lazy_exports
from autoplay_rag.stores.base import (
    Capability,
    Changes,
    Chunk,
    Condition,
    Filter,
    Match,
    Metadata,
    Store,
    StoreIdentity,
    TextStore,
    Vector,
    VectorStore,
)

if TYPE_CHECKING:
    from autoplay_rag.stores.chroma import ChromaStore
    from autoplay_rag.stores.memory import MemoryStore
    from autoplay_rag.stores.rows import Rows, pack, pack_vector
    from autoplay_rag.stores.serial import SerialThread

__all__ = [
    "Capability",
    "Changes",
    "ChromaStore",
    "Chunk",
    "Condition",
    "Filter",
    "Match",
    "MemoryStore",
    "Metadata",
    "Rows",
    "SerialThread",
    "Store",
    "StoreIdentity",
    "TextStore",
    "Vector",
    "VectorStore",
    "pack",
    "pack_vector",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "ChromaStore": "autoplay_rag.stores.chroma",
        "MemoryStore": "autoplay_rag.stores.memory",
        # What a store of one's own may need: checked, packed batches, and a thread to write in.
        "Rows": "autoplay_rag.stores.rows",
        "SerialThread": "autoplay_rag.stores.serial",
        "pack": "autoplay_rag.stores.rows",
        "pack_vector": "autoplay_rag.stores.rows",
    },
)

"""Stores keep chunks and search them."""

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
    from autoplay_rag._serial import SerialThread
    from autoplay_rag.stores.chroma import ChromaStore
    from autoplay_rag.stores.memory import MemoryStore
    from autoplay_rag.stores.postgres import PgVectorStore
    from autoplay_rag.stores.process import ProcessStore
    from autoplay_rag.stores.rows import Rows, checked_changes, pack, pack_vector

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
    "PgVectorStore",
    "ProcessStore",
    "Rows",
    "SerialThread",
    "Store",
    "StoreIdentity",
    "TextStore",
    "Vector",
    "VectorStore",
    "checked_changes",
    "pack",
    "pack_vector",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "ChromaStore": "autoplay_rag.stores.chroma",
        "MemoryStore": "autoplay_rag.stores.memory",
        "PgVectorStore": "autoplay_rag.stores.postgres",
        "ProcessStore": "autoplay_rag.stores.process",
        # For custom stores: functions that check and pack batches, and a thread for blocking work.
        "Rows": "autoplay_rag.stores.rows",
        "SerialThread": "autoplay_rag._serial",
        "checked_changes": "autoplay_rag.stores.rows",
        "pack": "autoplay_rag.stores.rows",
        "pack_vector": "autoplay_rag.stores.rows",
    },
)

"""Stores: where chunks are kept and found."""

from typing import TYPE_CHECKING

from autoplay_rag._lazy import lazy_exports
from autoplay_rag.stores.base import Chunk, Condition, Filter, Hit, Metadata, TextStore, VectorStore

if TYPE_CHECKING:
    from autoplay_rag.stores.chroma import ChromaStore
    from autoplay_rag.stores.memory import MemoryStore

__all__ = [
    "ChromaStore",
    "Chunk",
    "Condition",
    "Filter",
    "Hit",
    "MemoryStore",
    "Metadata",
    "TextStore",
    "VectorStore",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "ChromaStore": "autoplay_rag.stores.chroma",
        "MemoryStore": "autoplay_rag.stores.memory",
    },
)

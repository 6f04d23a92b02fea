"""Stores: where chunks are kept and found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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

_MODULES = {
    "ChromaStore": "autoplay_rag.stores.chroma",
    "MemoryStore": "autoplay_rag.stores.memory",
}


def __getattr__(name: str) -> Any:
    """Load a store when it is first asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)

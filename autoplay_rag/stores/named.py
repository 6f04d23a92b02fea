"""Stores by name, as commands, settings files and jobs give them."""

from __future__ import annotations

from pathlib import Path

from autoplay_rag.errors import ConfigurationError
from autoplay_rag.stores.chroma import ChromaStore

__all__ = ["chroma_path", "make_store"]


def chroma_path(store: str) -> Path:
    """Return the folder of `chroma:PATH`.

    Raises:
        ConfigurationError: If the value has another form.

    Example:
        >>> chroma_path("chroma:data/store").as_posix()
        'data/store'
    """
    kind, _, path = store.partition(":")
    if kind != "chroma" or not path:
        raise ConfigurationError(f"store must be chroma:PATH, not {store!r}")
    return Path(path).expanduser()


def make_store(store: str, collection: str | None = None) -> ChromaStore:
    """Make the store of a name.

    Args:
        store: `chroma:PATH`.
        collection: The collection in the store; None for the default.

    Raises:
        ConfigurationError: If the value has another form.
    """
    path = chroma_path(store)
    return ChromaStore(path, collection) if collection else ChromaStore(path)

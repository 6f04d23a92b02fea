"""Stores by name, as commands, settings files and jobs give them."""

from __future__ import annotations

from pathlib import Path

from autoplay_rag.errors import ConfigurationError
from autoplay_rag.stores.chroma import ChromaStore
from autoplay_rag.stores.postgres import PgVectorStore
from autoplay_rag.stores.postgres.dsn import is_dsn, public_dsn

__all__ = ["chroma_path", "folder_of", "make_store"]


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
        if is_dsn(store):
            # Not quoted: it may have a password.
            raise ConfigurationError("store must be chroma:PATH here, not an address of PostgreSQL")
        raise ConfigurationError(
            f"store must be chroma:PATH or postgresql://USER@HOST/DATABASE, not {store!r}"
        )
    return Path(path).expanduser()


def folder_of(store: str) -> Path | None:
    """Return the folder of `chroma:PATH`; None for an address of PostgreSQL.

    Raises:
        ConfigurationError: If the value has another form.

    Example:
        >>> folder_of("postgresql://db.test/app") is None
        True
    """
    return None if is_dsn(store) else chroma_path(store)


def make_store(store: str, collection: str | None = None) -> ChromaStore | PgVectorStore:
    """Make the store of a name.

    Args:
        store: `chroma:PATH`, or `postgresql://user@host/database` without a password, which comes
            from `AUTOPLAY_RAG_POSTGRES_DSN[_FILE]`, `PGPASSWORD` or `~/.pgpass`. `postgresql:`
            takes the whole address from `AUTOPLAY_RAG_POSTGRES_DSN[_FILE]`.
        collection: The collection in the store; None for the default.

    Raises:
        ConfigurationError: If the value has another form, or contains a password.
    """
    if is_dsn(store):
        dsn = public_dsn(store)
        return PgVectorStore(dsn, table=collection) if collection else PgVectorStore(dsn)
    path = chroma_path(store)
    return ChromaStore(path, collection) if collection else ChromaStore(path)

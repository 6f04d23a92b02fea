"""Changes the names of Chroma collections, each time in one transaction.

Chroma finds the rows, the log and the index of a collection by its id, and looks the id up by name
with each `get_collection`. So a collection is exchanged or replaced by changing names, and a kill
leaves the names before or after the change. Call these functions between two calls of Chroma.

Statements about Chroma apply to chromadb 1.5.9.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from autoplay_rag.stores.chroma.copies import DATABASE

__all__ = ["UNUSED", "exchange_names", "replace", "set_aside", "successor_name", "writing"]

UNUSED: Final = "autoplay-rag.unused."
"""The beginning of the names of collections that nobody uses: to be deleted, or not yet complete."""
_PASSING_NAME: Final = "autoplay-rag.exchange"
"""A name is unique, so one of two collections has this name inside of a transaction."""
_BUSY_SECONDS: Final = 30.0


def successor_name(collection: str) -> str:
    """Return the reserved name for the successor of a collection, until it is complete.

    Args:
        collection: The id of the collection.
    """
    return f"{UNUSED}{collection}.new"


@contextmanager
def writing(folder: Path) -> Iterator[sqlite3.Connection]:
    """Open the database for one transaction, which an exception takes back.

    Raises:
        sqlite3.Error: If the database cannot be written.
    """
    with closing(
        sqlite3.connect(folder / DATABASE, timeout=_BUSY_SECONDS, isolation_level=None)
    ) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection
        connection.execute("COMMIT")


def exchange_names(folder: Path, one: str, other: str) -> None:
    """Exchange the names of two collections.

    Args:
        folder: Chroma's folder.
        one: The id of a collection.
        other: The id of another.

    Raises:
        sqlite3.Error: If the database cannot be written. Then nothing has changed.
    """
    with writing(folder) as connection:
        names = dict(
            connection.execute("SELECT id, name FROM collections WHERE id IN (?, ?)", (one, other))
        )
        _rename(connection, one, _PASSING_NAME)
        _rename(connection, other, names[one])
        _rename(connection, one, names[other])


def set_aside(folder: Path, collection: str) -> None:
    """Rename a collection that is to be deleted. Its metadata, with its identity, is deleted now.

    Args:
        folder: Chroma's folder.
        collection: The id of the collection.

    Raises:
        sqlite3.Error: If the database cannot be written. Then nothing has changed.
    """
    with writing(folder) as connection:
        _rename(connection, collection, f"{UNUSED}{collection}")
        connection.execute("DELETE FROM collection_metadata WHERE collection_id = ?", (collection,))


def replace(folder: Path, old: str, new: str) -> None:
    """Give a collection's name and metadata to its successor, and set it aside.

    Args:
        folder: Chroma's folder.
        old: The id of the collection.
        new: The id of the successor.

    Raises:
        sqlite3.Error: If the database cannot be written. Then nothing has changed.
    """
    with writing(folder) as connection:
        ((name,),) = connection.execute("SELECT name FROM collections WHERE id = ?", (old,))
        _rename(connection, new, _PASSING_NAME)
        _rename(connection, old, f"{UNUSED}{old}")
        _rename(connection, new, name)
        connection.execute("DELETE FROM collection_metadata WHERE collection_id = ?", (new,))
        connection.execute(
            "UPDATE collection_metadata SET collection_id = ? WHERE collection_id = ?", (new, old)
        )


def _rename(connection: sqlite3.Connection, collection: str, name: str) -> None:
    connection.execute("UPDATE collections SET name = ? WHERE id = ?", (name, collection))

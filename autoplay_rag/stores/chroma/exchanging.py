"""Exchanges the names of two Chroma collections in one transaction.

Chroma finds the rows, the log and the index of a collection by its id, and looks the id up by name
with each `get_collection`. So a change of the names is all there is to do. Statements about Chroma
apply to chromadb 1.5.9.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from autoplay_rag.stores.chroma.copies import DATABASE

__all__ = ["exchange_names"]

_BUSY_SECONDS: Final = 30.0
_PASSING_NAME: Final = "autoplay-rag.exchange"
"""A name is unique, so one of the two has this name inside of the transaction."""


def exchange_names(folder: Path, one: str, other: str) -> None:
    """Exchange the names of two collections. Call it between two calls of Chroma.

    Args:
        folder: Chroma's folder.
        one: The id of a collection.
        other: The id of another.

    Raises:
        sqlite3.Error: If the database cannot be written. Then nothing has changed.
    """
    with closing(
        sqlite3.connect(folder / DATABASE, timeout=_BUSY_SECONDS, isolation_level=None)
    ) as connection:
        connection.execute("BEGIN IMMEDIATE")
        names = dict(
            connection.execute("SELECT id, name FROM collections WHERE id IN (?, ?)", (one, other))
        )
        for name, collection in ((_PASSING_NAME, one), (names[one], other), (names[other], one)):
            connection.execute("UPDATE collections SET name = ? WHERE id = ?", (name, collection))
        connection.execute("COMMIT")

"""Many rows in one statement, in both directions.

Python releases its lock around every step of a statement. Beside a busy event loop a thread that
writes or reads row by row would wait for that lock at every row; one statement for many rows waits
once.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

__all__ = ["delete_in", "insert", "json_list", "lossy_text", "read_all"]

_SLICES: Final = (128, 32, 8, 1)
"""Rows in one statement: few sizes, so that their prepared statements are reused."""

_encode = msgspec.json.Encoder().encode


def insert(
    connection: sqlite3.Connection,
    into: str,
    rows: Sequence[Sequence[Any]],
    *,
    verb: str = "INSERT",
    after: str = "",
) -> int:
    """Insert rows; returns how many were inserted.

    Args:
        connection: The database.
        into: Table and columns, `"plan (number, lane)"`.
        rows: Values, as many in each as there are columns.
        verb: "INSERT" or "INSERT OR REPLACE" and the like.
        after: What follows the values, such as an ON CONFLICT clause.
    """
    done = inserted = 0
    for size in _SLICES:
        while len(rows) - done >= size:
            part = rows[done : done + size]
            row = f"({', '.join('?' * len(part[0]))})"
            values = ", ".join([row] * size)
            inserted += connection.execute(
                f"{verb} INTO {into} VALUES {values} {after}",
                [value for one in part for value in one],
            ).rowcount
            done += size
    return inserted


def json_list(values: Iterable[int | str]) -> str:
    """Values as a parameter for `IN (SELECT value FROM json_each(?))`."""
    return _encode(list(values)).decode()


def delete_in(
    connection: sqlite3.Connection, table: str, column: str, values: Sequence[int] | Sequence[str]
) -> int:
    """Delete the rows whose column holds one of `values`; returns how many."""
    if not values:
        return 0
    return connection.execute(
        f"DELETE FROM {table} WHERE {column} IN (SELECT value FROM json_each(?))",
        (json_list(values),),
    ).rowcount


def read_all(
    connection: sqlite3.Connection, columns: str, rest: str, *parameters: Any
) -> list[Any]:
    """Read rows in one step, through SQLite's JSON functions, which end a text at its first NUL.

    Args:
        connection: The database.
        columns: What to select; blobs as `hex(...)`.
        rest: The statement from FROM on, without an order.
        parameters: Its parameters.

    Returns:
        A list for each row, in no order.
    """
    found = connection.execute(
        f"SELECT json_group_array(json_array({columns})) {rest}",
        parameters,
    ).fetchone()[0]
    rows: list[Any] = msgspec.json.decode(found)
    return rows


def lossy_text(stored: bytes) -> str:
    """For a connection's `text_factory`: a flipped byte costs at most the text it stands in."""
    return stored.decode("utf-8", "replace")

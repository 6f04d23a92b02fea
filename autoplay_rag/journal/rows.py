"""Reads and writes of many rows in one statement.

The tables' statements are written for SQLite. A `Database` runs them on another database.

`sqlite3` releases the GIL at every step of a statement. While the event loop is busy, a thread that
reads or writes row by row waits for the GIL at every row. One statement for many rows waits once.
"""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Protocol, TypeAlias

import msgspec

__all__ = [
    "Connection",
    "Database",
    "JsonList",
    "Rows",
    "delete_in",
    "exact_real",
    "exact_text",
    "insert",
    "json_list",
    "lossy_text",
    "quoted",
    "read_all",
]

_SLICES: Final = (128, 32, 8, 1)
"""Rows in one statement. With few different sizes, prepared statements are reused."""

_encode = msgspec.json.Encoder().encode


class Rows(Protocol):
    """The result of a statement, as `sqlite3.Cursor` has it."""

    @property
    def rowcount(self) -> int:
        """The number of rows that the statement changed."""

    def fetchone(self) -> Any:
        """Return the next row; None if there is none."""

    def fetchall(self) -> list[Any]:
        """Return all rows that are left."""

    def __iter__(self) -> Iterator[Any]: ...


class Database(ABC):
    """A connection to another database than SQLite. It runs the same statements."""

    @property
    @abstractmethod
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""

    @abstractmethod
    def execute(self, sql: str, parameters: Any = (), /) -> Rows:
        """Run one statement."""

    @abstractmethod
    def executemany(self, sql: str, parameters: Iterable[Any], /) -> Rows:
        """Run one statement for each of many sets of parameters."""

    @abstractmethod
    def insert(self, into: str, rows: Sequence[Sequence[Any]], verb: str, after: str) -> int:
        """Insert rows; see the function `insert`."""

    @abstractmethod
    def read_all(self, columns: str, rest: str, parameters: Sequence[Any]) -> list[Any]:
        """Read rows; see the function `read_all`."""


Connection: TypeAlias = sqlite3.Connection | Database
"""What runs the statements of the journal's tables."""


class JsonList(str):
    """A JSON array as a parameter, with its values for databases that have arrays.

    Attributes:
        values: The values.
    """

    __slots__ = ("values",)
    values: list[Any]


def insert(
    connection: Connection,
    into: str,
    rows: Sequence[Sequence[Any]],
    *,
    verb: str = "INSERT",
    after: str = "",
) -> int:
    """Insert rows, and return how many were inserted.

    Args:
        connection: The database.
        into: Table and columns, such as `"plan (number, lane)"`.
        rows: One value for each column.
        verb: "INSERT" or a variant, such as "INSERT OR REPLACE".
        after: SQL after the values, such as an ON CONFLICT clause.
    """
    if isinstance(connection, Database):
        return connection.insert(into, rows, verb, after)
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


def json_list(values: Iterable[int | str]) -> JsonList:
    """Encode values as a parameter for `IN (SELECT value FROM json_each(?))`."""
    listed = list(values)
    found = JsonList(_encode(listed).decode())
    found.values = listed
    return found


def delete_in(
    connection: Connection, table: str, column: str, values: Sequence[int] | Sequence[str]
) -> int:
    """Delete the rows that have one of `values` in a column, and return how many."""
    if not values:
        return 0
    return connection.execute(
        f"DELETE FROM {table} WHERE {column} IN (SELECT value FROM json_each(?))",
        (json_list(values),),
    ).rowcount


def read_all(connection: Connection, columns: str, rest: str, *parameters: Any) -> list[Any]:
    """Read rows in one step with SQLite's JSON functions.

    These truncate a text at its first NUL, and round a number to 15 digits: see `exact_text` and
    `exact_real`.

    Args:
        connection: The database.
        columns: The columns to select; blobs as `hex(...)`.
        rest: The statement from FROM on, without ORDER BY.
        parameters: The statement's parameters.

    Returns:
        A sequence for each row, in any order.
    """
    if isinstance(connection, Database):
        return connection.read_all(columns, rest, parameters)
    found = connection.execute(
        f"SELECT json_group_array(json_array({columns})) {rest}",
        parameters,
    ).fetchone()[0]
    rows: list[Any] = msgspec.json.decode(found)
    return rows


def exact_text(column: str) -> str:
    """SQL for a text in `read_all` that may have a NUL: its bytes in hexadecimal. SQLite only."""
    return f"hex({column})"


def exact_real(column: str) -> str:
    """SQL for a number in `read_all` with all its digits, as a text for `float`. SQLite only.

    SQLite rounds numbers near the largest and the smallest that there are. A time is none of these.
    """
    return f"CASE WHEN {column} IS NOT NULL THEN printf('%!.17g', {column}) END"


def lossy_text(stored: bytes) -> str:
    """Decode a text; an invalid byte damages only this text. For a connection's `text_factory`."""
    return stored.decode("utf-8", "replace")


def quoted(words: str) -> str:
    """Quote words for FTS5, so that they are not read as an operator, a wildcard or a column.

    Example:
        >>> quoted('say "NOT" a*')
        '"say ""NOT"" a*"'
    """
    return '"' + words.replace('"', '""').replace("\0", " ") + '"'

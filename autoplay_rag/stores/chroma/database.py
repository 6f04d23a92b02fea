"""Reads of Chroma's SQLite database, between Chroma's own calls.

Chroma indexes metadata by key and value. Its own filters make little use of these indexes: with
100,000 chunks, Chroma finds the chunks of one user in 11 ms of CPU, and this module in 0.1 ms.
Chroma also takes 50 us to load a chunk, and this module 10 us.

Statements about Chroma hold for chromadb 1.5.9. Another version may have other tables. Then
`Database.readable` is False, and the caller uses Chroma instead.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias

from autoplay_rag.stores.base import Condition

__all__ = ["Contents", "Database"]

_DOCUMENT = "chroma:document"
_RESERVED = "chroma:"
_PART = 500
"""The most ids in one statement: SQLite before 3.32 takes 999 variables."""
_SEGMENT = "(SELECT id FROM segments WHERE scope = 'METADATA' AND collection = ?)"
_EXPECTED = (
    "SELECT id, scope, collection FROM segments LIMIT 0",
    "SELECT id, segment_id, embedding_id FROM embeddings LIMIT 0",
    "SELECT key, string_value, int_value, float_value, bool_value FROM embedding_metadata LIMIT 0",
    "SELECT id, dimension FROM collections LIMIT 0",
    "SELECT seq_id, topic FROM embeddings_queue LIMIT 0",
    "SELECT seq_id, segment_id FROM max_seq_id LIMIT 0",
)
_ARRAYS = "SELECT 1 FROM embedding_metadata_array LIMIT 1"

Contents: TypeAlias = tuple[str | None, dict[str, Any]]
"""Text and metadata of a chunk."""
_Clause: TypeAlias = tuple[str, list[Any]]
"""A part of a statement, and its arguments."""


class Database:
    """Chroma's database, opened for reading.

    Read a collection only if it `is_current`, or after Chroma has answered a request for it. With
    the first request after a kill, Chroma applies its log.

    Args:
        folder: Chroma's folder.

    Attributes:
        folder: As given.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._uri = f"{(folder / 'chroma.sqlite3').as_uri()}?mode=ro"
        self._connection: sqlite3.Connection | None = None
        self._readable: bool | None = None

    @property
    def readable(self) -> bool:
        """Whether the tables have the columns that this class reads."""
        if self._readable is None:
            try:
                for query in _EXPECTED:
                    self.select(query)
                self._readable = True
            except sqlite3.OperationalError as error:
                _check_missing(error)
                self._readable = False
        return self._readable

    def select(self, query: str, arguments: Sequence[Any] = ()) -> list[Any]:
        """Execute a statement. The connection stays open, and holds no lock between statements."""
        if self._connection is None:
            self._connection = sqlite3.connect(self._uri, uri=True)
        with closing(self._connection.execute(query, arguments)) as cursor:
            return cursor.fetchall()

    def close(self) -> None:
        """Close the connection. The next statement opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def is_current(self, collection: str) -> bool:
        """Return whether Chroma has put all changes of a collection from its log into the tables."""
        query = (
            "SELECT 1 FROM embeddings_queue WHERE topic LIKE '%' || ? AND seq_id > ifnull("  # noqa: S608
            f"(SELECT seq_id FROM max_seq_id WHERE segment_id = {_SEGMENT}), 0) LIMIT 1"
        )
        return not self.select(query, (collection, collection))

    def dimension(self, collection: str) -> int | None:
        """Return the dimension of the vectors that a collection had first; None if it had none."""
        query = "SELECT dimension FROM collections WHERE id = ?"
        found: int | None = self.select(query, (collection,))[0][0]
        return found

    def count(self, collection: str) -> int:
        """Return the number of chunks, without those that are only in Chroma's log.

        Chroma's own `count` opens the vector index, which takes seconds for a million chunks.
        """
        query = f"SELECT count(*) FROM embeddings WHERE segment_id = {_SEGMENT}"  # noqa: S608
        count: int = self.select(query, (collection,))[0][0]
        return count

    def ids(self, collection: str, limit: int) -> list[str]:
        """Return ids of the collection, at most `limit`; -1 for all."""
        query = f"SELECT embedding_id FROM embeddings WHERE segment_id = {_SEGMENT} LIMIT ?"  # noqa: S608
        return [row[0] for row in self.select(query, (collection, limit))]

    def matching(
        self, collection: str, conditions: Sequence[Condition], limit: int | None = None
    ) -> list[str]:
        """Return ids of chunks that pass all conditions, at most `limit`.

        This takes about 2 us for each chunk that passes the rarest condition: 100 ms for a time
        window with 50,000 chunks before it and 50,000 after it.
        """
        rarest = self._rarest(conditions)
        rows, arguments = _rows(rarest)
        others = [_holds(condition) for condition in conditions if condition is not rarest]
        # CROSS JOIN fixes the order of the tables. The plus prevents the index on `segment_id`.
        query = (
            f"SELECT e.embedding_id FROM ({rows}) AS found CROSS JOIN embeddings AS e"  # noqa: S608
            f" ON e.id = found.id WHERE +e.segment_id = {_SEGMENT}{_all(others)} LIMIT ?"
        )
        rest = [value for _, values in others for value in values]
        found = self.select(query, [*arguments, collection, *rest, -1 if limit is None else limit])
        return [row[0] for row in found]

    def is_rare(self, conditions: Sequence[Condition], most: int) -> bool:
        """Return whether at most `most` chunks of the folder pass one of the conditions."""
        return any(self._count(condition, most + 1) <= most for condition in conditions)

    def passing(
        self, collection: str, ids: Sequence[str], conditions: Sequence[Condition]
    ) -> set[str]:
        """Return those of the ids whose chunks pass all conditions."""
        clauses = [_holds(condition) for condition in conditions]
        rest = [value for _, values in clauses for value in values]
        found: set[str] = set()
        for part in _parts(ids):
            query = (
                f"SELECT e.embedding_id FROM embeddings AS e WHERE e.segment_id = {_SEGMENT}"  # noqa: S608
                f" AND e.embedding_id IN ({_marks(part)}){_all(clauses)}"
            )
            found.update(row[0] for row in self.select(query, [collection, *part, *rest]))
        return found

    def contents(self, collection: str, ids: Sequence[str]) -> dict[str, Contents] | None:
        """Return text and metadata by id; None if some metadata in the folder is a list."""
        if self._has_arrays():
            return None
        found: dict[str, Contents] = {}
        for part in _parts(ids):
            query = (
                "SELECT e.embedding_id, m.key, m.string_value, m.int_value, m.float_value,"  # noqa: S608
                " m.bool_value FROM embeddings AS e LEFT JOIN embedding_metadata AS m"
                f" ON m.id = e.id WHERE e.segment_id = {_SEGMENT}"
                f" AND e.embedding_id IN ({_marks(part)})"
            )
            for chunk_id, key, *values in self.select(query, [collection, *part]):
                text, metadata = found.get(chunk_id) or (None, {})
                if key == _DOCUMENT:
                    text = values[0]
                elif key is not None and not key.startswith(_RESERVED):
                    metadata.update(_value(key, *values))
                found[chunk_id] = (text, metadata)
        return found

    def _rarest(self, conditions: Sequence[Condition]) -> Condition:
        """Return the condition that the fewest chunks pass; the first if many pass each.

        For a time window this is `since`. SQLite reads chunks in the order of their end, so those
        in the window come first, and the limit is soon reached.
        """
        if len(conditions) == 1:
            return conditions[0]
        for bound in (1000, 16_000):
            counts = [self._count(condition, bound) for condition in conditions]
            if min(counts) < bound:
                return conditions[counts.index(min(counts))]
        return conditions[0]

    def _count(self, condition: Condition, limit: int) -> int:
        """Count the chunks of the folder that pass, up to `limit`. This reads only an index."""
        rows, arguments = _rows(condition)
        query = f"SELECT count(*) FROM (SELECT id FROM ({rows}) LIMIT ?)"  # noqa: S608
        count: int = self.select(query, [*arguments, limit])[0][0]
        return count

    def _has_arrays(self) -> bool:
        try:
            return bool(self.select(_ARRAYS))
        except sqlite3.OperationalError as error:
            _check_missing(error)
            return False  # an older Chroma, which cannot store lists


def _check_missing(error: sqlite3.OperationalError) -> None:
    """Raise the error again, unless it says that a table or a column is missing."""
    if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
        raise error


def _columns(value: str | float) -> tuple[str, ...]:
    if isinstance(value, str):
        return ("string_value",)
    return ("bool_value",) if isinstance(value, bool) else ("int_value", "float_value")


def _operator(condition: Condition) -> str:
    return {"==": "=", ">=": ">=", "<=": "<="}[condition[1]]


def _rows(condition: Condition) -> _Clause:
    """Select the row numbers of chunks that pass one condition, by the index on that column."""
    key, _, value = condition
    columns = _columns(value)
    selects = [
        f"SELECT id FROM embedding_metadata WHERE key = ? AND {column} {_operator(condition)} ?"  # noqa: S608
        for column in columns
    ]
    return " UNION ALL ".join(selects), [key, value] * len(columns)


def _holds(condition: Condition) -> _Clause:
    """Test whether the chunk in row `e` passes one condition."""
    key, _, value = condition
    columns = _columns(value)
    tests = " OR ".join(f"{column} {_operator(condition)} ?" for column in columns)
    return (
        f"EXISTS (SELECT 1 FROM embedding_metadata WHERE id = e.id AND key = ? AND ({tests}))",  # noqa: S608
        [key, *[value] * len(columns)],
    )


def _all(clauses: Sequence[_Clause]) -> str:
    return "".join(f" AND {clause}" for clause, _ in clauses)


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))


def _parts(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), _PART):
        yield ids[start : start + _PART]


def _value(
    key: str, text: str | None, whole: int | None, real: float | None, truth: int | None
) -> dict[str, Any]:
    if text is not None:
        return {key: text}
    if truth is not None:
        return {key: bool(truth)}
    number = whole if whole is not None else real
    return {} if number is None else {key: number}

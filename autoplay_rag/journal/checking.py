"""Reads of the catalog that compare it with its store. All functions block and only read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from autoplay_rag.journal.base import Recorded
from autoplay_rag.journal.catalog import CHUNK_COLUMNS, read_chunk
from autoplay_rag.journal.rows import Connection, json_list, read_all
from autoplay_rag.journal.schema import ChunkState

__all__ = ["in_outbox", "recorded", "recorded_after", "stored_after"]

_SELECT: Final = (
    "SELECT number, state, EXISTS (SELECT 1 FROM outdated WHERE outdated.chunk = chunk.id), "
    f"{CHUNK_COLUMNS} FROM chunk"
)


def recorded(connection: Connection, ids: Sequence[str]) -> dict[str, Recorded]:
    """Return chunks of the catalog by id."""
    rows = connection.execute(
        f"{_SELECT} WHERE id IN (SELECT value FROM json_each(?))", (json_list(ids),)
    )
    return {one.chunk.id: one for one in (_recorded(*row) for row in rows)}


def recorded_after(connection: Connection, number: int, limit: int) -> list[Recorded]:
    """Return chunks of the catalog with a higher number, ordered by number."""
    rows = connection.execute(
        f"{_SELECT} WHERE number > ? ORDER BY number LIMIT ?", (number, limit)
    )
    return [_recorded(*row) for row in rows]


def stored_after(connection: Connection, number: int, limit: int) -> list[tuple[int, str]]:
    """Return number and id of stored chunks with a higher number, ordered by number."""
    # One row for all, because each row of a statement releases the GIL.
    found = read_all(
        connection,
        "number, id",
        "FROM (SELECT number, id FROM chunk WHERE number > ? AND state = ? "
        "ORDER BY number LIMIT ?) AS page",
        number,
        ChunkState.STORED,
        limit,
    )
    return sorted((number, chunk) for number, chunk in found)


def in_outbox(connection: Connection, ids: Sequence[str]) -> set[str]:
    """Return those of these ids that are in the deletion outbox."""
    rows = connection.execute(
        "SELECT chunk FROM deletion WHERE chunk IN (SELECT value FROM json_each(?))",
        (json_list(ids),),
    )
    return {found for (found,) in rows}


def _recorded(
    number: int, state: int, outdated: int, id: str, text: str | None, *rest: Any
) -> Recorded:
    stored = state == ChunkState.STORED
    return Recorded(
        number,
        read_chunk(id, text, *rest),
        stored,
        text is not None,
        bool(outdated),
        state == ChunkState.RETIRED,
    )

"""Reads everything that a journal holds about a person or a session. All functions block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from autoplay_rag.journal.bodies import decoded, unpack
from autoplay_rag.journal.catalog import CHUNK_COLUMNS, read_chunk
from autoplay_rag.journal.rows import Connection, json_list
from autoplay_rag.journal.schema import PayloadState
from autoplay_rag.journal.selecting import Asked, Selected, concerned, select

__all__ = ["chunks_of", "payloads_of", "select_all"]

_STATES: Final = {
    PayloadState.WAITING: "pending",
    PayloadState.STORED: "stored",
    PayloadState.DEAD: "dead letter",
    PayloadState.ADOPTED: "stored",
}


def select_all(connection: Connection, asked: Asked) -> tuple[Selected, list[int]]:
    """Return the sessions and the sequence numbers of all payloads that a request concerns."""
    selected = select(connection, asked)
    return selected, concerned(connection, asked, selected)


def payloads_of(connection: Connection, seqs: Sequence[int]) -> list[dict[str, Any]]:
    """Return payloads as JSON-able records, in order."""
    rows = connection.execute(
        "SELECT payload.seq, kind, state, at, error, visit.product, "
        "coalesce(visit.session, payload.session), started, passage.ended, text, body "
        "FROM payload LEFT JOIN passage ON passage.seq = payload.seq "
        "LEFT JOIN visit ON visit.lane = payload.lane "
        "WHERE payload.seq IN (SELECT value FROM json_each(?)) ORDER BY payload.seq",
        (json_list(seqs),),
    ).fetchall()
    found = []
    for seq, kind, state, at, error, product, session, started, ended, text, body in rows:
        if state not in _STATES:
            continue  # only its key is left
        payload = decoded(unpack(body))
        found.append(
            {
                "record": "payload",
                "number": seq,
                "kind": kind,
                "state": _STATES[state],
                "received_at": at,
                "product_id": product,
                "session_id": session,
                "started_at": started,
                "ended_at": ended,
                "text": text,
                "error": error,
                "payload": None if payload is None else payload.to_dict(),
            }
        )
    return found


def chunks_of(
    connection: Connection, seqs: Sequence[int], after: int
) -> list[tuple[int, dict[str, Any]]]:
    """Return the chunks of payloads as JSON-able records, in order, each with its number.

    Args:
        connection: The database.
        seqs: The payloads.
        after: Only chunks with a higher number.
    """
    rows = connection.execute(
        f"SELECT number, {CHUNK_COLUMNS} FROM chunk WHERE number > ? AND number IN "
        "(SELECT chunk FROM chunk_payload WHERE seq IN (SELECT value FROM json_each(?))) "
        "ORDER BY number",
        (after, json_list(seqs)),
    ).fetchall()
    found = []
    for number, *columns in rows:
        chunk = read_chunk(*columns)
        record = {
            "record": "chunk",
            "id": chunk.id,
            "text": chunk.text,
            "metadata": dict(chunk.metadata),
        }
        found.append((number, record))
    return found

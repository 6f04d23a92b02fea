"""What a journal keeps, as values: entries on their way in, dead letters, names and counts."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Literal

from autoplay_rag.errors import DecodeError
from autoplay_rag.payloads import Payload, decode

__all__ = [
    "COUNTERS",
    "Action",
    "DeadLetter",
    "Durability",
    "Entry",
    "Outcome",
    "decoded",
    "letters",
    "lossy_text",
]

Outcome = Literal["accepted", "duplicate", "filtered", "dead", "overflow"]
Durability = Literal["normal", "full"]
Action = Literal["retry", "discard"]
"""What can be asked of dead letters."""

COUNTERS = (
    "received", "stored", "pending", "duplicate", "dead", "discarded", "filtered", "overflow",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """A payload on its way into the journal.

    Attributes:
        seq: Its place in the order received.
        key: Its `payload_key`.
        lane: Its `lane_of`.
        payload: As it is to be kept; None if only the fact that it came is.
        body: Its JSON, for the same.
        outcome: "accepted" for the queue, "filtered" to count it alone, "dead" for `error`.
        error: Why it is dead.
    """

    seq: int
    key: str
    lane: int
    payload: Payload | None
    body: str | None
    outcome: Literal["accepted", "filtered", "dead"] = "accepted"
    error: str | None = None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A payload that could not be stored.

    Attributes:
        id: Names it in `retry` and `discard`.
        kind: "actions", "summary" or "chat".
        session_id: Its session.
        error: Why it died.
        died_at: Unix seconds.
        payload: The payload; None where `redact` failed on it and nothing was kept.
    """

    id: int
    kind: str
    session_id: str | None
    error: str
    died_at: float
    payload: Payload | None


def letters(connection: sqlite3.Connection, limit: int) -> list[DeadLetter]:
    """Read dead letters, oldest first; also over a read-only connection."""
    connection.text_factory = lossy_text
    rows = connection.execute(
        "SELECT seq, kind, session, error, at, body FROM dead ORDER BY seq LIMIT ?", (limit,)
    )
    return [
        DeadLetter(seq, kind or "unknown", session, error, at, decoded(body))
        for seq, kind, session, error, at, body in rows.fetchall()
    ]


def lossy_text(stored: bytes) -> str:
    """For a connection's `text_factory`: a flipped byte may cost the one text it stands in."""
    return stored.decode("utf-8", "replace")


def decoded(body: str | None) -> Payload | None:
    """A payload of the queue; None if nothing was kept of it or its bytes were damaged."""
    try:
        return decode(body) if body else None
    except DecodeError:
        return None

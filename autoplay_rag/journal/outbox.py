"""The deletion outbox: chunks that have to leave the store, and why."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from autoplay_rag.journal.rows import Connection, insert

__all__ = ["FORGOTTEN", "add_to_outbox"]

FORGOTTEN: Final = "forgotten"
"""Why chunks are deleted that a request to forget concerns; with its number, if it has one."""


def add_to_outbox(connection: Connection, ids: Iterable[str], reason: str, now: float) -> None:
    """Add chunks that have to be deleted from the store.

    A request to forget waits for its chunks by their reason, so a later one does not replace it.
    """
    insert(
        connection,
        "deletion (chunk, reason, at)",
        [(one, reason, now) for one in ids],
        after="ON CONFLICT (chunk) DO UPDATE SET at = excluded.at, reason = CASE "
        f"WHEN substr(deletion.reason, 1, {len(FORGOTTEN)}) = '{FORGOTTEN}' THEN '{FORGOTTEN}' "
        "ELSE excluded.reason END",
    )

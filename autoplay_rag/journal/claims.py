"""Claims of summaries on the actions they replace, in the journal's tables.

A summary that replaces N actions claims N of its session's actions, the oldest first. A chunk whose
actions are all claimed is retired: its vector leaves the store, its text stays in the catalog. Everything
here blocks and runs inside a transaction of the writer's thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from autoplay_rag.journal.base import Claim, Claimable
from autoplay_rag.journal.database import JournalDatabase
from autoplay_rag.journal.outbox import add_to_outbox
from autoplay_rag.journal.rows import insert, json_list
from autoplay_rag.journal.schema import ChunkState, PayloadState

__all__ = ["ClaimTables"]

_LATE_SECONDS: Final = 3600.0
"""How long after a summary was stored its claim waits for actions that arrive late."""
_REPLACED: Final = "replaced by a summary"


class ClaimTables:
    """The operations on claims.

    Args:
        file: The journal's file.
    """

    def __init__(self, file: JournalDatabase) -> None:
        self._file = file
        self._connection = file.connection

    def add(self, claims: Sequence[Claim]) -> None:
        """Save the claims of summaries that were just accepted."""
        insert(
            self._connection,
            "claim (seq, lane, until, remaining)",
            [(one.seq, one.lane, one.until, one.remaining) for one in claims],
        )

    def lanes(self) -> list[int]:
        """Return the lanes with open claims of stored summaries."""
        rows = self._connection.execute(
            "SELECT DISTINCT claim.lane FROM claim JOIN payload USING (seq) WHERE payload.state = ?",
            (PayloadState.STORED,),
        )
        return [lane for (lane,) in rows]

    def open(self, lane: int) -> tuple[list[Claim], list[Claimable]]:
        """Return a session's open claims, and its stored payloads that have unclaimed actions."""
        claims = [
            Claim(*row)
            for row in self._connection.execute(
                "SELECT claim.seq, claim.lane, until, remaining FROM claim JOIN payload USING (seq) "
                "WHERE claim.lane = ? AND payload.state = ? ORDER BY claim.seq",
                (lane, PayloadState.STORED),
            )
        ]
        if not claims:
            return [], []
        payloads = [
            Claimable(*row)
            for row in self._connection.execute(
                "SELECT payload.seq, payload.actions - payload.claimed, payload.claimed, "
                "payload.at, passage.started, passage.ended, payload.body "
                "FROM passage CROSS JOIN payload ON payload.seq = passage.seq "
                "WHERE passage.lane = ? AND payload.state = ? AND payload.kind = 'actions' "
                "AND payload.claimed < payload.actions ORDER BY payload.seq",
                (lane, PayloadState.STORED),
            )
        ]
        return claims, payloads

    def apply(self, used: Mapping[int, int], claimed: Mapping[int, int]) -> list[str]:
        """Carry out a decision, and retire chunks without unclaimed actions.

        Args:
            used: By the number of a claim, how many actions it claimed.
            claimed: By the number of a payload, how many of its actions were claimed.

        Returns:
            The ids of retired chunks. They are in the deletion outbox.
        """
        self._connection.executemany(
            "UPDATE claim SET remaining = remaining - ? WHERE seq = ?",
            [(count, seq) for seq, count in used.items()],
        )
        self._connection.execute("DELETE FROM claim WHERE remaining <= 0")
        self._connection.executemany(
            "UPDATE payload SET claimed = min(actions, claimed + ?) WHERE seq = ?",
            [(count, seq) for seq, count in claimed.items()],
        )
        rows = self._connection.execute(
            "UPDATE chunk SET state = ? WHERE state IN (?, ?) AND kind = 'actions' AND number IN ("
            "SELECT chunk FROM chunk_payload WHERE seq IN (SELECT value FROM json_each(?))) "
            "AND NOT EXISTS (SELECT 1 FROM chunk_payload JOIN payload USING (seq) "
            "WHERE chunk_payload.chunk = chunk.number AND payload.claimed < payload.actions) "
            "RETURNING id",
            (ChunkState.RETIRED, ChunkState.STORED, ChunkState.QUEUED, json_list(claimed)),
        ).fetchall()
        ids = [found for (found,) in rows]
        add_to_outbox(self._connection, ids, _REPLACED, self._file.clock())
        return ids

    def expire(self) -> None:
        """Delete claims whose summary was stored more than an hour ago, or is gone."""
        self._connection.execute(
            "DELETE FROM claim WHERE NOT EXISTS (SELECT 1 FROM payload WHERE "
            "payload.seq = claim.seq AND (payload.state <> ? OR payload.ended > ?))",
            (PayloadState.STORED, self._file.clock() - _LATE_SECONDS),
        )

"""Writes the full-text index. `journal/index_buffer.py` says when.

All calls block and run inside a transaction on the writer thread. Texts are rendered before; only
SQLite's FTS5 tokenizes them here. `journal/finding.py` reads the index.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Final

from autoplay_rag.content.passages import storable
from autoplay_rag.content.words import index_text
from autoplay_rag.journal.base import IndexEntry, Unindexed
from autoplay_rag.journal.database import JournalDatabase
from autoplay_rag.journal.index_buffer import IndexBuffer
from autoplay_rag.journal.rows import delete_in, insert, json_list
from autoplay_rag.journal.schema import INDEX_BELOW, ChunkState, PayloadState
from autoplay_rag.journal.unindexed import entries_of

__all__ = ["FullTextTables"]

_INSERT_VISIT: Final = "visit (lane, product, session, first, last, payloads, actions)"
_WIDEN_VISIT: Final = (
    "ON CONFLICT (lane) DO UPDATE SET product = excluded.product, session = excluded.session, "
    # In SQLite, `min` and `max` of several arguments are NULL if one of them is NULL.
    "first = coalesce(min(visit.first, excluded.first), visit.first, excluded.first), "
    "last = coalesce(max(visit.last, excluded.last), visit.last, excluded.last), "
    "payloads = visit.payloads + excluded.payloads, actions = visit.actions + excluded.actions"
)
_INDEXED_STATES: Final = (
    f"state IN ({PayloadState.WAITING:d}, {PayloadState.STORED:d}, {PayloadState.DEAD:d}, "
    f"{PayloadState.ADOPTED:d})"
)


_REMOVED: Final = "removed_texts"
"""The key in `meta` for the number of texts removed since the last merge."""
_FEW_REMOVED: Final = 500
_MERGE_PAGES: Final = 300
"""Pages of the index that one transaction merges: about 10 ms."""
_PAGE: Final = 200
"""Payloads that `index_rest` has in memory at once."""


class FullTextTables:
    """The tables of the full-text index.

    Args:
        file: The journal's file.

    Attributes:
        buffer: What is accepted and not in the index yet.
    """

    _older_count = "chunk.metadata ->> '$.action_count', "

    def __init__(self, file: JournalDatabase) -> None:
        self.file = file
        self.buffer = IndexBuffer(self.add_missing)
        self._connection = file.connection

    def add(self, entries: Sequence[IndexEntry]) -> None:
        """Add payloads to the index."""
        self.add_texts(entries)
        insert(self._connection, _INSERT_VISIT, _visits(entries), after=_WIDEN_VISIT)
        insert(
            self._connection,
            "belongs (field, value, lane)",
            sorted(_belongings(entries)),
            verb="INSERT OR IGNORE",
        )

    def add_texts(self, entries: Sequence[IndexEntry]) -> None:
        """Add the passages of payloads, and their words."""
        insert(
            self._connection,
            "passage (seq, lane, started, ended, actions, text)",
            [
                (
                    one.seq,
                    one.lane,
                    one.passage.started or None,
                    one.passage.ended or None,
                    one.passage.actions,
                    one.passage.text,
                )
                for one in entries
            ],
        )
        insert(
            self._connection,
            "words (rowid, text)",
            [(one.seq, one.passage.indexed) for one in entries],
        )

    def _remove_texts(self, texts: Sequence[tuple[int, str]]) -> None:
        """Remove the words of these texts from the index. Their rows are deleted afterwards."""
        insert(
            self._connection,
            "words (words, rowid, text)",
            [("delete", seq, index_text(text)) for seq, text in texts],
        )
        if texts:
            self.file.set_meta(_REMOVED, len(texts) + (self.file.meta(_REMOVED) or 0))

    def remove(self, seqs: Sequence[int]) -> None:
        """Remove payloads from the index, and sessions without remaining payloads."""
        given = json_list(seqs)
        rows = self._connection.execute(
            "SELECT seq, text, lane FROM passage WHERE seq IN (SELECT value FROM json_each(?))",
            (given,),
        ).fetchall()
        self._remove_texts([(seq, text) for seq, text, _ in rows])
        delete_in(self._connection, "passage", "seq", seqs)
        lanes = json_list({lane for _, _, lane in rows})
        self._connection.execute(
            "DELETE FROM belongs WHERE lane IN (SELECT value FROM json_each(?)) AND NOT "
            "EXISTS (SELECT 1 FROM passage WHERE passage.lane = belongs.lane)",
            (lanes,),
        )
        self._connection.execute(
            "UPDATE visit SET (payloads, actions, first, last) = ("
            "SELECT count(*), coalesce(sum(actions), 0), min(started), max(ended) FROM passage "
            "WHERE passage.lane = visit.lane) WHERE lane IN (SELECT value FROM json_each(?))",
            (lanes,),
        )
        self._connection.execute(
            "DELETE FROM visit WHERE lane IN (SELECT value FROM json_each(?)) "
            "AND payloads = 0 AND seen IS NULL",
            (lanes,),
        )

    def merge(self, first: bool) -> bool:
        """Merge a part of the index, which keeps deleted words until then.

        Args:
            first: Whether a new merge of the whole index begins.

        Returns:
            Whether there is more to merge.
        """
        assert isinstance(self._connection, sqlite3.Connection)
        before = self._connection.total_changes
        self._connection.execute(
            "INSERT INTO words (words, rank) VALUES ('merge', ?)",
            (-_MERGE_PAGES if first else _MERGE_PAGES,),
        )
        # As SQLite documents it: a difference below 2 means that nothing was merged.
        more = self._connection.total_changes - before >= 2  # noqa: PLR2004
        if not more:
            self.file.set_meta(_REMOVED, 0)
        return more

    def is_stale(self) -> bool:
        """Whether more texts were removed since the last merge of the whole index than are left."""
        removed = self.file.meta(_REMOVED) or 0
        if removed < _FEW_REMOVED:
            return False
        return removed > self.file.scalar("SELECT count(*) FROM passage")

    # -- payloads that are not indexed yet ----------------------------------------------------

    def reindex(self) -> None:
        """Start indexing all payloads that are not in the index, newest first."""
        last = self.file.scalar("SELECT coalesce(max(seq), 0) FROM payload")
        self.file.set_meta(INDEX_BELOW, last + 1)

    def unindexed(self, limit: int) -> tuple[list[Unindexed], int]:
        """Return the next payloads to index, newest first, and about how many are left after them.

        Returns:
            No payloads and 0 if all are indexed.
        """
        below = self.file.meta(INDEX_BELOW)
        if below is None:
            return [], 0
        found = self._unindexed("payload.seq < ?", below, limit)
        if not found:
            self.file.delete_meta(INDEX_BELOW)
            return [], 0
        return found, found[-1].seq - self.file.scalar("SELECT min(seq) FROM payload")

    def index_rest(self) -> None:
        """Add what an earlier process accepted last and did not index.

        Payloads are indexed in the order in which they are accepted, so the rest is behind them.
        """
        last = self.file.scalar("SELECT coalesce(max(seq), 0) FROM passage")
        last = max(last, (self.file.meta(INDEX_BELOW) or 0) - 1)
        while page := self._unindexed("payload.seq > ?", last, _PAGE, order="ASC"):
            self.add(entries_of(page))
            last = page[-1].seq

    def _unindexed(self, where: str, seq: int, limit: int, order: str = "DESC") -> list[Unindexed]:
        rows = self._connection.execute(
            "SELECT payload.seq, coalesce(chunk.lane, payload.lane), body, chunk.text, "
            "coalesce(chunk.product, ''), chunk.session, chunk.user, chunk.conversation, "
            # Before format 4, the number of actions was part of the `metadata` column.
            "chunk.started, chunk.ended, "
            f"coalesce(chunk.actions, {self._older_count}0) "
            "FROM payload LEFT JOIN chunk ON chunk.number = ("
            "SELECT min(chunk) FROM chunk_payload WHERE chunk_payload.seq = payload.seq) "
            f"AND chunk.state <> {ChunkState.PLANNED:d} AND payload.seq = ("
            "SELECT min(seq) FROM chunk_payload WHERE chunk_payload.chunk = chunk.number) "
            f"WHERE {where} AND payload.{_INDEXED_STATES} "
            "AND NOT EXISTS (SELECT 1 FROM passage WHERE passage.seq = payload.seq) "
            f"ORDER BY payload.seq {order} LIMIT ?",
            (seq, limit),
        ).fetchall()
        return [
            Unindexed(seq, lane, body, tuple(chunk) if chunk[0] is not None else None)
            for seq, lane, body, *chunk in rows
        ]

    def add_older(self, entries: Sequence[IndexEntry], below: int) -> None:
        """Add payloads of `unindexed` to the index.

        Args:
            entries: The payloads with a text. Payloads deleted since then are skipped.
            below: The lowest sequence number that `unindexed` returned.
        """
        self.add_missing(entries)
        self.file.set_meta(INDEX_BELOW, below)

    def add_missing(self, entries: Sequence[IndexEntry]) -> None:
        """Add payloads to the index, without those that are in it or were deleted."""
        there = {
            seq
            for (seq,) in self._connection.execute(
                f"SELECT seq FROM payload WHERE {_INDEXED_STATES} AND NOT EXISTS (SELECT 1 FROM "
                "passage WHERE passage.seq = payload.seq) "
                "AND seq IN (SELECT value FROM json_each(?))",
                (json_list(one.seq for one in entries),),
            )
        }
        self.add([one for one in entries if one.seq in there])


def _visits(entries: Iterable[IndexEntry]) -> list[list[Any]]:
    """One row for each session, with what these payloads add to it."""
    rows: dict[int, list[Any]] = {}
    for _, lane, product, session, passage in entries:
        row = rows.get(lane)
        if row is None:
            row = rows[lane] = [
                lane,
                storable(product),
                session and storable(session),
                None,
                None,
                0,
                0,
            ]
        if passage.started and (row[3] is None or passage.started < row[3]):
            row[3] = passage.started
        if passage.ended and (row[4] is None or passage.ended > row[4]):
            row[4] = passage.ended
        row[5] += 1
        row[6] += passage.actions
    return list(rows.values())


def _belongings(entries: Iterable[IndexEntry]) -> set[tuple[str, str, int]]:
    found: set[tuple[str, str, int]] = set()
    for one in entries:
        if one.passage.user_id:
            found.add(("user_id", one.passage.user_id, one.lane))
        if one.passage.conversation_id:
            found.add(("conversation_id", one.passage.conversation_id, one.lane))
    return found

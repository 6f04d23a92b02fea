"""Reading the catalog for a search: which passages have the words, and what they belong to.

Everything here blocks and only reads. It runs on a connection of its own where the journal is a
file, so it never waits for the writer.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, Final

from autoplay_rag.content.chunks import Chunk, metadata_of
from autoplay_rag.content.filters import Condition
from autoplay_rag.content.identity import NOBODY, People, changes_hands, people_of
from autoplay_rag.content.keys import chunk_id
from autoplay_rag.journal.base import Found, FoundPassage, Scope, Visit
from autoplay_rag.journal.bodies import decoded, unpack
from autoplay_rag.journal.catalog import CHUNK_COLUMNS, read_chunk
from autoplay_rag.journal.rows import json_list
from autoplay_rag.journal.schema import ChunkState, PayloadState

__all__ = ["Finder"]

_FEW_PAYLOADS: Final = 2000
"""All payloads of a person, a session or a thread are read and compared if they are no more than
this: the answer is exact. Of other scopes a tenth: there the words select."""
_FEW_LANES: Final = 1000
_COMMON_SHARE: Final = 0.02
_COMMON_LEAST: Final = 500
"""Words in more passages than this do not select candidates, unless the question has no others."""
_LEAST_WORDS: Final = 2
_LANE_PAYLOADS: Final = 400
"""The latest payloads of a session that count, beside those that matched."""
_COUNTED: Final = 20_000
"""Passages with a word are counted up to here."""
_FILTERED_AFTERWARDS: Final = 1000
"""The best matches of a question that are filtered first: a broad filter leaves enough of them."""
_GROWTH: Final = 1.2
_IN: Final = "IN (SELECT value FROM json_each(?))"
_STORED: Final = f"chunk.state <> {ChunkState.PLANNED:d}"


class Finder:
    """Answers what a search asks of the catalog.

    Args:
        connection: A connection to the journal's database.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._counts: dict[str, int] = {}
        self._counted_at = 0

    # -- what a question may see --------------------------------------------------------------

    def scope(self, conditions: Sequence[Condition]) -> Scope:
        """What a filter leaves.

        Args:
            conditions: As `Filter.conditions` gives them.
        """
        asked = {key: value for key, op, value in conditions if op == "=="}
        known = all(self._is_known(name, asked[name]) for name in _LANES if name in asked)
        pending = self._scalar("SELECT pending FROM counts")
        if not conditions:
            return Scope(known, None, pending)
        lanes = self._lanes(conditions, _FEW_LANES + 1)
        if any(name in asked for name in _LANES) and len(lanes) <= _FEW_LANES:
            pending = self._scalar(
                "SELECT count(*) FROM payload INDEXED BY payload_waiting "
                f"WHERE state = {PayloadState.WAITING:d} AND lane {_IN}",
                json_list(lanes),
            )
        of_someone = any(name in asked for name in _LANES)
        most = _FEW_PAYLOADS if of_someone else _FEW_PAYLOADS // 10
        return Scope(known, lanes if self._are_few(lanes, most) else None, pending)

    def _is_known(self, name: str, value: Any) -> bool:
        if name == "session_id":
            sql, given = "SELECT 1 FROM visit WHERE session = ? LIMIT 1", [value]
        else:
            sql = "SELECT 1 FROM belongs WHERE field = ? AND value = ? LIMIT 1"
            given = [name, value]
        return self._connection.execute(sql, given).fetchone() is not None

    def _are_few(self, lanes: Sequence[int], most: int) -> bool:
        if len(lanes) > _FEW_LANES:
            return False
        total = self._scalar(
            f"SELECT coalesce(sum(payloads), 0) FROM visit WHERE lane {_IN}", json_list(lanes)
        )
        return total <= most

    def _lanes(self, conditions: Sequence[Condition], limit: int) -> list[int]:
        where, given = visits_where(conditions)
        rows = self._connection.execute(
            f"SELECT lane FROM visit WHERE {where} ORDER BY last DESC LIMIT ?", (*given, limit)
        )
        return [lane for (lane,) in rows]

    # -- which passages have the words --------------------------------------------------------

    def find(
        self,
        lookups: Mapping[str, Sequence[str]],
        phrases: Sequence[str],
        conditions: Sequence[Condition],
        limit: int,
    ) -> Found:
        """The passages that match a question best, by SQLite's ranking of single passages.

        Args:
            lookups: The question's terms, each with the words to look up.
            phrases: What is looked up as it stands.
            conditions: As `Filter.conditions` gives them.
            limit: The most passages; with 0 only the terms are counted.
        """
        total = self._count_passages()
        counts = {term: self._frequency(term, raw, total) for term, raw in lookups.items()}
        common = max(_COMMON_SHARE * total, _COMMON_LEAST)
        there = sorted((term for term in counts if counts[term]), key=counts.__getitem__)
        chosen = [term for term in there if counts[term] <= common] or there[:_LEAST_WORDS]
        match = " OR ".join(
            [_quoted(phrase) for phrase in phrases]
            + [_quoted(raw) for term in chosen for raw in lookups[term]]
        )
        seqs = self._matching(match, conditions, limit) if match and limit else []
        return Found(total, counts, seqs)

    def _matching(
        self, match: str, conditions: Sequence[Condition], limit: int
    ) -> list[tuple[int, int]]:
        if not conditions:
            rows = self._connection.execute(
                "SELECT found.rowid, passage.lane FROM (SELECT rowid FROM words WHERE words "
                "MATCH ? ORDER BY bm25(words) LIMIT ?) AS found "
                "CROSS JOIN passage ON passage.seq = found.rowid",
                (match, limit),
            )
            return rows.fetchall()
        where, given = passages_where(conditions)
        best = self._connection.execute(
            "SELECT found.rowid, passage.lane FROM (SELECT rowid FROM words "
            "WHERE words MATCH ? ORDER BY bm25(words) LIMIT ?) AS found "
            "CROSS JOIN passage ON passage.seq = found.rowid "
            f"CROSS JOIN visit ON visit.lane = passage.lane WHERE {where} LIMIT ?",
            (match, _FILTERED_AFTERWARDS, *given, limit),
        ).fetchall()
        if len(best) == limit:
            return best
        # Few pass: each match has to be looked at.
        rows = self._connection.execute(
            "SELECT words.rowid, passage.lane FROM words "
            "CROSS JOIN passage ON passage.seq = words.rowid "
            "CROSS JOIN visit ON visit.lane = passage.lane "
            f"WHERE words MATCH ? AND {where} ORDER BY bm25(words) LIMIT ?",
            (match, *given, limit),
        )
        return rows.fetchall()

    def frequencies(self, lookups: Mapping[str, Sequence[str]]) -> dict[str, int]:
        """How many passages have each of these terms."""
        total = self._count_passages()
        return {term: self._frequency(term, raw, total) for term, raw in lookups.items()}

    def _frequency(self, term: str, raw: Sequence[str], total: int) -> int:
        if total > self._counted_at * _GROWTH or total < self._counted_at:
            self._counts.clear()
            self._counted_at = total
        found = self._counts.get(term)
        if not found:  # what is not there yet may have come since
            match = " OR ".join(_quoted(word) for word in raw)
            found = self._scalar(
                "SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH ? LIMIT ?)",
                match,
                _COUNTED,
            )
            self._counts[term] = found
        return found

    def _count_passages(self) -> int:
        # Counting the rows themselves takes as long as reading them.
        received = self._scalar("SELECT stored + pending + dead FROM counts")
        return received + max(0, -self._scalar("SELECT coalesce(min(seq), 0) FROM passage"))

    # -- what they belong to ------------------------------------------------------------------

    def lanes_of(self, chunk_ids: Sequence[str]) -> dict[str, int]:
        """The lanes of stored chunks, where they are known."""
        rows = self._connection.execute(
            "SELECT chunk.id, passage.lane FROM json_each(?) AS given "
            "CROSS JOIN chunk ON chunk.id = given.value "
            "CROSS JOIN chunk_payload ON chunk_payload.chunk = chunk.number "
            "CROSS JOIN passage ON passage.seq = chunk_payload.seq",
            (json_list(chunk_ids),),
        )
        return dict(rows)

    def chunk_ids(self, lanes: Sequence[int]) -> list[str]:
        """The ids of the chunks that the store has of these sessions."""
        rows = self._connection.execute(
            "SELECT DISTINCT chunk.id FROM json_each(?) AS given "
            "CROSS JOIN passage ON passage.lane = given.value "
            "CROSS JOIN chunk_payload ON chunk_payload.seq = passage.seq "
            f"CROSS JOIN chunk ON chunk.number = chunk_payload.chunk AND {_STORED}",
            (json_list(lanes),),
        )
        return [found for (found,) in rows]

    def passages(self, lanes: Sequence[int], matched: Sequence[int] = ()) -> list[FoundPassage]:
        """What sessions say, in order; of a long one the latest, and what matched.

        Args:
            lanes: The sessions' lanes.
            matched: Sequence numbers that `find` gave.
        """
        rows: dict[tuple[int, str | None], Any] = {}
        for lane in lanes:
            for row in self._connection.execute(
                _PASSAGES.format("passage.lane = ?") + " ORDER BY passage.seq DESC LIMIT ?",
                (lane, _LANE_PAYLOADS),
            ):
                rows[row[0], row[3]] = row
        if missing := [seq for seq in matched if (seq, None) not in rows]:
            for row in self._connection.execute(
                _PASSAGES.format(f"passage.seq {_IN}"), (json_list(missing),)
            ):
                rows[row[0], row[3]] = row
        return [FoundPassage(*rows[key]) for key in sorted(rows, key=lambda key: key[0])]

    def chunks(self, ids: Sequence[str]) -> list[Chunk]:
        """Stored chunks with text and metadata, in no order."""
        rows = self._connection.execute(
            f"SELECT {CHUNK_COLUMNS} FROM chunk WHERE id {_IN} AND {_STORED}", (json_list(ids),)
        )
        return [read_chunk(*row) for row in rows]

    def waiting(self, seqs: Sequence[int]) -> dict[int, Chunk]:
        """Payloads that are in no stored chunk yet, each as a chunk of its own."""
        rows = self._connection.execute(
            "SELECT passage.seq, passage.lane, passage.text, hex(payload.key), payload.body "
            "FROM passage JOIN payload ON payload.seq = passage.seq "
            f"WHERE passage.seq {_IN}",
            (json_list(seqs),),
        ).fetchall()
        owners = self._owners({row[1] for row in rows})
        found = {}
        for seq, lane, text, key, body in rows:
            payload = decoded(unpack(body))
            if payload is not None:
                people = people_of(payload)
                known = owners.get(lane, NOBODY)
                if not changes_hands(known.user_id, people.user_id):
                    people = people.or_else(known)
                metadata = metadata_of([payload], people=people)
                found[seq] = Chunk(chunk_id(payload, key.lower()), text, metadata)
        return found

    def _owners(self, lanes: set[int]) -> dict[int, People]:
        """Whom sessions belong to, where no more than one person used them."""
        users: dict[int, set[str]] = {}
        threads: dict[int, set[str]] = {}
        for field, value, lane in self._connection.execute(
            f"SELECT field, value, lane FROM belongs WHERE lane {_IN}", (json_list(lanes),)
        ):
            (users if field == "user_id" else threads).setdefault(lane, set()).add(value)
        return {
            lane: People(next(iter(people)), next(iter(threads.get(lane, ())), None))
            for lane, people in users.items()
            if len(people) == 1
        }

    def visits(self, lanes: Sequence[int]) -> dict[int, Visit]:
        """Sessions as they were received, where they are known."""
        rows = self._connection.execute(
            "SELECT lane, product, session, first, last, payloads, actions FROM visit "
            f"WHERE lane {_IN}",
            (json_list(lanes),),
        )
        return {row[0]: Visit(*row) for row in rows}

    def recent_lanes(self, conditions: Sequence[Condition], limit: int) -> list[int]:
        """The sessions that pass a filter, the latest first."""
        return self._lanes(conditions, limit)

    def _scalar(self, sql: str, *parameters: Any) -> int:
        return int(self._connection.execute(sql, parameters).fetchone()[0])


_LANES: Final = ("session_id", "user_id", "conversation_id")
"""Conditions that few sessions meet."""
_PASSAGES: Final = (
    "SELECT passage.seq, passage.lane, passage.text, chunk.id, passage.started, passage.ended "
    "FROM passage LEFT JOIN chunk_payload ON chunk_payload.seq = passage.seq "
    f"LEFT JOIN chunk ON chunk.number = chunk_payload.chunk AND {_STORED} WHERE {{}}"
)
_VISIT_TERMS: Final = {
    ("session_id", "=="): "visit.session = ?",
    ("product_id", "=="): "visit.product = ?",
    ("user_id", "=="): (
        "visit.lane IN (SELECT lane FROM belongs WHERE field = 'user_id' AND value = ?)"
    ),
    ("conversation_id", "=="): (
        "visit.lane IN (SELECT lane FROM belongs WHERE field = 'conversation_id' AND value = ?)"
    ),
    ("ended_at", ">="): "visit.last >= ?",
    ("started_at", "<="): "visit.first <= ?",
}
_PASSAGE_TERMS: Final = {
    ("ended_at", ">="): "passage.ended >= ?",
    ("started_at", "<="): "passage.started <= ?",
    ("kind", "=="): "(SELECT kind FROM payload WHERE payload.seq = passage.seq) = ?",
}


def visits_where(conditions: Sequence[Condition]) -> tuple[str, list[Any]]:
    """Conditions on `visit`, with their parameters; what only a passage shows is left out."""
    return _where(conditions, _VISIT_TERMS)


def passages_where(conditions: Sequence[Condition]) -> tuple[str, list[Any]]:
    """Conditions on `passage` and `visit`, with their parameters."""
    return _where(conditions, _VISIT_TERMS | _PASSAGE_TERMS)


def _where(
    conditions: Sequence[Condition], terms: Mapping[tuple[str, str], str]
) -> tuple[str, list[Any]]:
    found = [(terms[key, op], value) for key, op, value in conditions if (key, op) in terms]
    return " AND ".join(term for term, _ in found) or "1", [value for _, value in found]


def _quoted(words: str) -> str:
    """Words as FTS5 takes them literally: no operator, no wildcard, no column."""
    return '"' + words.replace('"', '""').replace("\0", " ") + '"'

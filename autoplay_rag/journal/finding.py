"""Reads the catalog for a search: matching passages, and their sessions and chunks.

All calls block and only read. A journal in a file is read on a separate connection, beside the
writer. Many rows are read in one step: row by row, a search would wait for the GIL at each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from operator import itemgetter
from typing import Any, Final, NamedTuple

from autoplay_rag.content.chunks import Chunk, metadata_of
from autoplay_rag.content.filters import Condition
from autoplay_rag.content.identity import NOBODY, People, changes_hands, people_of
from autoplay_rag.content.keys import chunk_id
from autoplay_rag.journal.base import Found, FoundPassage, Part, Scope, Visit
from autoplay_rag.journal.bodies import decoded, unpack
from autoplay_rag.journal.catalog import read_chunks
from autoplay_rag.journal.rows import Connection, exact_real, json_list, quoted, read_all
from autoplay_rag.journal.schema import EXPIRED_COUNT, ChunkState, PayloadState

__all__ = ["GROWTH", "LANE_PAYLOADS", "PARTS", "PASSAGES", "Asked", "Finder", "passages_where"]

_FEW_PAYLOADS: Final = 2000
"""The most payloads of a person, a session or a thread for which all of them are scored. Then the
ranking is exact. For other scopes the limit is a tenth; above it, the words select candidates."""
_FEW_LANES: Final = 1000
_COMMON_SHARE: Final = 0.02
_COMMON_LEAST: Final = 500
"""Words in more passages than this, and than the share above, do not select candidates, unless the
question has no other words."""
_LEAST_WORDS: Final = 2
_MOST_MATCHES: Final = 30_000
"""SQLite ranks every match: of a million passages, the rarest words select enough."""
_MOST_COMMON: Final = 10_000
"""For a question of common words only, the latest matches that are ranked. All of them would take the
longer the more there are, and their ranks differ little."""
LANE_PAYLOADS: Final = 400
"""The most payloads of a session that are read: the latest ones, in addition to the matches."""
_COUNTED: Final = 20_000
"""The count of passages with a word stops here."""
_FILTERED_AFTERWARDS: Final = 1000
"""The best matches that are filtered first. With a broad filter, enough of them pass."""
GROWTH: Final = 1.2
"""How much the catalog grows until what is counted in it is counted again."""
_IN: Final = "IN (SELECT value FROM json_each(?))"
_STORED: Final = f"chunk.state <> {ChunkState.PLANNED:d}"


class Asked(NamedTuple):
    """What selects passages.

    Attributes:
        phrases: Phrases to look up literally.
        lookups: The chosen terms, each with the words to look up.
        counts: The number of passages with each term.
        total: The approximate number of passages.
        latest: The most matches that are ranked, the latest ones; -1 for all.
    """

    phrases: Sequence[str]
    lookups: Mapping[str, Sequence[str]]
    counts: Mapping[str, int]
    total: int
    latest: int


class Finder:
    """Reads the catalog for a search. `Findable` is its asynchronous interface.

    Args:
        connection: A connection to the journal's database.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._most_matches = _MOST_MATCHES
        self._counts: dict[str, int] = {}
        self._counted_at = 0

    # -- the scope of a filter ----------------------------------------------------------------

    def scope(self, conditions: Sequence[Condition]) -> Scope:
        """Return the scope of a filter.

        Args:
            conditions: The result of `Filter.conditions`.
        """
        asked = {key: value for key, op, value in conditions if op == "=="}
        known = all(self._is_known(name, asked[name]) for name in _LANES if name in asked)
        pending = self._scalar("SELECT pending FROM counts")
        if not conditions:
            return Scope(known, None, pending)
        lanes = self.recent_lanes(conditions, _FEW_LANES + 1)
        of_someone = any(name in asked for name in _LANES)
        if of_someone and len(lanes) <= _FEW_LANES:
            pending = self._scalar(
                "SELECT count(*) FROM payload INDEXED BY payload_waiting "
                f"WHERE state = {PayloadState.WAITING:d} AND lane {_IN}",
                json_list(lanes),
            )
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

    def recent_lanes(self, conditions: Sequence[Condition], limit: int) -> list[int]:
        """Return the lanes of sessions that pass a filter, latest first."""
        where, given = visits_where(conditions)
        rows = read_all(
            self._connection,
            "lane, last",
            f"FROM (SELECT lane, last FROM visit WHERE {where} "
            "ORDER BY last DESC NULLS LAST LIMIT ?) AS latest",
            *given,
            limit,
        )
        rows.sort(key=lambda row: (row[1] is None, -(row[1] or 0.0)))
        return [lane for lane, _ in rows]

    # -- matching passages --------------------------------------------------------------------

    def find(
        self,
        lookups: Mapping[str, Sequence[str]],
        phrases: Sequence[str],
        conditions: Sequence[Condition],
        limit: int,
    ) -> Found:
        """Return the passages that match a question best, by SQLite's BM25 of single passages.

        Args:
            lookups: The question's terms, each with the words to look up.
            phrases: Phrases to look up literally.
            conditions: The result of `Filter.conditions`.
            limit: The most passages; 0 only counts the terms.
        """
        total = self._count_passages()
        counts = self._frequencies(lookups, total)
        common = max(_COMMON_SHARE * total, _COMMON_LEAST)
        chosen = _rare(counts, common, self._most_matches)
        # A phrase may be rare, and its matches old.
        are_common = not phrases and any(counts[term] > common for term in chosen)
        latest = _MOST_COMMON if are_common else -1
        asked = Asked(phrases, {term: lookups[term] for term in chosen}, counts, total, latest)
        seqs = self._matching(asked, conditions, limit) if (phrases or chosen) and limit else []
        return Found(total, counts, seqs)

    def _matching(
        self, asked: Asked, conditions: Sequence[Condition], limit: int
    ) -> list[tuple[int, int]]:
        match = " OR ".join(
            [quoted(phrase) for phrase in asked.phrases]
            + [quoted(raw) for words in asked.lookups.values() for raw in words]
        )
        best = (
            "(SELECT rowid AS seq, place FROM (SELECT rowid, bm25(words) AS place FROM words "
            "WHERE words MATCH ? ORDER BY rowid DESC LIMIT ?) ORDER BY place LIMIT ?) AS found "
            "CROSS JOIN passage ON passage.seq = found.seq"
        )
        if not conditions:
            return self._in_place(best, match, asked.latest, limit)
        where, given = passages_where(conditions)
        passing = self._in_place(
            f"{best} CROSS JOIN visit ON visit.lane = passage.lane WHERE {where}",
            match,
            asked.latest,
            _FILTERED_AFTERWARDS,
            *given,
        )
        if len(passing) >= limit:
            return passing[:limit]
        # Few of the best matches pass, so all matches are filtered.
        return self._in_place(
            "(SELECT words.rowid AS seq, bm25(words) AS place FROM words "
            "CROSS JOIN passage ON passage.seq = words.rowid "
            "CROSS JOIN visit ON visit.lane = passage.lane "
            f"WHERE words MATCH ? AND {where} ORDER BY place LIMIT ?) AS found "
            "CROSS JOIN passage ON passage.seq = found.seq",
            match,
            *given,
            limit,
        )

    def _in_place(self, matches: str, *parameters: Any) -> list[tuple[int, int]]:
        rows = read_all(
            self._connection, "found.seq, passage.lane, place", f"FROM {matches}", *parameters
        )
        rows.sort(key=itemgetter(2))
        return [(seq, lane) for seq, lane, _ in rows]

    def _frequencies(self, lookups: Mapping[str, Sequence[str]], total: int) -> dict[str, int]:
        if total > self._counted_at * GROWTH or total < self._counted_at:
            self._counts.clear()
            self._counted_at = total
        # 0 is not cached: the term may have been added since.
        unknown = [term for term in lookups if not self._counts.get(term)]
        found = self._count([lookups[term] for term in unknown], _COUNTED) if unknown else []
        self._counts |= dict(zip(unknown, found, strict=True))
        return {term: self._counts[term] for term in lookups}

    def _count(self, asked: Sequence[Sequence[str]], most: int) -> list[int]:
        """Return for each of some lists of words the number of passages with any of them, or `most`."""
        return [
            self._scalar(
                "SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH ? LIMIT ?)",
                " OR ".join(quoted(word) for word in words),
                most,
            )
            for words in asked
        ]

    def _count_passages(self) -> int:
        # Counting the rows would take as long as reading them.
        received = self._scalar(
            "SELECT stored + pending + dead - coalesce((SELECT value FROM meta WHERE name = ?), 0) "
            "FROM counts",
            EXPIRED_COUNT,
        )
        return received + max(0, -self._scalar("SELECT coalesce(min(seq), 0) FROM passage"))

    # -- their sessions and chunks ------------------------------------------------------------

    def lanes_of(self, chunk_ids: Sequence[str]) -> dict[str, int]:
        """Return the lanes of those stored chunks that the catalog knows."""
        rows = read_all(
            self._connection,
            "chunk.id, passage.lane",
            "FROM chunk CROSS JOIN chunk_payload ON chunk_payload.chunk = chunk.number "
            "CROSS JOIN passage ON passage.seq = chunk_payload.seq "
            f"WHERE chunk.id {_IN}",
            json_list(chunk_ids),
        )
        return {chunk: lane for chunk, lane in rows}  # noqa: C416 - rows are lists

    def being_deleted(self, chunk_ids: Sequence[str]) -> set[str]:
        """Return those of these chunks that the store is yet to delete."""
        rows = self._connection.execute(
            f"SELECT chunk FROM deletion WHERE chunk {_IN}", (json_list(chunk_ids),)
        )
        return {chunk for (chunk,) in rows}

    def chunk_ids(self, lanes: Sequence[int]) -> list[str]:
        """Return the ids of the stored chunks of these sessions."""
        rows = read_all(
            self._connection,
            "chunk.id, chunk.number",
            "FROM passage CROSS JOIN chunk_payload ON chunk_payload.seq = passage.seq "
            f"CROSS JOIN chunk ON chunk.number = chunk_payload.chunk AND {_STORED} "
            f"WHERE passage.lane {_IN}",
            json_list(lanes),
        )
        return list(dict.fromkeys(found for found, _ in rows))

    def passages(
        self,
        lanes: Sequence[int],
        matched: Sequence[int] = (),
        *,
        chunks: Sequence[str] = (),
        latest: int = LANE_PAYLOADS,
    ) -> list[FoundPassage]:
        """Return the passages of sessions, in order. Of a long session: the latest and the matches.

        Args:
            lanes: The lanes of the sessions.
            matched: Sequence numbers from `find`.
            chunks: Ids of chunks whose passages match too.
            latest: The most passages of a session, besides the matches.
        """
        rows = self._latest(list(dict.fromkeys(lanes)), latest)
        known = {row[0] for row in rows}
        if chunks:
            matched = [*matched, *self._seqs_of(chunks)]
        if missing := [seq for seq in matched if seq not in known]:
            found = PASSAGES.format(f"passage.seq {_IN}")
            rows += read_all(
                self._connection, _COLUMNS, f"FROM ({found}) AS found", json_list(missing)
            )
        rows.sort(key=itemgetter(0))
        return list(map(FoundPassage._make, rows))

    def parts(self, lanes: Sequence[int]) -> list[Part]:
        """Return the payloads of sessions with their chunks, in order. Of a long session, the latest."""
        rows = self._latest_parts(list(dict.fromkeys(lanes)), LANE_PAYLOADS)
        rows.sort(key=itemgetter(0))
        return list(map(Part._make, rows))

    def _latest(self, lanes: Sequence[int], most: int) -> list[Any]:
        """Return the rows of the latest passages of each session."""
        found = PASSAGES.format(f"passage.seq IN ({_LATEST})")
        return read_all(self._connection, _COLUMNS, f"FROM ({found})", json_list(lanes), most)

    def _latest_parts(self, lanes: Sequence[int], most: int) -> list[Any]:
        """Return the rows of the latest parts of each session."""
        found = PARTS.format(f"passage.seq IN ({_LATEST})")
        rows = read_all(self._connection, _PART_COLUMNS, f"FROM ({found})", json_list(lanes), most)
        for row in rows:
            row[-2:] = (None if at is None else float(at) for at in row[-2:])
        return rows

    def _seqs_of(self, chunk_ids: Sequence[str]) -> list[int]:
        rows = read_all(
            self._connection,
            "chunk_payload.seq, chunk.number",
            "FROM chunk CROSS JOIN chunk_payload ON chunk_payload.chunk = chunk.number "
            f"WHERE chunk.id {_IN}",
            json_list(chunk_ids),
        )
        return [seq for seq, _ in rows]

    def chunks(self, ids: Sequence[str]) -> list[Chunk]:
        """Return stored chunks with text and metadata, in any order."""
        return read_chunks(self._connection, json_list(ids), _STORED)

    def waiting(self, seqs: Sequence[int]) -> dict[int, Chunk]:
        """Return payloads that are not in a stored chunk yet, each as a separate chunk."""
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
        """Return the owners of sessions that only one person used."""
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
        """Return the known sessions of these lanes, with the totals of their payloads."""
        rows = self._connection.execute(
            "SELECT lane, product, session, first, last, payloads, actions FROM visit "
            f"WHERE lane {_IN}",
            (json_list(lanes),),
        )
        return {row[0]: Visit(*row) for row in rows}

    def _scalar(self, sql: str, *parameters: Any) -> int:
        return int(self._connection.execute(sql, parameters).fetchone()[0])


_LANES: Final = ("session_id", "user_id", "conversation_id")
"""Conditions that usually few sessions meet."""
_STORED_IN: Final = (
    "FROM passage LEFT JOIN chunk_payload ON chunk_payload.seq = passage.seq "
    f"LEFT JOIN chunk ON chunk.number = chunk_payload.chunk AND {_STORED}"
)
PASSAGES: Final = (
    "SELECT passage.seq, passage.lane, passage.text, chunk.id AS chunk, passage.started, "
    f"passage.ended, chunk.state IS {ChunkState.RETIRED:d} AS retired {_STORED_IN} WHERE {{}}"
)
PARTS: Final = (
    "SELECT passage.seq, passage.lane, chunk.id AS chunk, chunk.user, chunk.conversation, "
    f"chunk.started, chunk.ended {_STORED_IN} WHERE {{}}"
)
_LATEST: Final = (
    "SELECT own.seq FROM json_each(?) AS given CROSS JOIN passage AS own ON own.seq IN "
    "(SELECT seq FROM passage AS latest WHERE latest.lane = given.value "
    "ORDER BY latest.seq DESC LIMIT ?)"
)
_COLUMNS: Final = "seq, lane, text, chunk, started, ended, retired"
_PART_COLUMNS: Final = (
    f"seq, lane, chunk, user, conversation, {exact_real('started')}, {exact_real('ended')}"
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


def _rare(counts: Mapping[str, int], common: float, most_matches: int) -> list[str]:
    """Return the terms that select candidates: the rarest first, without the common ones."""
    there = sorted((term for term in counts if counts[term]), key=counts.__getitem__)
    rare = [term for term in there if counts[term] <= common]
    if not rare:
        return there[:_LEAST_WORDS]
    matches = accumulate(counts[term] for term in rare)
    chosen = [term for term, most in zip(rare, matches, strict=True) if most <= most_matches]
    return chosen or rare[:1]


def visits_where(conditions: Sequence[Condition]) -> tuple[str, list[Any]]:
    """SQL conditions on `visit`, with parameters. Conditions that need a passage are left out."""
    return _where(conditions, _VISIT_TERMS)


def passages_where(conditions: Sequence[Condition]) -> tuple[str, list[Any]]:
    """SQL conditions on `passage` and `visit`, with parameters."""
    return _where(conditions, _VISIT_TERMS | _PASSAGE_TERMS)


def _where(
    conditions: Sequence[Condition], terms: Mapping[tuple[str, str], str]
) -> tuple[str, list[Any]]:
    found = [(terms[key, op], value) for key, op, value in conditions if (key, op) in terms]
    return " AND ".join(term for term, _ in found) or "TRUE", [value for _, value in found]

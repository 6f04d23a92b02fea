"""The catalog's tables: chunks, their payloads, sessions, deletions, notes.

All functions block. They run in a transaction on the writer thread.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, Literal

import msgspec

from autoplay_rag.content.chunks import Chunk
from autoplay_rag.content.identity import People, changes_hands
from autoplay_rag.content.keys import chunk_id, session_lane
from autoplay_rag.journal.base import Notes, Outdated, PlannedChunk, QueuedChunk, Session
from autoplay_rag.journal.claims import ClaimTables
from autoplay_rag.journal.database import JournalDatabase
from autoplay_rag.journal.fulltext import FullTextTables
from autoplay_rag.journal.outbox import add_to_outbox
from autoplay_rag.journal.rows import (
    Connection,
    Database,
    JsonList,
    delete_in,
    exact_real,
    exact_text,
    insert,
    json_list,
    lossy_text,
    read_all,
)
from autoplay_rag.journal.schema import ChunkState, PayloadState
from autoplay_rag.payloads import ActionsPayload

__all__ = ["CHUNK_COLUMNS", "CatalogTables", "as_key", "read_chunk", "read_chunks"]

_COLUMNS = (
    "number", "id", "lane", "product", "session", "user", "conversation", "kind", "started",
    "ended", "forwarded", "actions", "text", "metadata", "model", "state", "linked",
)  # fmt: skip
_IN_COLUMNS = {
    "product_id": "product",
    "session_id": "session",
    "user_id": "user",
    "conversation_id": "conversation",
    "kind": "kind",
    "started_at": "started",
    "ended_at": "ended",
    "forwarded_at": "forwarded",
    "action_count": "actions",
}
"""Metadata that has a column of its own, by its column."""
CHUNK_COLUMNS = f"id, text, metadata, {', '.join(_IN_COLUMNS.values())}"
_REALS = ("started", "ended", "forwarded")
_EXACT_COLUMNS = ", ".join(
    [
        "id",
        exact_text("text"),
        "metadata",
        *(exact_real(name) if name in _REALS else name for name in _IN_COLUMNS.values()),
    ]
)
_INSERT_SESSION = (
    "visit (lane, product, session, user, conversation, email, ambiguous, first, last, seen)"
)
_UPDATE_SESSION = (
    "ON CONFLICT (lane) DO UPDATE SET product = excluded.product, session = excluded.session, "
    "{people}, ambiguous = max(visit.ambiguous, excluded.ambiguous), "
    # SQLite's `min` and `max` return NULL if one argument is NULL.
    "first = coalesce(min(visit.first, excluded.first), visit.first, excluded.first), "
    "last = coalesce(max(visit.last, excluded.last), visit.last, excluded.last), "
    "seen = excluded.seen"
)
_NEW_PEOPLE = "user = excluded.user, conversation = excluded.conversation, email = excluded.email"
_KNOWN_PEOPLE = (
    "conversation = CASE WHEN visit.user IS NULL OR visit.user = excluded.user "
    "THEN coalesce(visit.conversation, excluded.conversation) ELSE visit.conversation END, "
    "email = CASE WHEN visit.user IS NULL OR visit.user = excluded.user "
    "THEN coalesce(visit.email, excluded.email) ELSE visit.email END, "
    "user = coalesce(visit.user, excluded.user)"
)
"""The people in the journal are newer than those in the chunks of a store, so they are kept."""
_COLUMN = ("user", "conversation", "metadata")
_LINKED = (
    "user = ?",
    "conversation = ?",
    "metadata = json_set(coalesce(metadata, '{}'), '$.email', ?)",
)
_MISSING = ("user IS NULL", "conversation IS NULL", "metadata ->> '$.email' IS NULL")
_REMOVED = ("NULL", "NULL", "json_remove(metadata, '$.email')")
"""How a field of `People`, in their order, is set, missing and removed in the table `chunk`."""
_KEY_DIGITS = 32
_MOST_PARTS = 64
"""The most chunks of one payload that are recognised in a store filled by an older format."""
_MEMORY_SESSIONS = 50_000
"""The most sessions that a journal in memory keeps."""


class CatalogTables:
    """The operations on the catalog's tables.

    Args:
        file: The journal's file.
        fulltext: The full-text index in the same file.
    """

    def __init__(self, file: JournalDatabase, fulltext: FullTextTables | None = None) -> None:
        self.file = file
        self.fulltext = fulltext or FullTextTables(file)
        self.claims = ClaimTables(file)
        self._connection = file.connection
        self._next_number = 1 + file.scalar("SELECT coalesce(max(number), 0) FROM chunk")

    # -- chunks -------------------------------------------------------------------------------

    def insert_planned(
        self, plans: Sequence[tuple[Sequence[PlannedChunk], int]]
    ) -> list[list[int]]:
        """Add the chunks of plans, and return the numbers of each plan's chunks.

        A chunk with a known id replaces the old one and keeps its number.

        Args:
            plans: The chunks and the lane of each plan. No two have a chunk in common.
        """
        # All plans at once: a statement takes a request to the server where that is another process.
        ids = [planned.chunk.id for chunks, _ in plans for planned in chunks]
        known = self.numbers(ids)
        numbers = [
            [known.get(planned.chunk.id) or self._take_number() for planned in chunks]
            for chunks, _ in plans
        ]
        delete_in(self._connection, "chunk_payload", "chunk", list(known.values()))
        placed = [
            (number, planned, lane)
            for (chunks, lane), given in zip(plans, numbers, strict=True)
            for number, planned in zip(given, chunks, strict=True)
        ]
        self._insert(
            [
                (
                    *self._row(number, planned.chunk, lane, None, ChunkState.PLANNED)[:-1],
                    planned.linked,
                )
                for number, planned, lane in placed
            ]
        )
        insert(
            self._connection,
            "chunk_payload (seq, chunk)",
            [(seq, number) for number, planned, _ in placed for seq in planned.seqs],
            verb="INSERT OR IGNORE",
        )
        return numbers

    def planned(self, numbers: Sequence[int]) -> list[PlannedChunk]:
        """Return the chunks of a plan, in order. Their `tokens` are 0, because they are not kept."""
        given = json_list(numbers)
        seqs: dict[int, list[int]] = {}
        for number, seq in self._connection.execute(
            "SELECT chunk, seq FROM chunk_payload WHERE chunk IN (SELECT value FROM json_each(?)) "
            "ORDER BY seq",
            (given,),
        ):
            seqs.setdefault(number, []).append(seq)
        chunks = dict(self._chunks("WHERE number IN (SELECT value FROM json_each(?))", given))
        linked = dict(
            self._connection.execute(
                "SELECT number, linked FROM chunk WHERE number IN (SELECT value FROM json_each(?))",
                (given,),
            )
        )
        return [
            PlannedChunk(chunks[number], tuple(seqs.get(number, ())), 0, linked[number])
            for number in numbers
            if number in chunks
        ]

    def set_stored(self, numbers: Sequence[int], model: str) -> None:
        """Mark chunks as stored, and drop their pending deletions."""
        given = json_list(numbers)
        self._connection.execute(
            "UPDATE chunk SET state = ?, model = ? WHERE number IN (SELECT value FROM json_each(?))",
            (ChunkState.STORED, self._model(model), given),
        )
        if self._has_deletions():
            self._connection.execute(
                "DELETE FROM deletion WHERE chunk IN (SELECT id FROM chunk WHERE number IN "
                "(SELECT value FROM json_each(?)))",
                (given,),
            )

    def remove(self, numbers: Sequence[int], reason: str | None = None) -> list[str]:
        """Delete chunks from the catalog.

        Args:
            numbers: The chunks' numbers.
            reason: Why they must also be deleted from the store; their ids go into the deletion
                outbox. None leaves the store as it is.

        Returns:
            The ids added to the outbox.
        """
        ids: list[str] = []
        if reason is not None and numbers:
            ids = [found for _, found in self._ids(numbers)]
            add_to_outbox(self._connection, ids, reason, self.file.clock())
        delete_in(self._connection, "chunk_payload", "chunk", numbers)
        self._connection.execute(
            "DELETE FROM outdated WHERE chunk IN (SELECT id FROM chunk WHERE number IN "
            "(SELECT value FROM json_each(?)))",
            (json_list(numbers),),
        )
        delete_in(self._connection, "chunk", "number", numbers)
        return ids

    def numbers_of(self, seqs: Sequence[int]) -> list[int]:
        """Return the numbers of the chunks that hold any of these payloads."""
        return [
            number
            for (number,) in self._connection.execute(
                "SELECT DISTINCT chunk FROM chunk_payload "
                "WHERE seq IN (SELECT value FROM json_each(?))",
                (json_list(seqs),),
            )
        ]

    def seqs_of(self, number: int) -> list[int]:
        """Return the sequence numbers of a chunk's payloads."""
        return [
            seq
            for (seq,) in self._connection.execute(
                "SELECT seq FROM chunk_payload WHERE chunk = ?", (number,)
            )
        ]

    def count(self) -> int:
        """Return the number of chunks, without those that are retired."""
        retired = f"SELECT count(*) FROM chunk WHERE state = {ChunkState.RETIRED:d}"
        return self.file.scalar("SELECT count(*) FROM chunk") - self.file.scalar(retired)

    def sample(self, count: int) -> list[str]:
        """Return ids of stored chunks: one from each of `count` equal ranges of numbers."""
        first, last = self._connection.execute(
            # Two subqueries: for `min` and `max` in one SELECT, SQLite reads the whole table.
            "SELECT (SELECT min(number) FROM chunk), (SELECT max(number) FROM chunk)"
        ).fetchone()
        if first is None:
            return []
        step = -(-(last - first + 1) // max(1, count))  # rounded up: no more than `count`
        found = (
            # A random offset: equal distances could match a pattern in the missing chunks.
            self._stored_in(start + random.randrange(step), start + step)  # noqa: S311
            or self._stored_in(start, start + step)
            for start in range(first, last + 1, step)
        )
        return [one for one in found if one is not None]

    def _stored_in(self, start: int, end: int) -> str | None:
        """Return the id of the first stored chunk in a range of numbers."""
        row = self._connection.execute(
            "SELECT id FROM chunk WHERE number >= ? AND number < ? AND state = ? "
            "ORDER BY number LIMIT 1",
            (start, end, ChunkState.STORED),
        ).fetchone()
        return row[0] if row else None

    # -- stored again -------------------------------------------------------------------------

    def queue_all(self) -> int:
        """Queue every stored chunk with a known text, and return the number of queued chunks."""
        self._connection.execute(
            "UPDATE chunk SET state = ? WHERE state = ? AND text IS NOT NULL",
            (ChunkState.QUEUED, ChunkState.STORED),
        )
        return self.count_queued()

    def queue(self, numbers: Sequence[int]) -> int:
        """Queue those of these chunks that are still stored, and return how many."""
        return self._connection.execute(
            "UPDATE chunk SET state = ? WHERE number IN (SELECT value FROM json_each(?)) "
            "AND state = ? AND text IS NOT NULL",
            (ChunkState.QUEUED, json_list(numbers), ChunkState.STORED),
        ).rowcount

    def queued(self, after: int, limit: int, own: bool = False) -> list[QueuedChunk]:
        """Return queued chunks, ordered by number. For `own` see `Catalog`."""
        condition, given = self._own("chunk") if own else ("", ())
        found = self._chunks(
            f"WHERE state = {ChunkState.QUEUED:d} AND number > ?{condition} ORDER BY number LIMIT ?",
            after,
            *given,
            limit,
        )
        return [QueuedChunk(number, chunk) for number, chunk in found]

    def still_queued(self, numbers: Sequence[int]) -> list[int]:
        """Return those of these numbers that are still queued."""
        rows = self._connection.execute(
            f"SELECT number FROM chunk WHERE state = {ChunkState.QUEUED:d} "
            "AND number IN (SELECT value FROM json_each(?))",
            (json_list(numbers),),
        )
        return [number for (number,) in rows]

    def count_queued(self, own: bool = False) -> int:
        """Return the number of queued chunks. For `own` see `Catalog`."""
        condition, given = self._own("chunk") if own else ("", ())
        return self.file.scalar(
            f"SELECT count(*) FROM chunk WHERE state = {ChunkState.QUEUED:d}{condition}", *given
        )

    def _own(self, table: Literal["chunk", "deletion"]) -> tuple[str, tuple[Any, ...]]:  # noqa: ARG002
        """Return a condition for the rows of a table that this process works on.

        A file has one process, which works on all.
        """
        return "", ()

    # -- deletions ----------------------------------------------------------------------------

    def deletions(self, limit: int, planned: bool = True, own: bool = False) -> list[str]:
        """Return ids in the deletion outbox, oldest first. See `Catalog`."""
        condition, given = self._own("deletion") if own else ("", ())
        rows = self._connection.execute(
            "SELECT chunk FROM deletion WHERE (? OR NOT EXISTS "
            f"(SELECT 1 FROM chunk WHERE id = deletion.chunk AND state <> ?)){condition} "
            "ORDER BY at LIMIT ?",
            (planned, ChunkState.RETIRED, *given, limit),
        )
        return [found for (found,) in rows]

    def deleted(self, ids: Sequence[str]) -> None:
        """Remove confirmed ids from the outbox."""
        delete_in(self._connection, "deletion", "chunk", ids)

    def delete_unknown(self, ids: Sequence[str], reason: str) -> list[str]:
        """Add unknown ids to the deletion outbox, and return them."""
        known = self.numbers(ids)
        unknown = [one for one in dict.fromkeys(ids) if one not in known]
        add_to_outbox(self._connection, unknown, reason, self.file.clock())
        return unknown

    def _in_outbox(self, ids: Sequence[str]) -> set[str]:
        rows = self._connection.execute(
            "SELECT chunk FROM deletion WHERE chunk IN (SELECT value FROM json_each(?))",
            (json_list(ids),),
        )
        return {found for (found,) in rows}

    def _has_deletions(self) -> bool:
        return bool(self.file.scalar("SELECT EXISTS (SELECT 1 FROM deletion)"))

    # -- from a store -------------------------------------------------------------------------

    def missing_texts(self) -> int:
        """Return the number of chunks without text."""
        return self.file.scalar("SELECT count(*) FROM chunk WHERE text IS NULL")

    def fill(self, chunks: Sequence[Chunk]) -> int:
        """Add texts and metadata to chunks without text, and return how many those were.

        If a payload fills several chunks, an older format recorded only the first. The others are
        added once the first has its text.
        """
        missing = {
            found: (number, model, state)
            for number, found, model, state in read_all(
                self._connection,
                "number, id, model, state",
                "FROM chunk WHERE text IS NULL AND id IN (SELECT value FROM json_each(?))",
                json_list(chunk.id for chunk in chunks),
            )
        }
        rows = []
        sessions = []
        for chunk in chunks:
            if chunk.id in missing:
                number, model, state = missing[chunk.id]
                lane = _lane_of(chunk)
                rows.append(self._row(number, chunk, lane, model, state))
                sessions += _session_of(chunk, lane)
        self._insert(rows)
        self._add_sessions(sessions)
        self._add_parts(chunks)
        self.fulltext.reindex()
        return len(rows)

    def _add_parts(self, chunks: Sequence[Chunk]) -> None:
        known = self.numbers(chunk.id for chunk in chunks)
        rows, links = [], []
        for chunk in chunks:
            lane = _lane_of(chunk)
            if lane is None or chunk.id in known or chunk.metadata.get("kind") != "actions":
                continue
            found = self._connection.execute(
                "SELECT payload.seq, hex(key), model FROM chunk JOIN chunk_payload ON chunk = number "
                "JOIN payload USING (seq) WHERE chunk.lane = ? AND chunk.state <> ? "
                "AND chunk.kind = 'actions'",
                (lane, ChunkState.PLANNED),
            )
            for seq, key, model in found.fetchall():
                if chunk.id in _later_parts(chunk, key.lower()):
                    number = self._take_number()
                    rows.append(self._row(number, chunk, lane, model, ChunkState.STORED))
                    links.append((seq, number))
                    break
        self._insert(rows)
        insert(self._connection, "chunk_payload (seq, chunk)", links)

    def adopt(self, chunks: Sequence[Chunk], model: str) -> int:
        """Add chunks of a store to the catalog, and return how many were unknown.

        Their payloads are unknown. Each chunk gets a placeholder for the payload it begins with.
        The placeholder's key is the chunk's id.
        """
        ids = [chunk.id for chunk in chunks]
        # Chunks with a pending deletion are not adopted.
        known = self.numbers(ids).keys() | self._in_outbox(ids)
        fresh = {chunk.id: chunk for chunk in chunks if chunk.id not in known}
        if not fresh:
            return 0
        seq = min(0, self.file.scalar("SELECT coalesce(min(seq), 0) FROM payload"))
        number_of_model = self._model(model)
        rows, payloads, links, sessions = [], [], [], []
        for chunk in fresh.values():
            number, lane = self._take_number(), _lane_of(chunk)
            rows.append(self._row(number, chunk, lane, number_of_model, ChunkState.STORED))
            sessions += _session_of(chunk, lane)
            if (key := as_key(chunk.id)) is None:
                continue
            seq -= 1
            at = chunk.metadata.get("forwarded_at") or self.file.clock()
            payloads.append(
                (seq, key, lane or seq, chunk.metadata.get("kind"), at, PayloadState.ADOPTED, 0)
            )
            links.append((seq, number))
        self._insert(rows)
        insert(
            self._connection,
            "payload (seq, key, lane, kind, at, state, size)",
            payloads,
            verb="INSERT OR IGNORE",
        )
        insert(self._connection, "chunk_payload (seq, chunk)", links, verb="INSERT OR IGNORE")
        self._add_sessions(sessions)
        self.file.set_meta("adopted", 1)
        self.fulltext.reindex()
        return len(rows)

    # -- sessions -----------------------------------------------------------------------------

    def sessions(self, lanes: Sequence[int]) -> dict[int, Session]:
        """Return the known sessions of these lanes."""
        rows = read_all(
            self._connection,
            "lane, product, session, user, conversation, email, ambiguous, first, last",
            "FROM visit WHERE seen IS NOT NULL AND lane IN (SELECT value FROM json_each(?))",
            json_list(lanes),
        )
        return {
            lane: Session(
                lane,
                product,
                session,
                People(user, chat, email),
                bool(ambiguous),
                first or 0.0,
                last or 0.0,
            )
            for lane, product, session, user, chat, email, ambiguous, first, last in rows
        }

    def set_sessions(self, sessions: Sequence[Session]) -> bool:
        """Save the people of sessions, and extend the sessions' active time.

        Stored chunks of a session get its first people. They lose them again once a second person
        uses the session, since nobody can say to whom they belong.

        Returns:
            Whether the metadata of stored chunks changed.
        """
        before = self.sessions([one.lane for one in sessions])
        self._save_sessions(sessions, _NEW_PEOPLE)
        changed = False
        for one in sessions:
            known = before.get(one.lane)
            if known is None:
                continue
            if one.ambiguous:
                changed |= not known.ambiguous and self._unlink(one.lane)
            elif one.people != known.people:
                changed |= self._link(one.lane, known.people, one.people)
        return changed

    def _link(self, lane: int, before: People, people: People) -> bool:
        changed = False
        for bit, column in enumerate(_LINKED):
            if before[bit] is None and people[bit] is not None:
                changed |= self._change_chunks(
                    f"{column}, linked = linked | {1 << bit}",
                    f"lane = ? AND {_MISSING[bit]}",
                    _without_nul(people[bit]),
                    lane,
                )
        return changed

    def _unlink(self, lane: int) -> bool:
        taken_back = ", ".join(
            f"{_COLUMN[bit]} = CASE WHEN (linked & {1 << bit}) <> 0 THEN {_REMOVED[bit]} "
            f"ELSE {_COLUMN[bit]} END"
            for bit in range(len(_LINKED))
        )
        return self._change_chunks(f"{taken_back}, linked = 0", "lane = ? AND linked <> 0", lane)

    def _change_chunks(self, assignments: str, where: str, *parameters: Any) -> bool:
        """Change stored chunks, and note that the store has to follow."""
        rows = self._connection.execute(
            f"UPDATE chunk SET {assignments} WHERE {where} AND state <> {ChunkState.PLANNED:d} "
            "RETURNING id",
            parameters,
        ).fetchall()
        insert(
            self._connection,
            "outdated (chunk, version)",
            [(chunk, 1) for (chunk,) in rows],
            after="ON CONFLICT (chunk) DO UPDATE SET version = outdated.version + 1",
        )
        return bool(rows)

    # -- metadata that the store has to change ------------------------------------------------

    def outdated(self, limit: int, own: bool = False) -> list[Outdated]:
        """Return stored chunks whose metadata the store has to change. For `own` see `Catalog`."""
        condition, given = self._own("chunk") if own else ("", ())
        rows = self._connection.execute(
            "SELECT id, version, user, conversation, metadata ->> '$.email' FROM outdated "
            f"JOIN chunk ON chunk.id = outdated.chunk WHERE true{condition} LIMIT ?",
            (*given, limit),
        )
        return [
            Outdated(chunk, version, dict(zip(People._fields, people, strict=True)))
            for chunk, version, *people in rows
        ]

    def updated(self, done: Sequence[Outdated]) -> None:
        """Take changes that the store has made out of the outbox, unless a newer one came."""
        self._connection.executemany(
            "DELETE FROM outdated WHERE chunk = ? AND version = ?",
            [(one.id, one.version) for one in done],
        )

    def _add_sessions(self, sessions: Sequence[Session]) -> None:
        """Save the people of sessions that the journal does not know yet."""
        merged: dict[int, Session] = {}
        for one in sorted(sessions, key=attrgetter("last")):
            before = merged.get(one.lane)
            merged[one.lane] = _merged(before, one) if before else one
        self._save_sessions(list(merged.values()), _KNOWN_PEOPLE)

    def _save_sessions(self, sessions: Sequence[Session], people: str) -> None:
        now = self.file.clock()
        insert(
            self._connection,
            _INSERT_SESSION,
            [
                (
                    one.lane,
                    _without_nul(one.product_id),
                    _without_nul(one.session_id),
                    _without_nul(one.people.user_id),
                    _without_nul(one.people.conversation_id),
                    _without_nul(one.people.email),
                    one.ambiguous,
                    one.first or None,
                    one.last or None,
                    now,
                )
                for one in sessions
            ],
            after=_UPDATE_SESSION.format(people=people),
        )

    # -- notes --------------------------------------------------------------------------------

    def notes(self) -> Notes:
        """Return the journal's notes about itself and its store."""
        meta = self.file.meta
        return Notes(
            journal_id=meta("journal_id"),
            store_id=meta("store_id") or "",
            store_batch=meta("store_batch") or 0,
            model=meta("model") or "",
            adopted=bool(meta("adopted")),
        )

    def note_store(self, store_id: str, batch: int, model: str) -> None:
        """Save the store's id, the batch it confirmed, and its model."""
        for name, value in (("store_id", store_id), ("store_batch", batch), ("model", model)):
            if self.file.meta(name) != value:
                self.file.set_meta(name, value)

    # -- expiry -------------------------------------------------------------------------------

    def drop_adopted(self, seqs: Sequence[int]) -> None:
        """Delete placeholders of adopted chunks. A repeated delivery is then stored."""
        self._connection.execute(
            "DELETE FROM payload WHERE state = ? AND seq IN (SELECT value FROM json_each(?))",
            (PayloadState.ADOPTED, json_list(seqs)),
        )

    def drop_stored(self, seqs: Sequence[int]) -> None:
        """Delete stored payloads, and chunks that hold no other payload."""
        numbers = self.numbers_of(seqs)
        self.fulltext.remove(seqs)
        delete_in(self._connection, "chunk_payload", "seq", seqs)
        delete_in(self._connection, "payload", "seq", seqs)
        self._connection.execute(
            "DELETE FROM chunk WHERE number IN (SELECT value FROM json_each(?)) AND NOT EXISTS "
            "(SELECT 1 FROM chunk_payload WHERE chunk = chunk.number)",
            (json_list(numbers),),
        )

    def drop_sessions(self, seen_before: float) -> None:
        """Delete sessions last seen before a time, and the oldest above the limit."""
        # Sessions with payloads stay: as many as there are payloads, which are bounded too.
        gone = "seen IS NOT NULL AND payloads = 0"
        self._connection.execute(f"DELETE FROM visit WHERE {gone} AND seen < ?", (seen_before,))
        over = self.file.scalar(f"SELECT count(*) FROM visit WHERE {gone}") - _MEMORY_SESSIONS
        if over > 0:
            self._connection.execute(
                "DELETE FROM visit WHERE lane IN "
                f"(SELECT lane FROM visit WHERE {gone} ORDER BY seen LIMIT ?)",
                (over,),
            )

    # -- helpers ------------------------------------------------------------------------------

    def _take_number(self) -> int:
        self._next_number += 1
        return self._next_number - 1

    def numbers(self, ids: Iterable[str]) -> dict[str, int]:
        """Return the numbers of these chunks, where they are known."""
        rows = read_all(
            self._connection,
            "id, number",
            "FROM chunk WHERE id IN (SELECT value FROM json_each(?))",
            json_list(ids),
        )
        return {found: number for found, number in rows}  # noqa: C416 - rows are lists

    def _ids(self, numbers: Sequence[int]) -> list[tuple[int, str]]:
        return self._connection.execute(
            "SELECT number, id FROM chunk WHERE number IN (SELECT value FROM json_each(?))",
            (json_list(numbers),),
        ).fetchall()

    def _model(self, name: str) -> int:
        self._connection.execute("INSERT OR IGNORE INTO model (name) VALUES (?)", (name,))
        return self.file.scalar("SELECT number FROM model WHERE name = ?", name)

    def _insert(self, rows: Sequence[Sequence[Any]]) -> None:
        into = f"chunk ({', '.join(_COLUMNS)})"
        insert(self._connection, into, rows, verb="INSERT OR REPLACE")

    def _row(
        self, number: int, chunk: Chunk, lane: int | None, model: int | None, state: int
    ) -> tuple[Any, ...]:
        metadata = chunk.metadata
        rest = {key: value for key, value in metadata.items() if key not in _IN_COLUMNS}
        return (
            number,
            chunk.id,
            lane,
            *(metadata.get(key) for key in _IN_COLUMNS),
            chunk.text,
            msgspec.json.encode(rest).decode() if rest else None,
            model,
            int(state),
            0,
        )

    def _chunks(self, rest: str, *parameters: Any) -> list[tuple[int, Chunk]]:
        rows = self._connection.execute(
            f"SELECT number, {CHUNK_COLUMNS} FROM chunk {rest}",
            parameters,
        )
        return [(number, read_chunk(*values)) for number, *values in rows]


def as_key(chunk_id: str) -> bytes | None:
    """Return a chunk's id as a payload key; None if this package did not make the id."""
    if len(chunk_id) != _KEY_DIGITS:
        return None
    try:
        return bytes.fromhex(chunk_id)
    except ValueError:
        return None


def read_chunk(id: str, text: str | None, rest: str | None, *columns: Any) -> Chunk:
    """A chunk from the values of `CHUNK_COLUMNS`."""
    found = {
        key: value for key, value in zip(_IN_COLUMNS, columns, strict=True) if value is not None
    }
    metadata: Mapping[str, Any] = found | (msgspec.json.decode(rest) if rest else {})
    return Chunk(id, text or "", metadata)


def read_chunks(connection: Connection, ids: JsonList, also: str) -> list[Chunk]:
    """Read the chunks with these ids in one step, in any order.

    Args:
        connection: The database.
        ids: The ids.
        also: Another condition.
    """
    rest = f"FROM chunk WHERE id IN (SELECT value FROM json_each(?)) AND {also}"
    if isinstance(connection, Database):
        return [
            read_chunk(*row) for row in connection.execute(f"SELECT {CHUNK_COLUMNS} {rest}", (ids,))
        ]
    return [
        read_chunk(
            chunk_id,
            text and lossy_text(bytes.fromhex(text)),
            metadata,
            *(
                float(value) if name in _REALS and value is not None else value
                for name, value in zip(_IN_COLUMNS.values(), columns, strict=True)
            ),
        )
        for chunk_id, text, metadata, *columns in read_all(connection, _EXACT_COLUMNS, rest, ids)
    ]


def _lane_of(chunk: Chunk) -> int | None:
    session = chunk.metadata.get("session_id")
    if session is None:
        return None
    return session_lane(str(chunk.metadata.get("product_id", "")), str(session))


def _later_parts(chunk: Chunk, key: str) -> Iterator[str]:
    """Yield possible ids of the later chunks of a payload in the session of `chunk`."""
    metadata = chunk.metadata
    payload = ActionsPayload(str(metadata.get("product_id", "")), str(metadata["session_id"]))
    return (chunk_id(payload, key, part) for part in range(1, _MOST_PARTS))


def _merged(before: Session, after: Session) -> Session:
    """Merge the session data of two chunks of one session, given in order of time."""
    hands_over = changes_hands(before.people.user_id, after.people.user_id)
    people = after.people
    if not hands_over:
        people = People(*(new or old for old, new in zip(before.people, people, strict=True)))
    return after._replace(
        people=people,
        ambiguous=before.ambiguous or hands_over,
        first=min((at for at in (before.first, after.first) if at), default=0.0),
    )


def _session_of(chunk: Chunk, lane: int | None) -> list[Session]:
    metadata = chunk.metadata
    if lane is None:
        return []
    people = People(*(_text(metadata.get(name)) for name in People._fields))
    if not any(people):
        return []
    started, ended = metadata.get("started_at"), metadata.get("ended_at")
    return [
        Session(
            lane,
            str(metadata.get("product_id", "")),
            str(metadata["session_id"]),
            people,
            ambiguous=False,
            first=float(started or 0.0),
            last=float(ended or 0.0),
        )
    ]


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _without_nul(value: str | None) -> str | None:
    # `read_all` truncates a text at its first NUL.
    return value.replace("\0", "\ufffd") if value else value

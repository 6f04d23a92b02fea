"""The queue's tables: payloads, plans, dead letters, requests of other processes.

All functions block. They run in a transaction on the writer thread. Planning renders, decodes and
tokenises payloads in a thread of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from autoplay_rag.content.passages import passage_of
from autoplay_rag.journal.base import (
    Acknowledged,
    Acknowledgement,
    Claim,
    DeadLetter,
    Durability,
    Entry,
    Health,
    IndexEntry,
    Known,
    NewPlans,
    Outcome,
    Plan,
    Prepared,
    Session,
    Task,
    Waiting,
)
from autoplay_rag.journal.bodies import decoded, pack, unpack
from autoplay_rag.journal.catalog import CatalogTables, as_key
from autoplay_rag.journal.database import JournalDatabase
from autoplay_rag.journal.deleting import compact
from autoplay_rag.journal.forgetting import ErasureTables
from autoplay_rag.journal.outbox import FORGOTTEN
from autoplay_rag.journal.register import Register
from autoplay_rag.journal.rows import Connection, delete_in, insert, json_list, read_all
from autoplay_rag.journal.schema import PayloadState
from autoplay_rag.journal.tasks import (
    ANSWER,
    KEEP_ANSWERS_SECONDS,
    LETTER_ACTIONS,
    decode_task,
)
from autoplay_rag.payloads import ActionsPayload, Payload, SummaryPayload

__all__ = ["FOLLOWED", "QueueTables", "first_since", "letters"]

_log = logging.getLogger(__name__)

_KEEP_KEYS_SECONDS: Final = 24 * 3600.0
"""How long the key of a discarded payload is kept; in memory also that of a stored payload."""
_KEEP_ACKNOWLEDGED_SECONDS: Final = 600.0
"""How long "full" durability keeps acknowledged plans, to store them again after a power loss."""
_MEMORY_PAYLOADS: Final = 100_000
"""The most stored payloads that a journal in memory keeps."""
_FEW_WAITING: Final = 20_000
_PART: Final = "part of a dead payload"
_GONE: Final = "left the catalog while it was stored again"
_INSERT_PAYLOAD: Final = (
    "payload (seq, key, lane, kind, at, actions, state, size, ended, error, body)"
)
_LETTER: Final = "seq, kind, session, error, ended, body"

FOLLOWED: Final = (
    f"body IS NOT NULL AND state IN ({PayloadState.WAITING:d}, {PayloadState.STORED:d})"
)
"""The SQL condition for payloads that `live` shows."""


class QueueTables:
    """The operations on the queue's tables.

    Args:
        file: The journal's file.
        catalog: The catalog in the same file.
        durability: See `IngestPipeline`.
        max_bytes: The most bytes of queued and dead payloads.
        keep_payloads: Whether the bodies of stored payloads are kept.
        replace_by_summaries: Whether summaries claim the actions they replace.
        model: The name of the embedder, saved with acknowledged chunks.
        register: Where requests to forget are registered as well.
    """

    _erasures_class = ErasureTables

    def __init__(
        self,
        file: JournalDatabase,
        catalog: CatalogTables,
        durability: Durability,
        *,
        max_bytes: int,
        keep_payloads: bool,
        replace_by_summaries: bool = True,
        model: str,
        register: Register | None = None,
    ) -> None:
        self.file = file
        self.catalog = catalog
        self.fulltext = catalog.fulltext
        # Other processes read the index of a server at once. In memory, nothing is written.
        self._indexes_later = file.alone and not file.in_memory
        self.erasures = self._erasures_class(file, catalog, register)
        self._connection = file.connection
        self._max_bytes = max_bytes
        self._keep_payloads = keep_payloads
        self._replace_by_summaries = replace_by_summaries
        self._keep_acknowledged = durability == "full" and not file.in_memory
        self.model = model

    # -- in -----------------------------------------------------------------------------------

    def prepare(self, entry: Entry) -> Prepared:
        """Return an entry's body and words in the form to be kept. Only a file's bodies are packed."""
        body = entry.body
        if body is not None and not self.file.in_memory:
            body = pack(body)
        try:
            # Dead letters too: a retry puts them back as they are.
            passage = passage_of(entry.payload) if entry.payload else None
        except Exception as error:  # noqa: BLE001 - a redacted payload may hold anything
            _log.error("a payload is kept, but not found by words: %s", type(error).__name__)
            passage = None
        return Prepared(body, passage)

    def number(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        """Return the entries with the sequence numbers that they are saved with: their own."""
        return entries

    def accept(
        self, entries: Sequence[Entry], prepared: Sequence[Prepared] | None = None
    ) -> list[Outcome]:
        """Add payloads to the queue, and return the outcome of each, in order.

        Args:
            entries: The submitted payloads.
            prepared: The result of `prepare` for each; None prepares them here.
        """
        if prepared is None:
            prepared = [self.prepare(entry) for entry in entries]
        if self.erasures.active and (
            refused := self.erasures.refused(entries, prepared, self.file.clock())
        ):
            self.file.counts["received"] += len(refused)
            self.file.counts["refused"] += len(refused)
            others = [
                pair for pair in zip(entries, prepared, strict=True) if pair[0].seq not in refused
            ]
            outcomes = iter(self._accept([one for one, _ in others], [kept for _, kept in others]))
            return ["refused" if one.seq in refused else next(outcomes) for one in entries]
        return self._accept(entries, prepared)

    def _accept(self, entries: Sequence[Entry], prepared: Sequence[Prepared]) -> list[Outcome]:
        now = self.file.clock()
        wanted = [entry for entry in entries if entry.is_kept]
        row_of = {
            entry.seq: _row(entry, kept.body, now)
            for entry, kept in zip(entries, prepared, strict=True)
            if entry.is_kept
        }
        size = sum(entry.size for entry in wanted)
        adopted = bool(self.file.meta("adopted"))
        fresh: set[int] | None = None
        if not adopted and self.file.counts["bytes"] + size <= self._max_bytes:
            fresh = self._insert_if_new(row_of)
        outcomes: list[Outcome] = []
        known = set() if fresh is not None else self._known(wanted, adopted=adopted)
        rows = []
        counts = self.file.counts
        for entry in entries:
            outcome: Outcome = entry.outcome
            if entry.is_kept:
                key = bytes.fromhex(entry.key)
                if fresh is not None:
                    if entry.seq not in fresh:
                        outcome = "duplicate"
                elif key in known or (adopted and as_key(entry.first_chunk) in known):
                    outcome = "duplicate"
                elif counts["bytes"] + entry.size > self._max_bytes:
                    outcome = "overflow"
                else:
                    known.add(key)
                    rows.append(row_of[entry.seq])
                if outcome == entry.outcome:
                    counts["bytes"] += entry.size
            outcomes.append(outcome)
            counts["received"] += 1
            counts["pending" if outcome == "accepted" else outcome] += 1
        insert(self._connection, _INSERT_PAYLOAD, rows)
        self._index(
            [
                IndexEntry(
                    entry.seq,
                    entry.lane,
                    entry.payload.product_id,
                    entry.payload.session_id,
                    kept.passage,
                )
                for entry, kept, outcome in zip(entries, prepared, outcomes, strict=True)
                if outcome in ("accepted", "dead")
                and entry.payload is not None
                and kept.passage is not None
            ]
        )
        self._add_claims(entries, outcomes, now)
        return outcomes

    def _index(self, entries: Sequence[IndexEntry]) -> None:
        if self._indexes_later:
            self.fulltext.buffer.add(entries)
        else:
            self.fulltext.add(entries)

    def _add_claims(
        self, entries: Sequence[Entry], outcomes: Sequence[Outcome], now: float
    ) -> None:
        """Save what accepted summaries claim."""
        if not self._replace_by_summaries:
            return
        self.catalog.claims.add(
            [
                Claim(entry.seq, entry.lane, payload.forwarded_at or now, payload.replaces)
                for entry, outcome in zip(entries, outcomes, strict=True)
                if outcome == "accepted"
                and isinstance(payload := entry.payload, SummaryPayload)
                and payload.session_id
                and payload.replaces > 0
            ]
        )

    def _insert_if_new(self, row_of: Mapping[int, Sequence[Any]]) -> set[int]:
        """Insert rows with new keys, and return their sequence numbers.

        Nearly always all keys are new, so one statement is enough.
        """
        inserted = insert(
            self._connection,
            _INSERT_PAYLOAD,
            list(row_of.values()),
            after="ON CONFLICT (key) DO NOTHING",
        )
        if inserted == len(row_of):
            return set(row_of)
        found = read_all(
            self._connection,
            "seq",
            "FROM payload WHERE seq IN (SELECT value FROM json_each(?))",
            json_list(row_of),
        )
        return {seq for (seq,) in found}

    def _known(self, entries: Sequence[Entry], *, adopted: bool) -> set[bytes]:
        keys = {bytes.fromhex(entry.key) for entry in entries}
        if adopted:
            keys |= {key for entry in entries if (key := as_key(entry.first_chunk))}
        return self._known_keys(keys)

    def _known_keys(self, keys: Iterable[bytes]) -> set[bytes]:
        found: set[bytes] = set()
        for key in keys:
            if self._connection.execute("SELECT 1 FROM payload WHERE key = ?", (key,)).fetchone():
                found.add(key)
        return found

    def overflow(self, entry: Entry) -> Outcome:  # noqa: ARG002 - it is only counted
        """Count an entry that could not be written. The next successful write saves the count."""
        self.file.count_unsaved("received", 1)
        self.file.count_unsaved("overflow", 1)
        return "overflow"

    # -- out ----------------------------------------------------------------------------------

    def read(self, seqs: Sequence[int], most_bytes: int) -> list[Waiting]:
        """Read queued payloads in the given order, up to `most_bytes`, but at least one."""
        sizes = dict(self._select_waiting("seq, size", seqs))
        room = most_bytes
        wanted: list[int] = []
        for seq in seqs:
            room -= sizes.get(seq, 0)
            if room < 0 and wanted:
                break
            if seq in sizes:
                wanted.append(seq)
        found = {
            seq: Waiting(
                seq,
                key.lower(),
                lane,
                unpack(bytes.fromhex(body)) if body else None,
                bool(retried),
            )
            for seq, key, lane, body, retried in self._select_waiting(
                "seq, hex(key), lane, hex(body), retried", wanted
            )
        }
        return [found[seq] for seq in wanted]

    def _select_waiting(self, columns: str, seqs: Sequence[int]) -> list[Any]:
        return read_all(
            self._connection,
            columns,
            f"FROM payload WHERE state = {PayloadState.WAITING:d} AND seq IN "
            "(SELECT value FROM json_each(?))",
            json_list(seqs),
        )

    def record_plans(self, plans: Sequence[Plan], sessions: Sequence[Session]) -> NewPlans:
        """Record plans, and the people of their sessions."""
        again: set[int] = set()
        if self.erasures.active:
            valid = [self.erasures.still_valid(plan) for plan in plans]
            plans = [plan for plan, _ in valid]
            again = {seq for _, waiting in valid for seq in waiting}
            sessions = self.erasures.without_forgotten(sessions)
        insert(
            self._connection,
            "plan (number, lane, record)",
            [
                (plan.number, plan.lane, record)
                for plan, record in zip(plans, self._records(plans), strict=True)
            ],
        )
        return NewPlans(list(plans), again, linked=self.catalog.set_sessions(sessions))

    def replace_plan(self, plan: Plan) -> None:
        """Overwrite a plan. Chunks that it no longer has leave the catalog."""
        (before,) = self._numbers_of([plan.number]).values()
        self.catalog.remove(before)
        if self.erasures.active:
            made = [one.chunk.id for one in plan.chunks]
            plan, _ = self.erasures.still_valid(plan)
            # The caller stores all of them.
            kept = {one.chunk.id for one in plan.chunks}
            self.catalog.delete_unknown([one for one in made if one not in kept], FORGOTTEN)
        (record,) = self._records([plan])
        self._connection.execute(
            "UPDATE plan SET record = ? WHERE number = ?", (record, plan.number)
        )

    def _records(self, plans: Sequence[Plan]) -> list[bytes]:
        """Add the chunks of plans, and return the records of the plans."""
        numbers = self.catalog.insert_planned([(plan.chunks, plan.lane) for plan in plans])
        return [
            msgspec.msgpack.encode((own, plan.unplanned))
            for own, plan in zip(numbers, plans, strict=True)
        ]

    def _numbers_of(self, plans: Sequence[int]) -> dict[int, list[int]]:
        """Return the numbers of each plan's chunks, in the plan's order."""
        rows = read_all(
            self._connection,
            "number, hex(record)",
            "FROM plan WHERE number IN (SELECT value FROM json_each(?))",
            json_list(plans),
        )
        return {number: _decode_record(bytes.fromhex(record))[0] for number, record in rows}

    def plans(self) -> list[Plan]:
        """Return the plans that are not acknowledged, oldest first."""
        return self._plans_where("true")

    def _plans_where(self, condition: str, *given: Any) -> list[Plan]:
        found = []
        for number, lane, record in self._connection.execute(
            "SELECT number, lane, record FROM plan WHERE acknowledged IS NULL "
            f"AND {condition} ORDER BY number",
            given,
        ).fetchall():
            numbers, unplanned = _decode_record(record)
            found.append(Plan(number, lane, self.catalog.planned(numbers), unplanned))
        return found

    def under_way(self, lanes: Collection[int]) -> set[int]:
        """Return those of these lanes that have a plan which is not acknowledged."""
        rows = read_all(
            self._connection,
            "lane",
            "FROM plan WHERE acknowledged IS NULL AND lane IN (SELECT value FROM json_each(?))",
            json_list(lanes),
        )
        return {lane for (lane,) in rows}

    def acknowledge(self, ended: Sequence[Acknowledgement]) -> Acknowledged:
        """Settle the payloads of executed plans."""
        now = self.file.clock()
        errors = {seq: error for one in ended for seq, error in one.dead.items()}
        done = [seq for one in ended for seq in one.plan.seqs if seq not in errors]
        again: list[tuple[int, int]] = []
        numbers_of = self.catalog.numbers(
            planned.chunk.id for one in ended for planned in one.plan.chunks
        )
        gone: list[str] = []
        if self.erasures.active:
            gone, again = self._forgotten(ended, numbers_of)
            waiting = self.erasures.waiting([*done, *errors]).keys() - {seq for _, seq in again}
            done = [seq for seq in done if seq in waiting]
            errors = {seq: error for seq, error in errors.items() if seq in waiting}
        stored_chunks: list[int] = []
        dead_chunks: list[int] = []
        outbox: list[int] = []
        for one in ended:
            parts = _parts(one)
            for planned in one.plan.chunks:
                number = numbers_of.get(planned.chunk.id)
                if number is None:
                    continue
                if one.dead.keys().isdisjoint(planned.seqs):
                    stored_chunks.append(number)
                elif planned.seqs[0] in parts:
                    outbox.append(number)
                else:
                    dead_chunks.append(number)
        self._set_stored(done, now)
        self._set_dead(errors, now)
        self.catalog.set_stored(stored_chunks, self.model)
        self.catalog.remove(dead_chunks)
        deleted = self.catalog.remove(outbox, _PART)
        self._end_plans([one.plan.number for one in ended], now)
        counts = self.file.counts
        counts["stored"] += len(done)
        counts["dead"] += len(errors)
        counts["pending"] -= len(done) + len(errors)
        return Acknowledged(deleted + gone, sorted([*done, *errors]), again)

    def _forgotten(
        self, ended: Sequence[Acknowledgement], numbers_of: Mapping[str, int]
    ) -> tuple[list[str], list[tuple[int, int]]]:
        """Add executed chunks that left the catalog to the deletion outbox.

        Returns:
            Their ids, and (lane, sequence number) of those of their payloads that still wait.
        """
        chunks = [
            planned
            for one in ended
            for planned in one.plan.chunks
            if planned.chunk.id not in numbers_of
        ]
        waiting = self.erasures.waiting([seq for one in chunks for seq in one.seqs])
        gone = self.catalog.delete_unknown([one.chunk.id for one in chunks], FORGOTTEN)
        return gone, [(lane, seq) for seq, lane in sorted(waiting.items())]

    def _end_plans(self, plans: Sequence[int], now: float) -> None:
        if self._keep_acknowledged:
            self._connection.execute(
                "UPDATE plan SET acknowledged = ? WHERE number IN (SELECT value FROM json_each(?))",
                (now, json_list(plans)),
            )
        else:
            delete_in(self._connection, "plan", "number", plans)
        if plans:
            self.file.raise_meta("acknowledged", max(plans))

    def _set_stored(self, seqs: Sequence[int], now: float) -> None:
        given = json_list(seqs)
        self.file.counts["bytes"] -= self.file.scalar(
            "SELECT coalesce(sum(size), 0) FROM payload WHERE seq IN (SELECT value FROM json_each(?))",
            given,
        )
        body = "" if self._keep_payloads else ", body = NULL"
        self._connection.execute(
            f"UPDATE payload SET state = ?, ended = ?{body} "
            "WHERE seq IN (SELECT value FROM json_each(?))",
            (PayloadState.STORED, now, given),
        )
        if not self._keep_payloads:
            compact(self._connection, seqs)

    def _set_dead(self, errors: Mapping[int, str], now: float) -> None:
        self._connection.executemany(
            "UPDATE payload SET state = ?, ended = ?, error = ? WHERE seq = ?",
            [(PayloadState.DEAD, now, error, seq) for seq, error in errors.items()],
        )

    # -- dead letters and requests ------------------------------------------------------------

    def dead_letters(self, limit: int, after: int = 0) -> list[DeadLetter]:
        """Return at most `limit` dead letters with an id above `after`, oldest first."""
        rows = self._connection.execute(letters(limit, after))
        return [dead_letter(*row) for row in rows]

    def retry(self, ids: Sequence[int] | None) -> list[tuple[int, int]]:
        """Put dead letters back into the queue, and return (lane, sequence number) of each."""
        which, given = _condition_of(ids)
        back = self._connection.execute(
            f"SELECT lane, seq FROM payload WHERE state = {PayloadState.DEAD:d} "
            f"AND body IS NOT NULL{which} ORDER BY seq",
            given,
        ).fetchall()
        self._connection.execute(
            "UPDATE payload SET state = ?, retried = 1, error = NULL, ended = NULL "
            "WHERE seq IN (SELECT value FROM json_each(?))",
            (PayloadState.WAITING, json_list(seq for _, seq in back)),
        )
        self.file.counts["dead"] -= len(back)
        self.file.counts["pending"] += len(back)
        return back

    def discard(self, ids: Sequence[int] | None) -> int:
        """Delete dead letters permanently, and return how many."""
        which, given = _condition_of(ids)
        dead = f"state = {PayloadState.DEAD:d}{which}"
        rows = read_all(self._connection, "seq, size", f"FROM payload WHERE {dead}", *given)
        seqs = [seq for seq, _ in rows]
        self.fulltext.remove(seqs)
        self._connection.execute(
            "UPDATE payload SET state = ?, body = NULL, error = NULL, session = NULL, ended = ? "
            "WHERE seq IN (SELECT value FROM json_each(?))",
            (PayloadState.DISCARDED, self.file.clock(), json_list(seqs)),
        )
        compact(self._connection, seqs)
        counts = self.file.counts
        counts["bytes"] -= sum(size for _, size in rows)
        counts["dead"] -= len(rows)
        counts["discarded"] += len(rows)
        return len(rows)

    def carry_out_requests(self) -> list[tuple[int, int]]:
        """Execute the requests of other processes, and return retried letters as `retry` does."""
        back = []
        rows = self._connection.execute(
            f"SELECT action, seq FROM request WHERE action IN {LETTER_ACTIONS} ORDER BY number"
        ).fetchall()
        for action, seq in rows:
            ids = None if seq is None else [int(seq)]
            if action == "retry":
                back += self.retry(ids)
            else:
                self.discard(ids)
        if rows:
            self._connection.execute(f"DELETE FROM request WHERE action IN {LETTER_ACTIONS}")
        return back

    def take_tasks(self) -> list[Task]:
        """Return the requests that wait for an answer, and remove them."""
        rows = self._connection.execute(
            f"SELECT seq FROM request WHERE action NOT IN {LETTER_ACTIONS} ORDER BY number"
        ).fetchall()
        if not rows:
            return []
        self._connection.execute(f"DELETE FROM request WHERE action NOT IN {LETTER_ACTIONS}")
        asked = [decode_task(row) for (row,) in rows]
        return [task for task in asked if task is not None]

    def answer_task(self, token: str, answer: Mapping[str, Any]) -> None:
        """Save an answer. Delete answers that nobody has read for a long time."""
        now = self.file.clock()
        self._connection.execute(
            "DELETE FROM meta WHERE name LIKE ? AND json_extract(value, '$.at') < ?",
            (f"{ANSWER}%", now - KEEP_ANSWERS_SECONDS),
        )
        self.file.set_meta(ANSWER + token, msgspec.json.encode({**answer, "at": now}).decode())

    # -- stored again -------------------------------------------------------------------------

    def queue_unconfirmed(self) -> int:
        """Queue recently acknowledged chunks after a crash, with "full" durability only."""
        if not self.file.unclean or not self._keep_acknowledged:
            return 0
        records = self._connection.execute(
            "SELECT record FROM plan WHERE acknowledged IS NOT NULL"
        ).fetchall()
        numbers = [number for (record,) in records for number in _decode_record(record)[0]]
        count = self.catalog.queue(numbers)
        self._connection.execute("DELETE FROM plan WHERE acknowledged IS NOT NULL")
        return count

    def stored_again(self, stored: Mapping[int, str], refused: Mapping[int, str]) -> list[str]:
        """Record that chunks were stored again. Payloads of refused chunks become dead letters.

        Returns:
            Ids added to the deletion outbox: chunks that left the catalog while they were stored,
            and refused chunks, because the store may hold an older version of them.
        """
        self.catalog.set_stored(self.catalog.still_queued([*stored]), self.model)
        gone = self.catalog.delete_unknown([*stored.values()], _GONE)
        errors: dict[int, str] = {}
        for number, error in refused.items():
            errors |= dict.fromkeys(self.catalog.seqs_of(number), error)
        if not refused:
            return gone
        found = read_all(
            self._connection,
            "seq, size",
            f"FROM payload WHERE state = {PayloadState.STORED:d} AND seq IN "
            "(SELECT value FROM json_each(?))",
            json_list(errors),
        )
        unknown = [*errors]
        errors = {seq: errors[seq] for seq, _ in found}
        self._set_dead(errors, self.file.clock())
        counts = self.file.counts
        counts["bytes"] += sum(size for _, size in found)
        counts["stored"] -= len(errors)
        counts["dead"] += len(errors)
        self.catalog.drop_adopted(unknown)
        parts = self.catalog.numbers_of(list(errors))
        return gone + self.catalog.remove([*refused, *parts], _PART)

    # -- reading ------------------------------------------------------------------------------

    def known(self) -> Known:
        """Return the progress of the journal."""
        acknowledged = self.file.meta("acknowledged") or 0
        planned = self.file.scalar("SELECT coalesce(max(number), 0) FROM plan")
        under_way = sum(len(planned.chunks) for planned in self.plans())
        return Known(
            seq=self._last_seq(),
            batch=max(planned, acknowledged),
            acknowledged=acknowledged,
            chunks=self.catalog.count() - under_way,
        )

    def _last_seq(self) -> int:
        highest = self.file.scalar("SELECT coalesce(max(seq), 0) FROM payload")
        return max(highest, self.file.meta("last_seq") or 0)

    def acknowledged_for_good(self) -> int:
        """Return the highest acknowledged batch. The commit of this call survives a power loss."""
        self.file.sync_after_commit()
        return self.file.meta("acknowledged") or 0

    def settled_of(self, lane: int) -> int | None:
        """Return the watermark of one lane; None if all its payloads are settled."""
        found = self._connection.execute(
            f"SELECT min(seq) FROM payload WHERE lane = ? AND state = {PayloadState.WAITING:d} "
            "AND retried = 0",
            (lane,),
        ).fetchone()[0]
        return None if found is None else int(found) - 1

    def waiting(self, after: int, limit: int) -> list[tuple[int, int, bool]]:
        """Return queued payloads by sequence number: (seq, lane, whether it is a retried letter)."""
        # The index is by lane, so its rows need sorting. For many rows, sorting takes longer than
        # scanning the table.
        few = self.file.counts["pending"] <= _FEW_WAITING
        rows = self._connection.execute(
            f"SELECT seq, lane, retried FROM payload "
            f"{'INDEXED BY payload_waiting' if few else 'NOT INDEXED'} WHERE state = {PayloadState.WAITING:d} AND seq > ? ORDER BY seq LIMIT ?",
            (after, limit),
        )
        return [(seq, lane, bool(retried)) for seq, lane, retried in rows]

    def recent(self, since: float, limit: int) -> list[tuple[float, Payload]]:
        """Return the last `limit` payloads accepted since a time, with arrival time, oldest first."""
        rows = self._connection.execute(
            f"SELECT at, body FROM payload WHERE seq >= ? AND at >= ? AND {FOLLOWED} "
            "ORDER BY seq DESC LIMIT ?",
            (first_since(self._connection, since), since, limit),
        ).fetchall()
        found = [(at, decoded(unpack(body))) for at, body in reversed(rows)]
        return [(at, payload) for at, payload in found if payload is not None]

    def tokens(self, day: str) -> int:
        """Return the number of tokens embedded on a day."""
        kept_day, _, count = str(self.file.meta("tokens") or "").partition(" ")
        return int(count) if kept_day == day else 0

    def note_tokens(self, day: str, count: int) -> None:
        """Save the number of tokens embedded on a day. It replaces that of another day."""
        self.file.set_meta("tokens", f"{day} {count}")

    def note_health(self, health: Health) -> None:
        """Save the health of the pipeline for other processes."""
        self.file.set_meta("health", msgspec.json.encode(health).decode())

    # -- expiry -------------------------------------------------------------------------------

    def tidy(self) -> None:
        """Delete expired data."""
        now = self.file.clock()
        # Followers need increasing numbers. The highest is saved, because its row may be deleted.
        self.file.set_meta("last_seq", self._last_seq())
        self._connection.execute(
            "DELETE FROM plan WHERE acknowledged < ?", (now - _KEEP_ACKNOWLEDGED_SECONDS,)
        )
        self._connection.execute(
            f"DELETE FROM payload WHERE state = {PayloadState.DISCARDED:d} AND ended < ?",
            (now - _KEEP_KEYS_SECONDS,),
        )
        self.catalog.claims.expire()
        if self.file.in_memory:
            self._tidy_memory(now - _KEEP_KEYS_SECONDS)

    def _tidy_memory(self, ended_before: float) -> None:
        """Delete old stored payloads and sessions. A catalog in memory would grow forever."""
        oldest = self.file.scalar("SELECT coalesce(max(seq), 0) FROM payload") - _MEMORY_PAYLOADS
        found = read_all(
            self._connection,
            "seq",
            f"FROM payload WHERE state = {PayloadState.STORED:d} AND (seq <= ? OR ended < ?)",
            oldest,
            ended_before,
        )
        self.catalog.drop_stored([seq for (seq,) in found])
        self.catalog.drop_sessions(ended_before)


def letters(limit: int, after: int = 0) -> str:
    """Return the statement that selects dead letters, oldest first."""
    return (
        f"SELECT {_LETTER} FROM payload WHERE state = {PayloadState.DEAD:d} "
        f"AND seq > {int(after)} ORDER BY seq LIMIT {int(limit)}"
    )


def dead_letter(  # noqa: PLR0917 - a row
    seq: int,
    kind: str | None,
    session: str | None,
    error: str | None,
    ended: float | None,
    body: bytes | None,
) -> DeadLetter:
    """Make a dead letter from a row of `letters`."""
    payload = decoded(unpack(body))
    if session is None and payload is not None:
        session = payload.session_id
    return DeadLetter(seq, kind or "unknown", session, error or "", ended or 0.0, payload)


def first_since(connection: Connection, since: float) -> int:
    """Find roughly the lowest sequence number that arrived at a time or later.

    Sequence numbers grow with arrival time, so a binary search finds it without an index.
    """
    low, high = connection.execute(
        # Two subqueries: for `min` and `max` in one SELECT, SQLite reads the whole table.
        "SELECT coalesce((SELECT min(seq) FROM payload), 0), "
        "coalesce((SELECT max(seq) FROM payload), 0)"
    ).fetchone()
    low, high = max(int(low), 0), int(high)
    while low < high:
        middle = (low + high) // 2
        at = connection.execute(
            "SELECT at FROM payload WHERE seq >= ? ORDER BY seq LIMIT 1", (middle,)
        ).fetchone()[0]
        if at >= since:
            high = middle
        else:
            low = middle + 1
    return int(low)


def _row(entry: Entry, body: bytes | None, now: float) -> tuple[Any, ...]:
    payload = entry.payload
    dead = entry.outcome == "dead"
    return (
        entry.seq,
        bytes.fromhex(entry.key),
        entry.lane,
        payload.kind if payload is not None else None,
        now,
        len(payload.actions) if isinstance(payload, ActionsPayload) else 0,
        int(PayloadState.DEAD if dead else PayloadState.WAITING),
        entry.size,
        now if dead else None,
        entry.error,
        body,
    )


def _parts(one: Acknowledgement) -> set[int]:
    """Return the dead payloads that fill several chunks. The store must keep none of these chunks."""
    counts: dict[int, int] = {}
    for planned in one.plan.chunks:
        if planned.seqs[0] in one.dead:
            counts[planned.seqs[0]] = counts.get(planned.seqs[0], 0) + 1
    return {seq for seq, count in counts.items() if count > 1}


def _decode_record(record: bytes) -> tuple[list[int], dict[int, str]]:
    return msgspec.msgpack.decode(record, type=tuple[list[int], dict[int, str]])


def _condition_of(ids: Sequence[int] | None) -> tuple[str, tuple[str, ...]]:
    if ids is None:
        return "", ()
    return " AND seq IN (SELECT value FROM json_each(?))", (json_list(ids),)

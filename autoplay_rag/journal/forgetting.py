"""Forgetting people and sessions: the requests, their deletions, and later refusals.

All functions block. They run in a transaction on the writer thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from math import inf
from typing import Any, Final, NamedTuple

import msgspec

from autoplay_rag.content.identity import People, people_of
from autoplay_rag.content.passages import storable
from autoplay_rag.errors import JournalError
from autoplay_rag.journal.base import Entry, Plan, PlannedChunk, Prepared, Session
from autoplay_rag.journal.catalog import CatalogTables
from autoplay_rag.journal.database import JournalDatabase
from autoplay_rag.journal.deleting import Deletion
from autoplay_rag.journal.outbox import FORGOTTEN
from autoplay_rag.journal.register import Register, RegisterEntry
from autoplay_rag.journal.rows import delete_in, insert, json_list
from autoplay_rag.journal.schema import INDEX_BELOW, PayloadState
from autoplay_rag.journal.selecting import (
    CLOCK_SECONDS,
    CONCERNED,
    PERSONAL,
    Asked,
    Selected,
    Sizes,
    count,
    parameters_of,
    select,
    sessions_of,
)

__all__ = [
    "Begun",
    "Deleted",
    "ErasureRecord",
    "ErasureState",
    "ErasureTables",
]

_REST: Final = "rest of "
"""The prefix of scopes for payloads of a forgotten session that do not name a person or a thread."""
_KEY: Final = "key"
_SCOPES: Final = "refused_scopes"
_SECRET: Final = "refused_secret"  # noqa: S105 - a name


class ErasureRecord(msgspec.Struct):
    """A request as it is kept: without ids.

    Attributes:
        asked: Keyed hashes of the ids, by name.
        until: Only what happened up to then.
        block: Whether later events are refused too.
        sizes: How much it concerns.
        text_only: Payloads of other people that were in a chunk with forgotten ones and whose body
            was not kept. They are found by full text, but in no chunk any more.
        plans: Numbers of the plans that were under way in its sessions: they may still store what
            they were made of.
    """

    asked: dict[str, str]
    until: float | None
    block: bool
    sizes: Sizes
    text_only: int = 0
    plans: list[int] = msgspec.field(default_factory=list)


class ErasureState(NamedTuple):
    """A request and its progress.

    Attributes:
        number: Its number.
        asked_at: When it was made, in Unix seconds.
        record: The request.
        deleted_at: When the store had confirmed everything.
        erased_at: When the files were written anew.
        waiting: Payloads that are still to be deleted.
        unconfirmed: Chunks whose deletion the store has not confirmed, and plans that may still store
            some.
    """

    number: int
    asked_at: float
    record: ErasureRecord
    deleted_at: float | None
    erased_at: float | None
    waiting: int
    unconfirmed: int


class Begun(NamedTuple):
    """A request that was recorded.

    Attributes:
        number: Its number.
        lanes: The sessions that it concerns.
    """

    number: int
    lanes: list[int]


class Deleted(NamedTuple):
    """A page of deleted payloads.

    Attributes:
        more: Whether there are more.
        settled: Those that waited.
        returned: (lane, sequence number) of other payloads that were in a chunk with them, and
            wait again.
        chunks: Ids added to the deletion outbox.
    """

    more: bool
    settled: list[int]
    returned: list[tuple[int, int]]
    chunks: list[str]


class ErasureTables:
    """The operations on the tables of erasures and refusals.

    Args:
        file: The journal's file.
        catalog: The catalog in the same file.
        register: Where requests are registered as well.

    Attributes:
        active: Whether anything was ever forgotten. Until then, nothing is checked anywhere.
    """

    def __init__(
        self, file: JournalDatabase, catalog: CatalogTables, register: Register | None = None
    ) -> None:
        self._register = register or Register(None)
        self.file = file
        self._catalog = catalog
        self._deletion = Deletion(file, catalog)
        self._connection = file.connection
        self._scopes: tuple[str, ...] = ()
        self._secret = b""
        self.active = False
        self.load()
        if self.active:
            file.overwrite_deleted()

    def load(self) -> None:
        """Read what is refused."""
        self._scopes = tuple(msgspec.json.decode(self.file.meta(_SCOPES) or "[]"))
        self._secret = bytes.fromhex(self.file.meta(_SECRET) or "")
        self.active = bool(self._scopes)

    # -- refusals -----------------------------------------------------------------------------

    def hashes_of(self, entry: Entry) -> list[tuple[str, bytes]]:
        """Return the scopes of an entry that may be refused."""
        found = [(_KEY, self._hash(_KEY, entry.key))]
        if entry.first_chunk:
            found.append((_KEY, self._hash(_KEY, entry.first_chunk)))
        if entry.payload is None:
            return found
        people = people_of(entry.payload)
        ids = {
            "product_id": entry.payload.product_id,
            "session_id": entry.payload.session_id,
            "user_id": people.user_id,
            "conversation_id": people.conversation_id,
        }
        for scope in self._scopes:
            if scope.startswith(_REST):
                if ids[scope.removeprefix(_REST)] is None:
                    found.append((scope, self._hash(scope, entry.lane)))
            elif scope != _KEY:
                values = [ids[name] for name in scope.split("+")]
                if None not in values:
                    found.append(
                        (scope, self._hash(scope, *(storable(one) for one in values if one)))
                    )
        return found

    def refused(
        self, entries: Sequence[Entry], prepared: Sequence[Prepared], now: float
    ) -> set[int]:
        """Return the sequence numbers of entries that are refused."""
        found: set[int] = set()
        hashes = {entry.seq: self.hashes_of(entry) for entry in entries if entry.is_kept}
        limits = self._limits({each for own in hashes.values() for each in own})
        for entry, kept in zip(entries, prepared, strict=True):
            happened = kept.passage.started if kept.passage is not None else 0.0
            unclear = not 0.0 < happened <= now + CLOCK_SECONDS
            for scope, digest in hashes.get(entry.seq, ()):
                limit = limits.get((scope, digest))
                if limit is not None and (scope == _KEY or unclear or happened <= limit):
                    found.add(entry.seq)
                    break
        return found

    def _limits(self, hashes: Iterable[tuple[str, bytes]]) -> dict[tuple[str, bytes], float]:
        """Return up to when the scopes that are refused are refused."""
        found = {one: self._limit(*one) for one in hashes}
        return {one: limit for one, limit in found.items() if limit is not None}

    def _limit(self, scope: str, digest: bytes) -> float | None:
        row = self._connection.execute(
            "SELECT happened_until FROM refused WHERE scope = ? AND hash = ?", (scope, digest)
        ).fetchone()
        return row[0] if row else None

    def _hash(self, *values: object) -> bytes:
        return blake2b(msgspec.msgpack.encode(values), key=self._secret, digest_size=16).digest()

    # -- a request ----------------------------------------------------------------------------

    def begin(
        self,
        asked: Asked,
        selected: Selected,
        now: float,
        block: bool,
        *,
        registered: bool = False,
    ) -> Begun | None:
        """Record a request: what it refuses from now on, and the payloads to be deleted.

        Args:
            asked: The request.
            selected: The payloads it concerns.
            now: The time of the request.
            block: Whether it also refuses later events.
            registered: Whether it is in the register already.

        Returns:
            None if payloads have arrived since the selection was made.

        Raises:
            JournalError: If what was accepted last cannot be indexed now.
        """
        if self._catalog.fulltext.buffer:
            raise JournalError(
                f"nothing was forgotten: the index of {self.file.name} cannot be written now, so it "
                "may lack sessions; try again"
            )
        current = sessions_of(self._connection, asked)
        if (current.lanes, current.shared, current.last) != (
            selected.lanes,
            selected.shared,
            selected.last,
        ):
            return None
        self._activate()
        ids = asked.given()
        limit = inf if block else now if asked.until is None else asked.until
        hashes = {name: self._hash(name, value).hex() for name, value in ids.items()}
        scope = "+".join(ids)
        refusals = [(scope, self._hash(scope, *ids.values()))]
        if not registered:
            digest = refusals[0][1].hex()
            self._register.add(RegisterEntry(scope, digest, now, asked.until, block))
        if rest := next((name for name in PERSONAL if name in ids), None):
            # Payloads of the person's sessions that do not name the person.
            scope = _REST + rest
            refusals += [(scope, self._hash(scope, lane)) for lane in selected.lanes]
        self._refuse(refusals, limit)
        sizes = count(self._connection, asked, selected)
        plans = self._connection.execute(
            "SELECT number FROM plan WHERE acknowledged IS NULL "
            "AND lane IN (SELECT value FROM json_each(?))",
            (json_list(selected.lanes + selected.shared),),
        ).fetchall()
        record = ErasureRecord(
            hashes, asked.until, block, sizes, plans=[number for (number,) in plans]
        )
        number = self._connection.execute(
            "INSERT INTO erasure (asked, record) VALUES (?, ?) RETURNING number",
            (now, _encoded(record)),
        ).fetchone()[0]
        self._connection.execute(
            f"INSERT OR IGNORE INTO forgetting SELECT seq, :number FROM ({CONCERNED}) AS found",
            {**parameters_of(asked, selected), "number": number},
        )
        self._drop_people(selected)
        return Begun(number, selected.lanes + selected.shared)

    def _activate(self) -> None:
        key = self._register.key(self._secret)
        if self._secret and key != self._secret:
            raise JournalError(
                "the register of erasures belongs to another journal; give another path for it "
                "(erasure_register=)"
            )
        self._secret = key
        self.file.set_meta(_SECRET, key.hex())
        self.active = True

    def apply_register(self) -> None:
        """Record the requests that are in the register and not in this journal.

        That is the case after an older copy of the journal was restored.
        """
        known = {
            asked for (asked,) in self._connection.execute("SELECT asked FROM erasure").fetchall()
        }
        missing = [entry for entry in self._register.entries() if entry.asked not in known]
        if not missing:
            return
        self._activate()
        complete = self.file.meta(INDEX_BELOW) is None
        for scope in dict.fromkeys(entry.scope for entry in missing):
            found = self._ids_by_hash(scope)
            for entry in missing:
                if entry.scope != scope:
                    continue
                if ids := found.get(entry.hash):
                    asked = Asked(**ids, until=entry.until)
                    selected = select(self._connection, asked)
                    self.begin(asked, selected, entry.asked, entry.block, registered=True)
                else:
                    self._apply_unknown(entry, complete=complete)

    def _ids_by_hash(self, scope: str) -> dict[str, dict[str, str]]:
        names = scope.split("+")
        columns = {"product_id": "visit.product", "session_id": "visit.session"}
        joins = ""
        for name in PERSONAL:
            columns[name] = f"{name}.value"
            if name in names:
                joins += (
                    f" JOIN belongs AS {name} "
                    f"ON {name}.lane = visit.lane AND {name}.field = '{name}'"
                )
        rows = self._connection.execute(
            f"SELECT DISTINCT {', '.join(columns[name] for name in names)} FROM visit{joins}"
        )
        return {
            self._hash(scope, *values).hex(): dict(zip(names, values, strict=True))
            for values in rows
            if None not in values
        }

    def _apply_unknown(self, entry: RegisterEntry, *, complete: bool) -> None:
        """Record a request of the register that concerns nothing in this journal."""
        until = entry.asked if entry.until is None else entry.until
        self._refuse([(entry.scope, bytes.fromhex(entry.hash))], inf if entry.block else until)
        if complete:  # otherwise the next start looks again
            record = ErasureRecord({}, entry.until, entry.block, Sizes())
            self._connection.execute(
                "INSERT INTO erasure (asked, record, deleted, erased) VALUES (?, ?, ?, ?)",
                (entry.asked, _encoded(record), entry.asked, entry.asked),
            )

    def _refuse(self, refusals: Sequence[tuple[str, bytes]], limit: float) -> None:
        scopes = dict.fromkeys((*self._scopes, *(scope for scope, _ in refusals)))
        if len(scopes) > len(self._scopes):
            self._scopes = tuple(scopes)
            self.file.set_meta(_SCOPES, msgspec.json.encode(self._scopes).decode())
        insert(
            self._connection,
            "refused (scope, hash, happened_until)",
            [(scope, digest, limit) for scope, digest in refusals],
            after="ON CONFLICT (scope, hash) DO UPDATE SET "
            "happened_until = max(refused.happened_until, excluded.happened_until)",
        )

    def _drop_people(self, selected: Selected) -> None:
        """Remove the person from shared sessions in which nothing of that person stays."""
        lanes = json_list(selected.shared)
        rows = self._connection.execute(
            "SELECT field, value, lane FROM belongs WHERE lane IN (SELECT value FROM json_each(?))",
            (lanes,),
        ).fetchall()
        self._connection.executemany(
            "DELETE FROM belongs WHERE field = ? AND value = ? AND lane = ?",
            [row for row in rows if row not in selected.kept],
        )
        self._connection.execute(
            "UPDATE visit SET user = NULL, email = NULL "
            "WHERE lane IN (SELECT value FROM json_each(?)) AND NOT EXISTS (SELECT 1 FROM belongs "
            "WHERE field = 'user_id' AND value = visit.user AND belongs.lane = visit.lane)",
            (lanes,),
        )
        self._connection.execute(
            "UPDATE visit SET conversation = NULL "
            "WHERE lane IN (SELECT value FROM json_each(?)) AND NOT EXISTS (SELECT 1 FROM belongs "
            "WHERE field = 'conversation_id' AND value = visit.conversation "
            "AND belongs.lane = visit.lane)",
            (lanes,),
        )

    # -- deletion -----------------------------------------------------------------------------

    def delete_page(self, limit: int) -> Deleted:
        """Delete some of the payloads of the oldest request that has any left."""
        self.file.overwrite_deleted()
        rows = self._connection.execute(
            "SELECT seq, erasure FROM forgetting WHERE erasure = "
            "(SELECT min(erasure) FROM forgetting) ORDER BY seq LIMIT ?",
            (limit,),
        ).fetchall()
        if not rows:
            return Deleted(more=False, settled=[], returned=[], chunks=[])
        seqs, number = [seq for seq, _ in rows], rows[0][1]
        given = json_list(seqs)
        payloads = self._connection.execute(
            "SELECT seq, key, lane, state, size FROM payload "
            "WHERE seq IN (SELECT value FROM json_each(?))",
            (given,),
        ).fetchall()
        lanes = {lane for _, _, lane, _, _ in payloads} | {
            lane
            for (lane,) in self._connection.execute(
                "SELECT lane FROM passage WHERE seq IN (SELECT value FROM json_each(?))", (given,)
            )
        }
        numbers = self._catalog.numbers_of(seqs)
        returned, text_only = self._return_others(numbers)
        ids = self._catalog.remove(numbers, f"{FORGOTTEN} {number}")
        self._rewrite_plans(lanes, set(numbers), set(seqs))
        self._deletion.delete_content(seqs, lanes)
        self._refuse([(_KEY, self._hash(_KEY, key.hex())) for _, key, *_ in payloads], inf)
        self._deletion.delete_rows(seqs)
        delete_in(self._connection, "forgetting", "seq", seqs)
        self._deletion.count_discarded((state, size) for _, _, _, state, size in payloads)
        if text_only:
            self._add_text_only(number, text_only)
        more = self.file.scalar("SELECT EXISTS (SELECT 1 FROM forgetting)")
        settled = [seq for seq, _, _, state, _ in payloads if state == PayloadState.WAITING]
        return Deleted(bool(more), settled, returned, ids)

    def _return_others(self, numbers: Sequence[int]) -> tuple[list[tuple[int, int]], int]:
        """Put stored payloads that share these chunks with forgotten ones back into the queue.

        Actions that a summary replaced stay in full text only, as before.
        Payloads that wait belong to a plan under way. `acknowledge` returns them.
        """
        rows = self._connection.execute(
            "SELECT seq, lane, size, body IS NOT NULL FROM payload "
            f"WHERE state = {PayloadState.STORED:d} AND seq IN (SELECT seq FROM chunk_payload "
            "WHERE chunk IN (SELECT value FROM json_each(?))) "
            "AND seq NOT IN (SELECT seq FROM forgetting) "
            "AND NOT (kind IS 'actions' AND actions > 0 AND claimed >= actions) ORDER BY seq",
            (json_list(numbers),),
        ).fetchall()
        back = [(lane, seq) for seq, lane, _, kept in rows if kept]
        self._connection.execute(
            f"UPDATE payload SET state = {PayloadState.WAITING:d}, retried = 1, ended = NULL "
            "WHERE seq IN (SELECT value FROM json_each(?))",
            (json_list(seq for _, seq in back),),
        )
        counts = self.file.counts
        counts["stored"] -= len(back)
        counts["pending"] += len(back)
        counts["bytes"] += sum(size for _, _, size, kept in rows if kept)
        return back, len(rows) - len(back)

    def _rewrite_plans(self, lanes: Iterable[int], numbers: set[int], seqs: set[int]) -> None:
        """Take chunks and payloads out of recorded plans."""
        plans = self._connection.execute(
            "SELECT number, record FROM plan WHERE lane IN (SELECT value FROM json_each(?))",
            (json_list(lanes),),
        ).fetchall()
        for number, record in plans:
            chunks, unplanned = msgspec.msgpack.decode(
                record, type=tuple[list[int], dict[int, str]]
            )
            left = (
                [one for one in chunks if one not in numbers],
                {seq: error for seq, error in unplanned.items() if seq not in seqs},
            )
            if left != (chunks, unplanned):
                self._connection.execute(
                    "UPDATE plan SET record = ? WHERE number = ?",
                    (msgspec.msgpack.encode(left), number),
                )

    def _add_text_only(self, number: int, count: int) -> None:
        record = self._record(number)
        record.text_only += count
        self._connection.execute(
            "UPDATE erasure SET record = ? WHERE number = ?", (_encoded(record), number)
        )

    # -- plans under way ----------------------------------------------------------------------

    def waiting(self, seqs: Sequence[int]) -> dict[int, int]:
        """Return those of these payloads that wait, with their lanes."""
        rows = self._connection.execute(
            f"SELECT seq, lane FROM payload WHERE state = {PayloadState.WAITING:d} "
            "AND seq IN (SELECT value FROM json_each(?))",
            (json_list(seqs),),
        )
        return dict(rows.fetchall())

    def still_valid(self, plan: Plan) -> tuple[Plan, set[int]]:
        """Take what was forgotten since a plan was made out of it.

        Returns:
            The plan without chunks that hold anything forgotten, and those of their other payloads
            that still wait.
        """
        going = self._connection.execute(
            "SELECT seq FROM forgetting WHERE seq IN (SELECT value FROM json_each(?))",
            (json_list(plan.seqs),),
        ).fetchall()
        waiting = self.waiting(plan.seqs).keys() - {seq for (seq,) in going}
        valid: list[PlannedChunk] = []
        again: set[int] = set()
        for one in plan.chunks:
            if waiting >= set(one.seqs) and not self._is_gone(one.chunk.metadata, plan.lane):
                valid.append(one)
            else:
                again.update(waiting & set(one.seqs))
        errors = {seq: error for seq, error in plan.unplanned.items() if seq in waiting}
        return Plan(plan.number, plan.lane, valid, errors), again

    def without_forgotten(self, sessions: Iterable[Session]) -> list[Session]:
        """Return sessions that still have payloads, without people who were forgotten meanwhile."""
        found = []
        for one in sessions:
            there = self._connection.execute(
                "SELECT 1 FROM passage WHERE lane = ? LIMIT 1", (one.lane,)
            ).fetchone()
            if there is None:
                continue
            names = {"user_id": one.people.user_id, "conversation_id": one.people.conversation_id}
            ids = {"product_id": one.product_id, "session_id": one.session_id, **names}
            gone = self._is_gone(ids, one.lane)
            found.append(one._replace(people=People()) if gone else one)
        return found

    def _is_gone(self, ids: Any, lane: int) -> bool:
        """Whether a session does not belong to the named person or thread any more."""
        if self.file.meta(INDEX_BELOW) is not None:
            return False  # `belongs` is not complete
        named = [(name, ids[name]) for name in PERSONAL if ids.get(name) is not None]
        for name, value in named:
            kept = self._connection.execute(
                "SELECT 1 FROM belongs WHERE field = ? AND value = ? AND lane = ?",
                (name, storable(str(value)), lane),
            ).fetchone()
            if kept is None and self._is_refused(ids):
                return True
        return False

    def _is_refused(self, ids: Any) -> bool:
        for scope in self._scopes:
            names = scope.split("+")
            if scope != _KEY and not scope.startswith(_REST) and all(ids.get(n) for n in names):
                values = [storable(str(ids[name])) for name in names]
                if self._limit(scope, self._hash(scope, *values)) is not None:
                    return True
        return False

    # -- progress -----------------------------------------------------------------------------

    def state(self, number: int) -> ErasureState | None:
        """Return a request and its progress; None if there is no such request."""
        row = self._connection.execute(
            "SELECT asked, record, deleted, erased, "
            "(SELECT count(*) FROM forgetting WHERE erasure = number), "
            "(SELECT count(*) FROM deletion WHERE reason IN (?, ? || number)) "
            "FROM erasure WHERE number = ?",
            (FORGOTTEN, f"{FORGOTTEN} ", number),
        ).fetchone()
        if row is None:
            return None
        asked, encoded, deleted, erased, waiting, unconfirmed = row
        record = msgspec.json.decode(encoded, type=ErasureRecord)
        if record.plans:
            unconfirmed += self.file.scalar(
                "SELECT count(*) FROM plan WHERE acknowledged IS NULL "
                "AND number IN (SELECT value FROM json_each(?))",
                json_list(record.plans),
            )
        return ErasureState(number, asked, record, deleted, erased, waiting, unconfirmed)

    def open_requests(self) -> list[ErasureState]:
        """Return the requests that are not complete, oldest first."""
        rows = self._connection.execute(
            "SELECT number FROM erasure WHERE erased IS NULL ORDER BY number"
        ).fetchall()
        states = [self.state(number) for (number,) in rows]
        return [state for state in states if state is not None]

    def mark_deleted(self, numbers: Sequence[int], at: float) -> None:
        """Record that nothing of these requests is found any more."""
        self._connection.execute(
            "UPDATE erasure SET deleted = ? WHERE deleted IS NULL "
            "AND number IN (SELECT value FROM json_each(?))",
            (at, json_list(numbers)),
        )

    def mark_erased(self, numbers: Sequence[int], at: float) -> None:
        """Record that no file holds anything of these requests any more."""
        self._connection.execute(
            "UPDATE erasure SET erased = ? WHERE erased IS NULL "
            "AND number IN (SELECT value FROM json_each(?))",
            (at, json_list(numbers)),
        )

    def merge_words(self, first: bool) -> bool:
        """Merge a part of the full-text index; see `FullTextTables.merge`."""
        return self._catalog.fulltext.merge(first)

    def _record(self, number: int) -> ErasureRecord:
        (record,) = self._connection.execute(
            "SELECT record FROM erasure WHERE number = ?", (number,)
        ).fetchone()
        return msgspec.json.decode(record, type=ErasureRecord)


def _encoded(record: ErasureRecord) -> str:
    return msgspec.json.encode(record).decode()

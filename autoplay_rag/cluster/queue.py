"""The queue in PostgreSQL: what several processes that share it make necessary.

Numbers of payloads come from the database. What a process writes about its own work (plans,
acknowledgements, claims, what it stored again, updated or deleted in the store) is checked in the same
transaction: it must still have the sessions' partitions. What must not meet a change of another
process (forgetting, retention, dead letters) locks the others out first.

All functions block. They run in a transaction on the writer thread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal, Protocol

import msgspec

from autoplay_rag.cluster.connection import PostgresConnection, Server
from autoplay_rag.cluster.database import PostgresDatabase
from autoplay_rag.cluster.schema import NUMBERS
from autoplay_rag.content.chunks import Chunk
from autoplay_rag.content.keys import PARTITIONS, partition_of
from autoplay_rag.journal.base import (
    Acknowledged,
    Acknowledgement,
    Entry,
    NewPlans,
    Outcome,
    Outdated,
    Plan,
    Prepared,
    Session,
    Task,
)
from autoplay_rag.journal.catalog import CatalogTables
from autoplay_rag.journal.claims import ClaimTables
from autoplay_rag.journal.expiring import ExpiryTables, Limits
from autoplay_rag.journal.forgetting import Begun, Deleted, ErasureTables
from autoplay_rag.journal.fulltext import FullTextTables
from autoplay_rag.journal.queue import QueueTables
from autoplay_rag.journal.rows import json_list, read_all
from autoplay_rag.journal.schema import EXPIRED_COUNT, PayloadState
from autoplay_rag.journal.selecting import Asked, Selected
from autoplay_rag.journal.tasks import ANSWER, KEEP_ANSWERS_SECONDS

__all__ = [
    "Fence",
    "PostgresCatalogTables",
    "PostgresErasureTables",
    "PostgresExpiryTables",
    "PostgresQueueTables",
]


class Fence(Protocol):
    """Checks that this process may still work on sessions."""

    def check(self, connection: Server, parts: Collection[int]) -> None:
        """Return if this process has all these partitions, and keeps them until the commit.

        Args:
            connection: In the transaction that writes for them.
            parts: The partitions.

        Raises:
            AutoplayError: If another process has one of them. The transaction is rolled back.
        """


class _PostgresClaimTables(ClaimTables):
    """The operations on claims. `ClaimTables` has the rest."""

    def __init__(self, file: PostgresDatabase, check: Callable[[Iterable[int]], None]) -> None:
        super().__init__(file)
        self._check = check

    def apply(self, used: Mapping[int, int], claimed: Mapping[int, int]) -> list[str]:
        """As in `ClaimTables`."""
        rows = self._connection.execute(
            "SELECT lane FROM claim WHERE seq IN (SELECT value FROM json_each(?)) UNION "
            "SELECT lane FROM payload WHERE seq IN (SELECT value FROM json_each(?))",
            (json_list(used), json_list(claimed)),
        )
        self._check(partition_of(lane) for (lane,) in rows)
        return super().apply(used, claimed)


_CHUNK_PART: Final = f"coalesce(lane, 0) & {PARTITIONS - 1}"


class PostgresCatalogTables(CatalogTables):
    """The operations on the catalog's tables. `CatalogTables` has the rest.

    Attributes:
        owned: Returns the partitions of this process; None while it is alone.
        fence: Checks that this process has the partitions for which it writes; None while it is
            alone.
    """

    file: PostgresDatabase
    owned: Callable[[], Collection[int]] | None = None
    fence: Fence | None = None
    _connection: PostgresConnection
    _left = 0

    def __init__(self, file: PostgresDatabase, fulltext: FullTextTables) -> None:
        super().__init__(file, fulltext)
        self.claims = _PostgresClaimTables(file, self.check)

    def check(self, parts: Iterable[int]) -> None:
        """Check that this process has partitions; see `Fence`."""
        if self.fence is not None and (wanted := {*parts}):
            self.fence.check(self._connection.server, wanted)

    def check_chunks(self, column: Literal["id", "number"], values: Collection[str | int]) -> None:
        """Check that this process has the partitions of those of these chunks that are known."""
        rows = self._connection.execute(
            f"SELECT DISTINCT {_CHUNK_PART} FROM chunk "
            f"WHERE {column} IN (SELECT value FROM json_each(?))",
            (json_list(values),),
        )
        self.check(part for (part,) in rows)

    def _own(self, table: Literal["chunk", "deletion"]) -> tuple[str, tuple[Any, ...]]:
        if self.owned is None:
            return "", ()
        part = "part" if table == "deletion" else _CHUNK_PART
        return f" AND ({part}) IN (SELECT value FROM json_each(?))", (json_list(self.owned()),)

    def deleted(self, ids: Sequence[str]) -> None:
        """As in `CatalogTables`."""
        # Checked afterwards: another process may add a row again after it was looked for.
        rows = self._connection.execute(
            "DELETE FROM deletion WHERE chunk IN (SELECT value FROM json_each(?)) RETURNING part",
            (json_list(ids),),
        )
        self.check(part for (part,) in rows)

    def updated(self, done: Sequence[Outdated]) -> None:
        """As in `CatalogTables`."""
        self.check_chunks("id", [one.id for one in done])
        super().updated(done)

    def adopt(self, chunks: Sequence[Chunk], model: str) -> int:
        """As in `CatalogTables`."""
        self.file.lock_out_others()
        return super().adopt(chunks, model)

    def fill(self, chunks: Sequence[Chunk]) -> int:
        """As in `CatalogTables`."""
        self.file.lock_out_others()
        return super().fill(chunks)

    def _take_number(self) -> int:
        if not self._left:
            self._next_number = self.file.scalar("SELECT nextval('chunk_number')")
            self._left = NUMBERS
        self._left -= 1
        return super()._take_number()


class PostgresErasureTables(ErasureTables):
    """The operations on erasures. `ErasureTables` has the rest."""

    file: PostgresDatabase

    def begin(
        self,
        asked: Asked,
        selected: Selected,
        now: float,
        block: bool,
        *,
        registered: bool = False,
    ) -> Begun | None:
        """As in `ErasureTables`."""
        self._lock()
        return super().begin(asked, selected, now, block, registered=registered)

    def delete_page(self, limit: int) -> Deleted:
        """As in `ErasureTables`."""
        if not self.file.scalar("SELECT EXISTS (SELECT 1 FROM forgetting)::int"):
            return Deleted(more=False, settled=[], returned=[], chunks=[])
        self._lock()
        page = super().delete_page(limit)
        self.file.announce(lane for lane, _ in page.returned)
        return page

    def apply_register(self) -> None:
        """As in `ErasureTables`."""
        self._lock()
        super().apply_register()

    def _limits(self, hashes: Iterable[tuple[str, bytes]]) -> dict[tuple[str, bytes], float]:
        wanted = {*hashes}
        rows = self._connection.execute(
            "SELECT scope, hash, happened_until FROM refused WHERE hash = ANY(?)",
            ([digest for _, digest in wanted],),
        )
        found = {(scope, digest): until for scope, digest, until in rows}
        return {one: found[one] for one in wanted & found.keys()}

    def _lock(self) -> None:
        self.file.lock_out_others()
        self.load()


class PostgresExpiryTables(ExpiryTables):
    """Deletes what is old. `ExpiryTables` has the rest."""

    _file: PostgresDatabase

    def load(self) -> None:
        """Read whether anything ever expired, in any process."""
        self.active = self._file.meta(EXPIRED_COUNT) is not None

    def expire(self, seqs: Sequence[int], limits: Limits) -> list[str]:
        """As in `ExpiryTables`."""
        self._file.lock_out_others()
        return super().expire(seqs, limits)

    def drop_keys(self, seqs: Sequence[int]) -> None:
        """As in `ExpiryTables`."""
        self._file.lock_out_others()
        super().drop_keys(seqs)


_LAST: Final = "SELECT last_seq FROM progress"


class PostgresQueueTables(QueueTables):
    """The operations on the queue's tables. `QueueTables` has the rest."""

    _erasures_class = PostgresErasureTables
    file: PostgresDatabase
    catalog: PostgresCatalogTables
    _connection: PostgresConnection

    # -- in -----------------------------------------------------------------------------------

    def number(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        """Return the entries with the sequence numbers that they are saved with.

        Other processes that take in payloads wait until this transaction ends. So numbers are
        committed in order.
        """
        last = self.file.scalar(f"{_LAST} FOR UPDATE")
        numbered = []
        for entry in entries:
            handed_over = entry.ticket or entry.seq
            if not entry.is_kept:
                numbered.append(entry)
                continue
            last = max(last + 1, handed_over)
            if last == handed_over:
                numbered.append(replace(entry, seq=last, lane=_lane(entry, last), ticket=0))
            else:
                numbered.append(
                    replace(entry, seq=last, lane=_lane(entry, last), ticket=handed_over)
                )
        return numbered

    def accept(
        self, entries: Sequence[Entry], prepared: Sequence[Prepared] | None = None
    ) -> list[Outcome]:
        """As in `QueueTables`."""
        outcomes = super().accept(entries, prepared)
        kept = [
            (entry, outcome)
            for entry, outcome in zip(entries, outcomes, strict=True)
            if outcome in ("accepted", "dead")
        ]
        if kept:
            last = max(entry.seq for entry, _ in kept)
            self._connection.run_all(f"UPDATE progress SET last_seq = {last:d}")
            self.file.announce(entry.lane for entry, outcome in kept if outcome == "accepted")
        return outcomes

    def _known_keys(self, keys: Iterable[bytes]) -> set[bytes]:
        rows = self._connection.execute("SELECT key FROM payload WHERE key = ANY(?)", ([*keys],))
        return {key for (key,) in rows}

    def _last_seq(self) -> int:
        return self.file.scalar(_LAST)

    # -- out ----------------------------------------------------------------------------------

    def record_plans(self, plans: Sequence[Plan], sessions: Sequence[Session]) -> NewPlans:
        """As in `QueueTables`."""
        self._check(plans)
        return super().record_plans(plans, sessions)

    def replace_plan(self, plan: Plan) -> None:
        """As in `QueueTables`."""
        self._check([plan])
        super().replace_plan(plan)

    def acknowledge(self, ended: Sequence[Acknowledgement]) -> Acknowledged:
        """As in `QueueTables`."""
        self._check([one.plan for one in ended])
        return super().acknowledge(ended)

    def _check(self, plans: Sequence[Plan]) -> None:
        self.catalog.check(partition_of(plan.lane) for plan in plans)

    def take_batches(self, count: int) -> list[int]:
        """Reserve numbers of plans. Other processes may get numbers between them."""
        rows = read_all(
            self._connection, "nextval('plan_number')", "FROM generate_series(1, ?)", count
        )
        return sorted(number for (number,) in rows)

    def waiting_of(
        self, parts: Collection[int], after: int, limit: int
    ) -> list[tuple[int, int, bool]]:
        """Return queued payloads of partitions, as `waiting` does."""
        rows = self._connection.execute(
            f"SELECT seq, lane, retried FROM payload WHERE state = {PayloadState.WAITING:d} "
            "AND part IN (SELECT value FROM json_each(?)) AND seq > ? ORDER BY seq LIMIT ?",
            (json_list(parts), after, limit),
        )
        return [(seq, lane, bool(retried)) for seq, lane, retried in rows]

    def plans_of(self, parts: Collection[int]) -> list[Plan]:
        """Return the plans of partitions that are not acknowledged, as `plans` does."""
        return self._plans_where("part IN (SELECT value FROM json_each(?))", json_list(parts))

    # -- what one process does at a time ------------------------------------------------------

    def retry(self, ids: Sequence[int] | None) -> list[tuple[int, int]]:
        """As in `QueueTables`."""
        self.file.lock_out_others()
        back = super().retry(ids)
        self.file.announce(lane for lane, _ in back)
        return back

    def discard(self, ids: Sequence[int] | None) -> int:
        """As in `QueueTables`."""
        self.file.lock_out_others()
        return super().discard(ids)

    def stored_again(self, stored: Mapping[int, str], refused: Mapping[int, str]) -> list[str]:
        """As in `QueueTables`."""
        if refused:
            self.file.lock_out_others()
        self.catalog.check_chunks("number", [*stored, *refused])
        return super().stored_again(stored, refused)

    def carry_out_requests(self) -> list[tuple[int, int]]:
        """As in `QueueTables`."""
        if not self._has_requests():
            return []
        self.file.lock_out_others()
        return super().carry_out_requests()

    def take_tasks(self) -> list[Task]:
        """As in `QueueTables`."""
        if not self._has_requests():
            return []
        self.file.lock_out_others()
        return super().take_tasks()

    def _has_requests(self) -> bool:
        return bool(self.file.scalar("SELECT count(*) FROM (SELECT 1 FROM request LIMIT 1) AS one"))

    def answer_task(self, token: str, answer: Mapping[str, Any]) -> None:
        """As in `QueueTables`."""
        now = self.file.clock()
        self._connection.execute(
            "DELETE FROM meta WHERE CASE WHEN name LIKE ? THEN "
            "((value #>> '{}')::json ->> 'at')::float8 < ? END",
            (f"{ANSWER}%", now - KEEP_ANSWERS_SECONDS),
        )
        self.file.set_meta(ANSWER + token, msgspec.json.encode({**answer, "at": now}).decode())


def _lane(entry: Entry, seq: int) -> int:
    """The lane of an entry with another number: without a session it is the number."""
    return entry.lane if entry.lane >= 0 else -seq

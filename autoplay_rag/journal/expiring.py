"""Deletion by age: what is old, where it is found, and its deletion.

A payload is as old as what happened in it. If that time is unknown or in the future, its receipt
counts. A chunk goes whole, once all its payloads are old. What is left of a payload is its key, so
that a late delivery is a duplicate.

All functions block. `due` is pure. `received` and `late` read. The methods of `ExpiryTables` run in
a transaction on the writer thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Final, NamedTuple, Protocol, TypeAlias, TypeVar

from autoplay_rag.journal.catalog import CatalogTables
from autoplay_rag.journal.database import JournalDatabase
from autoplay_rag.journal.deleting import Deletion, compact
from autoplay_rag.journal.queue import first_since
from autoplay_rag.journal.rows import Connection, json_list
from autoplay_rag.journal.schema import EXPIRED_COUNT, ChunkState, PayloadState
from autoplay_rag.journal.selecting import CLOCK_SECONDS
from autoplay_rag.journal.writer import Writer

__all__ = [
    "AsyncExpiry",
    "Days",
    "ExpiryTables",
    "LatePage",
    "Limits",
    "Part",
    "ReceivedPage",
    "due",
    "late",
    "limits_at",
    "received",
]

T = TypeVar("T")

Days: TypeAlias = float | Mapping[str, float] | None
"""How many days are kept: of everything, by kind, or without a limit."""

_DAY: Final = 24 * 3600.0
_REASON: Final = "older than the retention"
_WINDOW: Final = 2000
"""Sequence numbers that one read looks at: about 5 ms."""
_LANES: Final = 2000
"""Sessions that one read looks at."""
_FIRST: Final = -(2**63)
"""Below every sequence number and lane."""
_SETTLED: Final = (PayloadState.STORED, PayloadState.DEAD, PayloadState.ADOPTED)
_IS_SETTLED: Final = f"payload.state IN ({', '.join(f'{state:d}' for state in _SETTLED)})"

_LIMIT: Final = (
    "CASE payload.kind WHEN 'actions' THEN :actions WHEN 'summary' THEN :summary "
    "WHEN 'chat' THEN :chat ELSE :latest END"
)
"""The limit of a payload. The kind of payloads of an older format is only known to their chunk."""

_PARTS: Final = (
    "WITH asked(seq) AS (SELECT CAST(value AS INTEGER) FROM json_each(?)), "
    "mates(seq) AS (SELECT seq FROM asked UNION SELECT other.seq FROM asked "
    "CROSS JOIN chunk_payload AS own ON own.seq = asked.seq "
    "CROSS JOIN chunk_payload AS other ON other.chunk = own.chunk) "
    "SELECT payload.seq, chunk.number, coalesce(payload.kind, chunk.kind), payload.at, "
    "CASE WHEN passage.seq IS NULL THEN chunk.ended ELSE passage.ended END, "
    f"{_IS_SETTLED} AND chunk.state IS NOT {ChunkState.PLANNED:d} "
    "AND NOT EXISTS (SELECT 1 FROM forgetting WHERE forgetting.seq = payload.seq) "
    "FROM mates CROSS JOIN payload ON payload.seq = mates.seq "
    "LEFT JOIN passage ON passage.seq = mates.seq "
    "LEFT JOIN chunk_payload ON chunk_payload.seq = mates.seq "
    "LEFT JOIN chunk ON chunk.number = chunk_payload.chunk"
)
"""One row for each payload and chunk of it: of the given payloads, and of others in their chunks."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What is old: everything before these times, in Unix seconds.

    Attributes:
        keys: For keys of payloads whose content is gone, by their receipt.
        kinds: For single kinds of payloads.
        others: For all other kinds. -inf keeps them.
    """

    keys: float = -inf
    kinds: Mapping[str, float] = field(default_factory=dict)
    others: float = -inf

    def of(self, kind: str | None) -> float:
        """Return the limit of a kind; None is an unknown one."""
        return self.others if kind is None else self.kinds.get(kind, self.others)

    @property
    def latest(self) -> float:
        """The latest limit of all kinds. What is later is not old."""
        return max((self.others, *self.kinds.values()))

    @property
    def parameters(self) -> dict[str, float]:
        """The parameters of statements with `_LIMIT`."""
        kinds = {kind: self.of(kind) for kind in ("actions", "summary", "chat")}
        return {**kinds, "latest": self.latest, "keys": self.keys}


def limits_at(now: float, days: Days, key_days: float) -> Limits:
    """Return the limits at a time.

    Example:
        >>> limits_at(864_000.0, {"actions": 7}, 30.0).of("actions")
        259200.0
        >>> limits_at(864_000.0, {"actions": 7}, 30.0).of("summary")
        -inf
    """
    keys = now - key_days * _DAY
    if days is None:
        return Limits(keys)
    if isinstance(days, Mapping):
        return Limits(keys, {kind: now - some * _DAY for kind, some in days.items()})
    return Limits(keys, others=now - days * _DAY)


class Part(NamedTuple):
    """A payload, as a part of one chunk.

    Attributes:
        seq: Its sequence number.
        chunk: The chunk's number; None if it is in no chunk.
        kind: Its kind; None if unknown.
        at: When it was received.
        ended: When it happened; None or 0 if unknown.
        settled: Whether it may be deleted. Not while it waits or is planned.
    """

    seq: int
    chunk: int | None
    kind: str | None
    at: float
    ended: float | None
    settled: bool

    def is_old(self, limits: Limits) -> bool:
        """Whether it is older than its limit.

        Example:
            >>> limits = Limits(others=1000.0)
            >>> Part(1, 1, "actions", 2000.0, 900.0, True).is_old(limits)
            True
            >>> Part(1, 1, "actions", 900.0, 4e9, True).is_old(limits)  # in the future: its receipt
            True
        """
        known = self.ended and self.ended <= self.at + CLOCK_SECONDS
        happened = self.ended if known and self.ended else self.at
        return self.settled and happened < limits.of(self.kind)


def due(parts: Sequence[Part], limits: Limits) -> set[int]:
    """Return the sequence numbers of payloads that can be deleted, with all their chunks.

    Example:
        >>> old, new = Part(1, 7, "actions", 1.0, None, True), Part(2, 7, "actions", 9.0, None, True)
        >>> due([old, new], Limits(others=5.0)), due([old, new], Limits(others=10.0))
        (set(), {1, 2})
    """
    stay = {part.seq for part in parts if not part.is_old(limits)}
    while True:
        chunks = {part.chunk for part in parts if part.seq in stay} - {None}
        more = {part.seq for part in parts if part.chunk in chunks} - stay
        if not more:
            return {part.seq for part in parts} - stay
        stay |= more


# -- where it is --------------------------------------------------------------------------------


class ReceivedPage(NamedTuple):
    """What is old among payloads with neighbouring sequence numbers.

    Attributes:
        due: Payloads to delete.
        keys: Payloads without content whose key can be deleted.
        after: The last sequence number of the page.
    """

    due: list[int]
    keys: list[int]
    after: int


class LatePage(NamedTuple):
    """What is old among some sessions.

    Attributes:
        due: Payloads to delete.
        after: The last lane of the page.
    """

    due: list[int]
    after: int


def received(
    connection: Connection, after: int | None, limits: Limits, *, complete: bool
) -> ReceivedPage | None:
    """Look at the next payloads in the order of their receipt.

    Args:
        connection: The journal.
        after: The last sequence number of the page before; None for the first page.
        limits: What is old.
        complete: Whether to look at all payloads. Otherwise those that were received after the
            limits are left out: they are old only if they came late, and `late` finds them.

    Returns:
        None if there are no more.
    """
    first = connection.execute(
        "SELECT min(seq) FROM payload WHERE seq > ?", (_FIRST if after is None else after,)
    ).fetchone()[0]
    if first is None:
        return None
    last = int(first) + _WINDOW - 1
    came_late = f"OR passage.ended < {_LIMIT} " if complete else ""
    join = "LEFT JOIN passage ON passage.seq = payload.seq " if complete else ""
    if not complete:
        # Sequence numbers grow with the time of receipt, unless the clock was changed.
        bound = first_since(connection, max(limits.latest, limits.keys))
        if first > bound:
            return None
        last = min(last, bound)
    rows = connection.execute(
        f"SELECT payload.seq, payload.state = {PayloadState.EXPIRED:d} FROM payload {join}"
        "WHERE payload.seq BETWEEN :first AND :last AND ("
        f"(payload.state = {PayloadState.EXPIRED:d} AND payload.at < :keys) "
        f"OR ({_IS_SETTLED} AND (payload.at < {_LIMIT} {came_late})))",
        {"first": first, "last": last, **limits.parameters},
    ).fetchall()
    asked = [seq for seq, only_key in rows if not only_key]
    keys = [seq for seq, only_key in rows if only_key]
    return ReceivedPage(_due_by_chunk(connection, asked, limits), keys, last)


def late(connection: Connection, after: int | None, limits: Limits) -> LatePage | None:
    """Look at the next sessions for payloads that happened long before they were received.

    Args:
        connection: The journal.
        after: The last lane of the page before; None for the first page.
        limits: What is old.

    Returns:
        None if there are no more.
    """
    last, lanes = connection.execute(
        "SELECT max(lane), json_group_array(lane) FILTER (WHERE first < ?) FROM "
        "(SELECT lane, first FROM visit WHERE lane > ? ORDER BY lane LIMIT ?) AS page",
        (limits.latest, _FIRST if after is None else after, _LANES),
    ).fetchone()
    if last is None:
        return None
    rows = connection.execute(
        "SELECT passage.seq FROM passage CROSS JOIN payload ON payload.seq = passage.seq "
        "WHERE passage.lane IN (SELECT value FROM json_each(:lanes)) "
        f"AND passage.ended < {_LIMIT} AND {_IS_SETTLED}",
        {"lanes": lanes, **limits.parameters},
    )
    asked = [seq for (seq,) in rows]
    return LatePage(_due_by_chunk(connection, asked, limits), last)


def _due_by_chunk(connection: Connection, seqs: Iterable[int], limits: Limits) -> list[int]:
    """Return those that can be deleted. Payloads of one chunk are neighbours.

    So a step of some of them deletes few others that share their chunks.
    """
    parts = _parts(connection, seqs)
    chunk_of = {part.seq: part.chunk or 0 for part in parts}
    return sorted(due(parts, limits), key=lambda seq: (chunk_of[seq], seq))


def _parts(connection: Connection, seqs: Iterable[int]) -> list[Part]:
    given = list(seqs)
    if not given:
        return []
    return [Part._make(row) for row in connection.execute(_PARTS, (json_list(given),))]


# -- changes ------------------------------------------------------------------------------------


class ExpiryTables:
    """Deletes what is old.

    Args:
        file: The journal's file.
        catalog: The catalog in the same file.
    """

    def __init__(self, file: JournalDatabase, catalog: CatalogTables) -> None:
        self._file = file
        self._catalog = catalog
        self._deletion = Deletion(file, catalog)
        self._connection = file.connection
        self.active = file.meta(EXPIRED_COUNT) is not None
        """Whether anything ever expired. Until then, there are no keys to delete."""

    def expire(self, seqs: Sequence[int], limits: Limits) -> list[str]:
        """Delete those of these payloads that are still old, and the others in their chunks.

        Returns:
            Ids of chunks added to the deletion outbox.
        """
        gone = sorted(due(_parts(self._connection, seqs), limits))
        if not gone:
            return []
        given = json_list(gone)
        rows = self._connection.execute(
            "SELECT seq, lane, at, state, size FROM payload "
            "WHERE seq IN (SELECT value FROM json_each(?))",
            (given,),
        ).fetchall()
        lanes = {lane for _, lane, *_ in rows} | {
            lane
            for (lane,) in self._connection.execute(
                "SELECT lane FROM passage WHERE seq IN (SELECT value FROM json_each(?))", (given,)
            )
        }
        ids = self._remove_chunks(self._catalog.numbers_of(gone))
        self._deletion.delete_content(gone, lanes)
        self._deletion.count_discarded((state, size) for *_, state, size in rows)
        self._count(sum(seq > 0 and state == PayloadState.STORED for seq, _, _, state, _ in rows))
        self._connection.execute(
            "UPDATE payload SET state = ?, kind = NULL, session = NULL, error = NULL, body = NULL "
            "WHERE seq IN (SELECT value FROM json_each(?))",
            (PayloadState.EXPIRED, given),
        )
        compact(self._connection, gone)
        self._deletion.delete_rows([seq for seq, _, at, *_ in rows if at < limits.keys])
        return ids

    def drop_keys(self, seqs: Sequence[int]) -> None:
        """Delete the rows of payloads whose content is gone."""
        rows = self._connection.execute(
            f"SELECT seq FROM payload WHERE state = {PayloadState.EXPIRED:d} "
            "AND seq IN (SELECT value FROM json_each(?))",
            (json_list(seqs),),
        ).fetchall()
        self._deletion.delete_rows([seq for (seq,) in rows])

    def words_are_stale(self) -> bool:
        """Whether the full-text index holds more deleted texts than others."""
        return self._catalog.fulltext.is_stale()

    def merge_words(self, first: bool) -> bool:
        """Merge a part of the full-text index; see `FullTextTables.merge`."""
        return self._catalog.fulltext.merge(first)

    def _remove_chunks(self, numbers: Sequence[int]) -> list[str]:
        # The store has no retired chunks, or their deletion is in the outbox already.
        retired = [
            number
            for (number,) in self._connection.execute(
                f"SELECT number FROM chunk WHERE state = {ChunkState.RETIRED:d} "
                "AND number IN (SELECT value FROM json_each(?))",
                (json_list(numbers),),
            )
        ]
        self._catalog.remove(retired)
        return self._catalog.remove(sorted({*numbers} - {*retired}), _REASON)

    def _count(self, stored: int) -> None:
        self._file.set_meta(EXPIRED_COUNT, stored + (self._file.meta(EXPIRED_COUNT) or 0))
        self.active = True


class _Read(Protocol):
    async def __call__(self, read: Callable[[Connection], T], /) -> T: ...


class AsyncExpiry:
    """Deletion by age, for an event loop: each operation runs where it may block.

    Args:
        writer: Runs what changes the journal.
        tables: The tables; known once the journal is open.
        read: Runs a read where it does not hold up the writer.
    """

    def __init__(self, writer: Writer, tables: Callable[[], ExpiryTables], read: _Read) -> None:
        self._writer = writer
        self._tables = tables
        self._read = read

    @property
    def active(self) -> bool:
        """Whether anything ever expired."""
        return self._tables().active

    async def received(
        self, after: int | None, limits: Limits, *, complete: bool
    ) -> ReceivedPage | None:
        """Look at the next payloads in the order of their receipt; see `received`."""
        return await self._read(
            lambda connection: received(connection, after, limits, complete=complete)
        )

    async def late(self, after: int | None, limits: Limits) -> LatePage | None:
        """Look at the next sessions for payloads that came late; see `late`."""
        return await self._read(lambda connection: late(connection, after, limits))

    async def expire(
        self, seqs: Sequence[int], limits: Limits, then: Callable[[list[str]], None]
    ) -> None:
        """Delete payloads in one transaction.

        Args:
            seqs: The payloads. Those that are not old any more stay.
            limits: What is old.
            then: Called on the loop after the commit, with the chunks added to the outbox.
        """
        await self._writer.run(self._tables().expire, seqs, limits, then=then)

    async def drop_keys(self, seqs: Sequence[int]) -> None:
        """Delete the keys of payloads whose content is gone, in one transaction."""
        await self._writer.run(self._tables().drop_keys, seqs)

    async def words_are_stale(self) -> bool:
        """As in `ExpiryTables`."""
        return await self._writer.run(self._tables().words_are_stale)

    async def merge_words(self, first: bool) -> bool:
        """As in `ExpiryTables`."""
        return await self._writer.run(self._tables().merge_words, first)

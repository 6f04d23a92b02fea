"""One process among those that share a journal in PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import os
import platform
from collections.abc import Callable, Collection, Coroutine, Mapping
from typing import Any, Final, Protocol, TypeVar

from autoplay_rag.cluster.accepted import AcceptedRows
from autoplay_rag.cluster.asking import execute
from autoplay_rag.cluster.lease_rows import CHANGED
from autoplay_rag.cluster.leases import Leases
from autoplay_rag.cluster.notices import Notices, channel_of
from autoplay_rag.cluster.replicas import ReplicaRows
from autoplay_rag.content.keys import PARTITIONS
from autoplay_rag.journal.base import Plan
from autoplay_rag.journal.ownership import (
    Accepted,
    Arrivals,
    Membership,
    Replicas,
    SharedProgress,
)
from autoplay_rag.journal.schema import PayloadState
from autoplay_rag.stores.postgres.link import Link
from autoplay_rag.stores.postgres.tables import quoted

__all__ = ["Member", "PartitionReads"]

T = TypeVar("T")

_CONNECTIONS: Final = 4
"""For notifications, the lease, the arrivals, and what others accepted."""
_PAGE: Final = 20_000
"""The most arrivals in one read."""
_ASKED: Final = "asked "
"""The beginning of a notification about somebody who asked."""
_LONGEST: Final = 7_999
"""The most bytes of a notification."""
_WAITING: Final = f"state = {PayloadState.WAITING:d}"


class PartitionReads(Protocol):
    """The reads of single partitions; see `Sharing`."""

    async def plans_of(self, parts: Collection[int]) -> list[Plan]:
        """Return the plans of partitions."""

    async def waiting_of(
        self, parts: Collection[int], after: int, limit: int
    ) -> list[tuple[int, int, bool]]:
        """Return queued payloads of partitions."""


class Member(Membership):
    """Leases, notifications, and reads of what arrived.

    Args:
        parameters: The parameters of a connection.
        schema: The name of the schema.
        journal: Reads single partitions.
        seconds: The length of a lease.
        takes: Whether this process works on partitions.
        name: The name of the process for people; by default that of the machine, and its number.
    """

    def __init__(
        self,
        parameters: Mapping[str, str],
        schema: str,
        journal: PartitionReads,
        *,
        seconds: float = 10.0,
        takes: bool = True,
        name: str | None = None,
    ) -> None:
        self._journal = journal
        # A renewal that takes longer than a third of the lease comes too late.
        self._link = Link(parameters, _CONNECTIONS, seconds / 3)
        self._channel = channel_of(schema)
        self._schema = quoted(schema)
        self._accepted = AcceptedRows(self._link, self._schema)
        self._replicas = ReplicaRows(self._link, self._schema)
        self.ownership: Leases = Leases(
            self._link,
            self._schema,
            name or f"{platform.node()}:{os.getpid()}",
            seconds=seconds,
            takes=takes,
            channel=self._channel,
        )

    @property
    def problems(self) -> list[str]:
        """As in `Membership`."""
        return self.ownership.problems

    @property
    def is_connected(self) -> bool:
        """As in `Membership`. The lease is renewed every few seconds."""
        return not self.ownership.problems

    async def run(
        self, on_arrival: Callable[[], None], on_asked: Callable[[str, str | None], None]
    ) -> None:
        """As in `Membership`."""

        def noticed(text: str) -> None:
            if text.startswith(_ASKED):
                user_id, product_id = json.loads(text.removeprefix(_ASKED))
                on_asked(user_id, product_id)
                return
            if text in ("", CHANGED):
                self.ownership.wake()
            if text != CHANGED:
                on_arrival()

        async with asyncio.TaskGroup() as group:
            group.create_task(self.ownership.run())
            group.create_task(Notices(self._link, self._channel, noticed).run())

    async def while_held(self, name: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """As in `Membership`."""
        return await self.ownership.while_held(name, work)

    async def others(self, *, working: bool = False) -> int:
        """As in `Membership`."""
        return await self.ownership.others(working=working)

    async def close(self) -> None:
        """As in `Membership`."""
        await self.ownership.close()
        await self._link.close(_nothing)

    # -- reads --------------------------------------------------------------------------------

    async def plans_of(self, partitions: Collection[int]) -> list[Plan]:
        """As in `Sharing`."""
        return await self._journal.plans_of(partitions)

    async def waiting_of(
        self, partitions: Collection[int], after: int, limit: int
    ) -> list[tuple[int, int, bool]]:
        """As in `Sharing`."""
        return await self._journal.waiting_of(partitions, after, limit)

    async def arrivals(self, partitions: Collection[int], after: int, *, retried: bool) -> Arrivals:
        """As in `Sharing`."""
        payload = f"{self._schema}.payload"
        # One statement, so that all rows are of the same time.
        statement = (
            f"WITH fresh AS (SELECT seq, lane, retried FROM {payload} WHERE {_WAITING} "
            "AND part = ANY (%s::smallint[]) AND seq > %s ORDER BY seq LIMIT %s), "
            f"again AS (SELECT seq, lane, retried FROM {payload} WHERE {_WAITING} AND retried = 1 "
            "AND %s AND part = ANY (%s::smallint[])) "
            "SELECT 0, last_seq, closing, "
            "(SELECT min(first) FROM generate_series(0, %s) AS one (part), LATERAL "
            f"(SELECT min(seq) AS first FROM {payload} AS p WHERE {_WAITING} AND retried = 0 "
            "AND p.part = one.part) AS least), "
            f"(SELECT count(*) FROM {payload} WHERE {_WAITING} AND retried = 1) "
            f"FROM {self._schema}.progress "
            "UNION ALL SELECT 1, seq, lane, retried, NULL FROM fresh "
            "UNION ALL SELECT 2, seq, lane, retried, NULL FROM again"
        )
        given = [*partitions]
        rows = await self._execute(statement, given, after, _PAGE, retried, given, PARTITIONS - 1)
        fresh = sorted(seq for kind, seq, *_ in rows if kind == 1)
        found = {seq: (seq, lane, bool(again)) for kind, seq, lane, again, _ in rows if kind}
        ((_, last, closing, first, letters),) = (row for row in rows if row[0] == 0)
        return Arrivals(
            [found[seq] for seq in sorted(found)],
            fresh[-1] if len(fresh) == _PAGE else last,
            SharedProgress(last, last if first is None else first - 1, letters, closing),
        )

    async def accepted(self, after: int, limit: int) -> Accepted:
        """As in `Membership`."""
        return await self._accepted.after(after, limit)

    async def lately_accepted(self, since: float, limit: int) -> Accepted:
        """As in `Membership`."""
        return await self._accepted.lately(since, limit)

    async def tell_asked(self, user_id: str, product_id: str | None) -> None:
        """As in `Membership`."""
        text = _ASKED + json.dumps([user_id, product_id])
        if len(text) <= _LONGEST:
            await self._execute("SELECT pg_notify(%s, %s)", self._channel, text)

    async def kept(self, seqs: Collection[int]) -> set[int]:
        """As in `Membership`."""
        return await self._accepted.kept(seqs)

    async def replicas(self) -> Replicas:
        """As in `Membership`."""
        return await self._replicas.read(self.ownership.id)

    async def close_windows(self) -> SharedProgress:
        """As in `Sharing`."""
        await self._execute(
            f"WITH asked AS (UPDATE {self._schema}.progress SET closing = last_seq RETURNING 1) "
            "SELECT pg_notify(%s, 'closing') FROM asked",
            self._channel,
        )
        return (await self.arrivals((), 0, retried=False)).progress

    async def _execute(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return await execute(self._link, statement, *parameters)


async def _nothing() -> None:
    pass

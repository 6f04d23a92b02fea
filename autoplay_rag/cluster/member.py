"""One process among those that share a journal in PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Callable, Collection, Coroutine, Mapping
from typing import Any, Final, Protocol, TypeVar

from autoplay_rag.cluster.lease_rows import CHANGED
from autoplay_rag.cluster.leases import Leases
from autoplay_rag.cluster.notices import Notices
from autoplay_rag.cluster.parts import channel_of
from autoplay_rag.content.keys import PARTITIONS
from autoplay_rag.errors import ConfigurationError, JournalError, StoreError
from autoplay_rag.journal.base import Plan
from autoplay_rag.journal.ownership import Arrivals, Membership, SharedProgress
from autoplay_rag.journal.schema import PayloadState
from autoplay_rag.stores.postgres.link import Link
from autoplay_rag.stores.postgres.tables import quoted

__all__ = ["Member", "PartitionReads"]

T = TypeVar("T")

_CONNECTIONS: Final = 3
"""For notifications, the lease, and the arrivals."""
_PAGE: Final = 20_000
"""The most arrivals in one read."""
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

    async def run(self, on_arrival: Callable[[], None]) -> None:
        """As in `Membership`."""

        def noticed(text: str) -> None:
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

    async def others(self) -> int:
        """As in `Membership`."""
        return await self.ownership.others()

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

    async def close_windows(self) -> SharedProgress:
        """As in `Sharing`."""
        await self._execute(
            f"WITH asked AS (UPDATE {self._schema}.progress SET closing = last_seq RETURNING 1) "
            "SELECT pg_notify(%s, 'closing') FROM asked",
            self._channel,
        )
        return (await self.arrivals((), 0, retried=False)).progress

    async def _execute(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        async def execute() -> list[tuple[Any, ...]]:
            async with self._link.connection() as connection:
                cursor = await connection.execute(statement.encode(), parameters)
                return await cursor.fetchall()

        try:
            return await self._link.run(execute)
        except (StoreError, ConfigurationError) as error:
            raise JournalError(str(error)) from error


async def _nothing() -> None:
    pass

"""What one process owns in a cluster: partitions, and named leases.

A process renews one row for all that it owns. It measures its lease from before the request that
renewed it, with a clock that cannot be set, and stops before the lease ends in the database. So the
clocks of several machines are never compared.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Callable, Collection, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from autoplay_rag._backoff import grown_delay
from autoplay_rag.cluster.balance import decide
from autoplay_rag.cluster.fence import Fence
from autoplay_rag.cluster.lease_rows import LeaseRows
from autoplay_rag.content.keys import partition_of
from autoplay_rag.errors import ClientStateError, FencedError, JournalError
from autoplay_rag.journal.ownership import Change, Ownership

if TYPE_CHECKING:
    import psycopg

    from autoplay_rag.stores.postgres.link import Link

__all__ = ["Leases"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

_USABLE: Final = 0.8
"""The part of a lease in which the process acts. Requests that run at its end have the rest."""
_RENEWALS: Final = 3
"""How many times a lease is renewed within its length."""
_FIRST_PAUSE: Final = 0.1
"""Seconds until a renewal that failed is repeated for the first time, and the shortest pause."""


def _clock() -> float:
    """Seconds, including those in which the machine was suspended where the system counts them."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


@dataclass(eq=False)
class _Named:
    """A named lease that this process wants.

    Attributes:
        epoch: Its epoch while it is held; None while it is not.
        changed: Set when `epoch` changes.
    """

    epoch: int | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def set(self, epoch: int | None) -> None:
        """Change the epoch, and wake those who wait for that."""
        if epoch != self.epoch:
            self.epoch = epoch
            self.changed.set()
            self.changed = asyncio.Event()


class Leases(Ownership):
    """The partitions and the named leases of one process.

    Call all methods on the event loop that runs `run`, except `owns` and `check`.

    Args:
        link: The connections. The owner closes them. Its calls should time out within a third of
            `seconds`.
        schema: The quoted name of the schema, which has the tables of `LEASE_TABLES`.
        name: The name of this process for people, such as its host name.
        seconds: The length of a lease.
        takes: Whether this process takes partitions. Named leases do not depend on it.
        channel: The channel on which other processes are told of changes. Without it, they notice
            at their next renewal.

    Example:
        >>> async def main(link):
        ...     leases = Leases(link, '"autoplay"', "host-1")
        ...     running = asyncio.create_task(leases.run())
        ...     change = await leases.next_change()
        ...     print("works on", sorted(change.gained))
        ...     running.cancel()
        ...     await leases.close()
    """

    def __init__(
        self,
        link: Link,
        schema: str,
        name: str,
        *,
        seconds: float = 10.0,
        takes: bool = True,
        channel: str | None = None,
    ) -> None:
        self._rows = LeaseRows(link, schema, channel)
        self._schema = schema
        self._name = name
        self._seconds = seconds
        self._takes = takes
        self._id: str | None = None
        # Ids of leases that were lost, while the caller may still act on them; and afterwards.
        self._former: list[str] = []
        self._ended: list[str] = []
        self._until = 0.0
        # When the first lease of another process ends, unless it is renewed.
        self._other_ends = math.inf
        # The epochs of what is ours in the database, and of what the caller has heard of.
        self._held: dict[int, int] = {}
        self._owned: dict[int, int] = {}
        # Partitions to be given back, and those of them with which the caller has finished.
        self._giving: set[int] = set()
        self._releasing: set[int] = set()
        # What the caller has not heard of yet.
        self._lost: set[int] = set()
        self._leaving: set[int] = set()
        self._changed = asyncio.Event()
        self._woken = asyncio.Event()
        self._named: dict[str, _Named] = {}
        self._problem: str | None = None

    # -- partitions ---------------------------------------------------------------------------

    @property
    def problems(self) -> list[str]:
        """Current failures, one line each. Readable from any thread."""
        return [self._problem] if self._problem else []

    @property
    def id(self) -> str | None:
        """The id of this process among the others; None before it joined."""
        return self._id

    @property
    def partitions(self) -> frozenset[int]:
        """The partitions that this process works on now. Readable from any thread."""
        return frozenset(self._owned) if self._is_valid() else frozenset()

    def owns(self, lane: int) -> bool:
        """As in `Ownership`. May be called from any thread."""
        return self._is_valid() and partition_of(lane) in self._owned

    async def next_change(self) -> Change:
        """As in `Ownership`."""
        if self._former and not self._lost:
            # The caller has handled the loss: others need not wait until the lease ends.
            self._ended += self._former
            self._former.clear()
            self._woken.set()
        while True:
            self._changed.clear()
            lost, self._lost = frozenset(self._lost), set()
            leaving, self._leaving = frozenset(self._leaving & self._owned.keys()), set()
            gained: frozenset[int] = frozenset()
            if not lost and self._is_valid():
                gained = frozenset(self._held.keys() - self._owned.keys() - self._giving)
                self._owned = {**self._owned, **{one: self._held[one] for one in gained}}
            if change := Change(lost, leaving, gained):
                if lost:
                    self._changed.set()  # to look for what was taken again
                return change
            await self._changed.wait()

    def give_back(self, partitions: Collection[int]) -> None:
        """As in `Ownership`. `run` releases them in the database."""
        given = self._held.keys() & partitions
        self._owned = {one: self._owned[one] for one in self._owned if one not in given}
        self._giving |= given
        self._releasing |= given
        self._woken.set()

    def check(self, connection: psycopg.Connection[Any], parts: Collection[int]) -> None:
        """Check in a transaction that this process still owns partitions; see `Fence`.

        May be called from any thread, with any connection.

        Raises:
            FencedError: If it does not. The transaction must be rolled back.
        """
        owned = self._owned if self._is_valid() else {}
        if missing := [one for one in parts if one not in owned]:
            raise FencedError(
                "this process does not own the partitions "
                f"{', '.join(map(str, sorted(missing)))} any more; nothing was written for them",
                partitions=missing,
            )
        fence = Fence({one: owned[one] for one in parts})
        cursor = connection.execute(fence.statement(self._schema).encode(), fence.parameters)
        fence.check(cursor.fetchall())

    # -- named leases -------------------------------------------------------------------------

    async def while_held(self, name: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run `work()` in one process at a time.

        It waits until this process has the lease. If the lease is lost, the work is cancelled, and
        starts anew once this process has the lease again. The lease is released when the work
        ends.

        Args:
            name: The name of the lease, such as "source:acme".
            work: Makes the coroutine. It must end soon after it was cancelled.

        Returns:
            What the work returns.

        Raises:
            ClientStateError: If this process runs or waits for work of this name already.
        """
        with self._wanted(name) as named:
            try:
                while True:
                    while named.epoch is None:
                        await named.changed.wait()
                    working = asyncio.ensure_future(work())
                    if await _ends_before_loss(working, named):
                        return working.result()
                    _log.warning("the lease %r was lost; another process may have it now", name)
            finally:
                await self._release_named(name, named)

    @contextmanager
    def _wanted(self, name: str) -> Iterator[_Named]:
        if name in self._named:
            raise ClientStateError(f"this process waits for the lease {name!r} already")
        named = self._named[name] = _Named()
        self._woken.set()
        try:
            yield named
        finally:
            del self._named[name]

    async def _release_named(self, name: str, named: _Named) -> None:
        owner, epoch = self._id, named.epoch
        if owner is None or epoch is None:
            return
        try:
            await self._rows.release_named(owner, name, epoch)
        except JournalError as error:
            _log.warning("the lease %r was not released, and ends by itself: %s", name, error)

    # -- renewing -----------------------------------------------------------------------------

    def wake(self) -> None:
        """Look for what is free now."""
        self._woken.set()

    async def run(self) -> None:
        """Renew what this process owns, and take and give back partitions, until cancelled."""
        failures = 0
        while True:
            self._woken.clear()
            try:
                await self._renew()
            except JournalError as error:
                failures += 1
                if self._problem is None:
                    _log.error("the lease of this process could not be renewed: %s", error)
                self._problem = f"the lease of this process is not renewed: {error}"
            else:
                failures, self._problem = 0, None
            await self._pause(failures)

    async def _pause(self, failures: int) -> None:
        """Wait until the next renewal is due, or another process may have lost its lease.

        If the own lease ends meanwhile, everything is lost.
        """
        interval = self._seconds / _RENEWALS
        if failures:
            interval = grown_delay(failures - 1, min(_FIRST_PAUSE, interval), interval)
        due = _clock() + interval
        if not failures:
            due = min(due, max(self._other_ends, _clock() + _FIRST_PAUSE))
        while (now := _clock()) < due:
            ends = due if self._id is None else self._until
            if now >= ends:
                self._lose_all("could not be renewed in time")
                continue
            try:
                async with asyncio.timeout(min(due, ends) - now):
                    await self._woken.wait()
                    return
            except TimeoutError:
                pass

    async def _renew(self) -> None:
        worker = await self._extend() or await self._join()
        while self._ended:
            await self._rows.leave(self._ended[0])
            del self._ended[0]
        await self._rows.sweep()
        if given := {*self._releasing}:
            await self._rows.release(worker, given)
            self._giving -= given
            self._releasing -= given
            self._held = {one: self._held[one] for one in self._held if one not in given}
        await self._rebalance(worker)
        if names := [*self._named]:
            own = await self._rows.take_named(worker, names)
            for name in names:
                if name in self._named:
                    self._named[name].set(own.get(name))
                elif name in own:
                    # It was released while it was taken, and would be ours for as long as we live.
                    await self._rows.release_named(worker, name, own[name])

    async def _extend(self) -> str | None:
        """Renew the lease; return the id, or None if there is no lease or it has ended."""
        asked = _clock()
        if self._id is None:
            return None
        if not self._is_valid():
            self._lose_all("ended before it was renewed: this process stood still")
            return None
        extended = await self._rows.extend(self._id, self._seconds)
        if not self._is_valid():  # what was stopped for that is not continued
            self._lose_all("was renewed too late")
            return None
        if not extended:
            self._lose_all("was ended by another process")
            return None
        self._until = asked + self._seconds * _USABLE
        return self._id

    async def _join(self) -> str:
        asked, worker = _clock(), os.urandom(16).hex()
        await self._rows.join(worker, self._name, takes=self._takes, seconds=self._seconds)
        self._id, self._until = worker, asked + self._seconds * _USABLE
        return worker

    async def _rebalance(self, me: str) -> None:
        shares = await self._rows.shares()
        self._other_ends = _clock() + shares.first_end  # our own ends after the next renewal
        self._compare(shares.of(me))
        moves = decide(me, shares.workers, shares.owners, self._giving)
        if moves.give:
            self._giving.update(moves.give)
            self._leaving.update(moves.give)
            # What the caller has not heard of needs no end.
            if unheard := set(moves.give) - self._owned.keys():
                self._releasing |= unheard
                self._woken.set()
            self._changed.set()
        if moves.take:
            taken = await self._rows.take(me, {one: shares.epochs[one] for one in moves.take})
            self._held |= taken
            self._changed.set()

    def _compare(self, own: dict[int, int]) -> None:
        """Compare what is ours in the database with what we know.

        They differ if somebody has changed the rows, or if an answer did not arrive.
        """
        if own == self._held:
            return
        gone = {one for one, epoch in self._held.items() if own.get(one) != epoch}
        self._lost |= gone & self._owned.keys()
        self._owned = {one: self._owned[one] for one in self._owned if one not in gone}
        self._held = own
        self._giving -= gone
        self._releasing -= gone
        self._changed.set()

    def _is_valid(self) -> bool:
        return self._id is not None and _clock() < self._until

    def _lose_all(self, why: str) -> None:
        """Own nothing from now on. The process joins again under another id.

        With the same id and epoch, an operation of the time before could still pass the fence.
        """
        if self._held or any(named.epoch is not None for named in self._named.values()):
            _log.error("the lease of this process %s; others may go on with its work", why)
        if self._id is not None:
            (self._former if self._owned or self._lost else self._ended).append(self._id)
        self._id = None
        self._lost |= self._owned.keys()
        self._held, self._owned = {}, {}
        self._giving.clear()
        self._releasing.clear()
        self._leaving.clear()
        for named in self._named.values():
            named.set(None)
        self._changed.set()

    async def others(self, *, working: bool = False) -> int:
        """Return how many other processes have a lease now.

        Args:
            working: Whether to count only those that take partitions.

        Raises:
            JournalError: If the database does not answer.
        """
        return await self._rows.count_others(self._id, working=working)

    async def close(self) -> None:
        """Give everything back. Call it after `run` has ended."""
        worker, self._id = self._id, None
        self._held, self._owned = {}, {}
        if worker is None:
            return
        try:
            await self._rows.leave(worker)
        except JournalError as error:
            _log.warning(
                "partitions were not given back, and are free when the lease ends: %s", error
            )


async def _ends_before_loss(working: asyncio.Future[Any], named: _Named) -> bool:
    """Wait until work ends or its lease is lost; in the second case, or if cancelled, cancel it."""
    changed = asyncio.ensure_future(named.changed.wait())
    try:
        await asyncio.wait([working, changed], return_when=asyncio.FIRST_COMPLETED)
        return working.done()
    finally:
        changed.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait([working])

"""Tracks the highest sequence number up to which every payload is settled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from autoplay_rag.errors import JournalError
from autoplay_rag.journal.base import Queue
from autoplay_rag.journal.ownership import SharedProgress, Sharing

__all__ = ["SharedWatermark", "Watermark"]


_LOOK_SECONDS: Final = 0.1
"""The interval of asking for the progress of other processes while somebody waits for it."""
_RETRY_SECONDS: Final = 1.0


@dataclass(slots=True, eq=False)
class _Waiter:
    """One pending `wait` call."""

    mark: int
    retried: set[int]
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Watermark:
    """Assigns sequence numbers and tracks which of them are settled.

    A payload is settled once it is stored, dead, discarded, filtered, refused, lost to overflow, or
    known to be a duplicate. The watermark is the highest number up to which all are settled. It
    never moves back: a retried dead letter keeps its number and is tracked separately.

    It has no storage: `resume` restores it from the pending payloads of the journal.

    Args:
        queue: Keeps the pending payloads.
        last: The highest number assigned so far.

    Attributes:
        value: The watermark.
        last: The highest number assigned.

    Example:
        >>> watermark = Watermark(queue=None)
        >>> first, second = watermark.take(), watermark.take()
        >>> watermark.settle([second])
        >>> watermark.value
        0
        >>> watermark.settle([first])
        >>> watermark.value
        2
    """

    def __init__(self, queue: Queue, last: int = 0) -> None:
        self._queue = queue
        self.last = self.value = last
        # The ranges of settled numbers above the watermark, by start and by end. There are at most
        # as many as there are numbers that are not settled.
        self._end_of: dict[int, int] = {}
        self._start_of: dict[int, int] = {}
        self._retried: set[int] = set()
        self._waiters: set[_Waiter] = set()
        self._settled = asyncio.Event()

    def take(self) -> int:
        """Assign the next number."""
        self.last += 1
        return self.last

    def resume(self, waiting: Iterable[tuple[int, bool]]) -> None:
        """Restore the state of an earlier run. Call this before any number is assigned.

        Args:
            waiting: The numbers of pending payloads, in order, and whether each is a retried dead
                letter. All other numbers are settled.
        """
        settled_from = None
        for seq, retried in waiting:
            if retried:
                self._retried.add(seq)
            elif settled_from is None:
                self.value = seq - 1
                settled_from = seq + 1
            else:
                if seq > settled_from:
                    self._add_range(settled_from, seq - 1)
                settled_from = seq + 1
        if settled_from is not None and settled_from <= self.last:
            self._add_range(settled_from, self.last)

    def settle(self, seqs: Iterable[int]) -> None:
        """Mark payloads as settled."""
        for seq in seqs:
            if seq in self._retried:
                self._retried.discard(seq)
                for waiter in self._waiters:
                    # Per waiter: the letter may be retried again before the waiter is done.
                    waiter.retried.discard(seq)
            elif seq == self.value + 1:
                self.value = self._end_of.pop(seq + 1, seq)
                self._start_of.pop(self.value, None)
            elif seq > self.value:
                start = self._start_of.pop(seq - 1, seq)
                end = self._end_of.pop(seq + 1, seq)
                self._add_range(start, end)
        for waiter in self._waiters:
            self._check(waiter)
        self._settled.set()
        self._settled = asyncio.Event()

    def next_settled(self) -> asyncio.Event:
        """Return an event that is set as soon as more payloads are settled."""
        return self._settled

    def reopen(self, seqs: Iterable[int]) -> None:
        """Mark dead letters as retried. `wait` includes them; the watermark does not change."""
        self._retried.update(seqs)

    async def wait(self) -> None:
        """Wait until all numbers assigned so far and all retried dead letters are settled."""
        waiter = _Waiter(self.last, set(self._retried))
        self._check(waiter)
        self._waiters.add(waiter)
        try:
            await waiter.done.wait()
        finally:
            self._waiters.discard(waiter)

    async def of(self, lane: int) -> int:
        """Return a session's watermark: all its payloads up to this number are settled.

        Args:
            lane: The session's lane.
        """
        last = self.last
        found = await self._queue.settled_of(lane)
        return max(self.value, last if found is None else found)

    def _add_range(self, start: int, end: int) -> None:
        self._end_of[start] = end
        self._start_of[end] = start

    def _check(self, waiter: _Waiter) -> None:
        if self.value >= waiter.mark and not waiter.retried:
            waiter.done.set()


class SharedWatermark(Watermark):
    """The watermark of a journal that several processes write.

    The journal assigns the sequence numbers, and knows what is settled. The numbers of `take` only
    identify what this process has submitted.

    Args:
        queue: The queue.
        sharing: Closes the windows of all processes.
        last: The highest number assigned so far.
    """

    def __init__(self, queue: Queue, sharing: Sharing, last: int = 0) -> None:
        super().__init__(queue)
        self.last = last  # how much of it is settled, `note` says
        self._sharing = sharing
        self._ticket = last
        self._retried_left = 0

    def take(self) -> int:
        """Return a number for a payload that is submitted."""
        self._ticket += 1
        return self._ticket

    def settle(self, seqs: Iterable[int]) -> None:  # noqa: ARG002 - as in the base class
        """Note that payloads are settled. The watermark moves with the next progress."""
        self._settled.set()
        self._settled = asyncio.Event()

    def reopen(self, seqs: Iterable[int]) -> None:
        """Do nothing: the journal counts retried letters."""

    def note(self, progress: SharedProgress) -> None:
        """Take over the progress that was read from the journal."""
        self.last = max(self.last, progress.last)
        self.value = max(self.value, progress.settled)
        self._retried_left = progress.retried

    async def wait(self) -> None:
        """Wait until all that any process accepted so far, and all retried letters, are settled."""
        progress = await _answered(self._sharing.close_windows)
        mark = progress.last
        while True:
            self.note(progress)
            if self.value >= mark and not self._retried_left:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self.next_settled().wait()
            progress = await _answered(partial(self._progress, mark))

    async def _progress(self, after: int) -> SharedProgress:
        return (await self._sharing.arrivals((), after, retried=False)).progress


async def _answered(ask: Callable[[], Awaitable[SharedProgress]]) -> SharedProgress:
    """Ask until the database answers. While it does not, nothing is settled either."""
    while True:
        try:
            return await ask()
        except JournalError:
            await asyncio.sleep(_RETRY_SECONDS)

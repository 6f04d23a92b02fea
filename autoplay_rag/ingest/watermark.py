"""Up to which sequence number everything is settled."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from autoplay_rag.journal.base import Queue

__all__ = ["Watermark"]


@dataclass(slots=True, eq=False)
class _Waiter:
    """One pending `wait` call."""

    mark: int
    retried: set[int]
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Watermark:
    """Gives out sequence numbers, and knows which of them are settled.

    A payload is settled once it is stored, dead, discarded, filtered, refused, lost to overflow, or
    known as a duplicate. The watermark is the highest number up to which all are. It never moves
    back: a dead letter that is retried keeps its number and is waited for by itself.

    It needs no storage of its own: the journal knows what waits, and `resume` is given that.

    Args:
        queue: Knows what waits of each session.
        last: The highest number given out so far.

    Attributes:
        value: The watermark.
        last: The highest number given out.

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
        # Settled numbers beyond the watermark, as ranges: each from its start, and from its end.
        # There are no more of them than numbers that are not settled.
        self._end_of: dict[int, int] = {}
        self._start_of: dict[int, int] = {}
        self._retried: set[int] = set()
        self._waiters: set[_Waiter] = set()

    def take(self) -> int:
        """Give out the next number."""
        self.last += 1
        return self.last

    def resume(self, waiting: Iterable[tuple[int, bool]]) -> None:
        """Take up what an earlier run left, before any number is given out.

        Args:
            waiting: Numbers of payloads that wait, in order, and whether each is a retried dead
                letter. Every other number is settled.
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
        """Note that payloads are settled."""
        for seq in seqs:
            if seq in self._retried:
                self._retried.discard(seq)
                for waiter in self._waiters:
                    # It may be retried once more before the others are settled.
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

    def reopen(self, seqs: Iterable[int]) -> None:
        """Note that dead letters are retried: they are waited for, the watermark stays."""
        self._retried.update(seqs)

    async def wait(self) -> None:
        """Wait until everything given out so far, retried dead letters included, is settled."""
        waiter = _Waiter(self.last, set(self._retried))
        self._check(waiter)
        self._waiters.add(waiter)
        try:
            await waiter.done.wait()
        finally:
            self._waiters.discard(waiter)

    async def of(self, lane: int) -> int:
        """The watermark of one session: everything of it up to this number is settled.

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

"""Waiting until everything that had come by a moment is stored or dead."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

__all__ = ["Drain", "Drains"]


class Drain:
    """One who waits.

    Attributes:
        done: Set once everything waited for has ended.
    """

    def __init__(self, mark: int, left: int) -> None:
        self._mark = mark
        self._left = left
        self.done = asyncio.Event()
        self.ended(())

    def ended(self, seqs: Iterable[int]) -> None:
        """Payloads that are stored or dead; only those up to the mark count."""
        self._left -= sum(seq <= self._mark for seq in seqs)
        if self._left <= 0:
            self.done.set()


class Drains:
    """Everybody who waits for the queue to be done with what it held when they asked."""

    def __init__(self) -> None:
        self._waiting: set[Drain] = set()

    def ended(self, seqs: list[int]) -> None:
        """Payloads that are stored or dead."""
        for drain in self._waiting:
            drain.ended(seqs)

    @contextmanager
    def begin(self, mark: int, left: int) -> Iterator[Drain]:
        """Wait for `left` payloads with numbers up to `mark`.

        It counts from this very moment: a payload that ends before the caller's next await is
        not missed.
        """
        drain = Drain(mark, left)
        self._waiting.add(drain)
        try:
            yield drain
        finally:
            self._waiting.discard(drain)

"""Waiting until everything that had come by a moment is stored or dead."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

__all__ = ["Drains"]


class _Drain:
    def __init__(self, mark: int, left: int) -> None:
        self.mark = mark
        self.left = left
        self.done = asyncio.Event()
        self.ended(())

    def ended(self, seqs: Iterable[int]) -> None:
        self.left -= sum(seq <= self.mark for seq in seqs)
        if self.left <= 0:
            self.done.set()


class Drains:
    """Everybody who waits for the queue to be done with what it held when they asked."""

    def __init__(self) -> None:
        self._waiting: set[_Drain] = set()

    def ended(self, seqs: list[int]) -> None:
        """Payloads that are stored or dead."""
        for drain in self._waiting:
            drain.ended(seqs)

    async def wait(self, mark: int, left: int) -> None:
        """Wait until `left` payloads with numbers up to `mark` have ended."""
        drain = _Drain(mark, left)
        self._waiting.add(drain)
        try:
            await drain.done.wait()
        finally:
            self._waiting.discard(drain)

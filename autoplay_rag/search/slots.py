"""Limits how many tasks do something at once, on each event loop."""

from __future__ import annotations

import asyncio
from weakref import WeakKeyDictionary

__all__ = ["Slots"]


class Slots:
    """A semaphore for each event loop that uses it: a `Searcher` works on any loop.

    Args:
        count: How many tasks of one loop may be inside at once.

    Example:
        >>> async def enter(slots):
        ...     async with slots.here():
        ...         return "inside"
        >>> asyncio.run(enter(Slots(1)))
        'inside'
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._of_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = (
            WeakKeyDictionary()
        )

    def here(self) -> asyncio.Semaphore:
        """Return the semaphore of the running loop; use it with `async with`."""
        loop = asyncio.get_running_loop()
        found = self._of_loop.get(loop)
        if found is None:
            found = self._of_loop[loop] = asyncio.Semaphore(self._count)
        return found

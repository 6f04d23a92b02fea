"""How many documents go into one call, so that a store that blocks does not hold up the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Final

__all__ = ["Pace"]

_TICK: Final = 0.002
_FEWEST: Final = 4
"""A call costs a thread and a commit, also for a single document."""


class Pace:
    """Chooses the size of the next call from how long the last ones held up the event loop.

    Some vector stores work in a thread and still block the loop, because they hold Python's lock.
    They block it for a time that grows with the number of documents. The others do not block it,
    whatever the number, and soon get all documents in one call.

    Args:
        most: The most documents in a call.
        bearable: The longest delay of the loop that is wanted, in seconds.

    Example:
        >>> pace = Pace(100)
        >>> pace.note(documents=10, delay=0.020)
        >>> pace.size < 10
        True
    """

    def __init__(self, most: int, bearable: float = 0.010) -> None:
        self._most = most
        self._bearable = bearable
        self._delay_of_one: float | None = None

    @property
    def size(self) -> int:
        """The number of documents for the next call."""
        fewest = min(_FEWEST, self._most)
        if self._delay_of_one is None:
            return fewest
        if self._delay_of_one * self._most <= self._bearable:
            return self._most
        return max(fewest, int(self._bearable / self._delay_of_one))

    def note(self, documents: int, delay: float) -> None:
        """Take a call into account.

        Args:
            documents: How many documents it had.
            delay: The longest time that the event loop was late during it, in seconds.
        """
        one = delay / documents
        known = self._delay_of_one
        # Up at once, down slowly: one slow call has shown what the store can do.
        self._delay_of_one = one if known is None or one > known else (3 * known + one) / 4

    async def measured(self, call: Awaitable[None], documents: int) -> None:
        """Await a call, and take it into account.

        Args:
            call: Stores documents.
            documents: How many.
        """
        loop = asyncio.get_running_loop()
        done = False
        longest, due = 0.0, loop.time() + _TICK

        def tick() -> None:
            nonlocal longest, due
            now = loop.time()
            longest, due = max(longest, now - due), now + _TICK
            if not done:
                loop.call_at(due, tick)

        loop.call_at(due, tick)
        try:
            await call
        finally:
            done = True
        self.note(documents, max(longest, loop.time() - due))

"""When to pull which user. Pure: time is an argument."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable
from typing import Final

__all__ = ["Schedule"]

_JITTER: Final = (0.9, 1.1)
_STARTS_PER_SECOND: Final = 100.0
"""The most pulls per second, unless the users need more."""
_BURST_SECONDS: Final = 0.1
_CATCHING_UP: Final = 4.0
"""After a pause, at most this many times the usual pulls per second."""


class Schedule:
    """The users to pull and the time of each one's next pull.

    The pulls of different users are spread over the interval, so that the server gets no bursts.

    Args:
        interval: Seconds between two pulls of one user, on average.
        random_source: The source of the jitter; the module's own if None.

    Example:
        >>> schedule = Schedule(30.0)
        >>> schedule.watch({"ann"}, now=0.0)
        >>> schedule.take(now=1.0), schedule.take(now=2.0)
        ('ann', None)
        >>> 27.0 <= schedule.due_in(now=1.0) <= 33.0
        True
    """

    def __init__(self, interval: float, *, random_source: random.Random | None = None) -> None:
        self._interval = interval
        self._random = random_source or random.Random()  # noqa: S311 - spreads requests, guards nothing
        self._next_at = float("-inf")
        self._due: dict[str, float] = {}
        # May contain entries that are out of date: those that differ from `_due`.
        self._heap: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._due)

    def __contains__(self, user_id: object) -> bool:
        return user_id in self._due

    def watch(self, users: Iterable[str], now: float) -> None:
        """Replace the users. New ones are pulled first within seconds, or within one interval."""
        wanted = set(users)
        for gone in self._due.keys() - wanted:
            del self._due[gone]
        new = wanted - self._due.keys()
        spread = min(self._interval, len(new) / _STARTS_PER_SECOND)
        for user_id in new:
            self._set(user_id, now + (self._random.uniform(0.0, spread) if len(new) > 1 else 0.0))

    def take(self, now: float) -> str | None:
        """Return a user who is due, and schedule the next pull; None if nobody is due."""
        self._drop_outdated()
        if not self._heap or max(self._heap[0][0], self._next_at) > now:
            return None
        _, user_id = heapq.heappop(self._heap)
        self._set(user_id, now + self._interval * self._random.uniform(*_JITTER))
        most = max(_STARTS_PER_SECOND, _CATCHING_UP * len(self._due) / self._interval)
        self._next_at = max(self._next_at, now - _BURST_SECONDS) + 1 / most
        return user_id

    def again(self, user_id: str, now: float) -> None:
        """Make a user due now, after a pull that failed. Does nothing for a user who is not watched."""
        if user_id in self._due:
            self._set(user_id, now)

    def due_in(self, now: float) -> float | None:
        """Return the seconds until the next user is due; None if there are no users."""
        self._drop_outdated()
        return max(0.0, max(self._heap[0][0], self._next_at) - now) if self._heap else None

    def _set(self, user_id: str, at: float) -> None:
        self._due[user_id] = at
        heapq.heappush(self._heap, (at, user_id))

    def _drop_outdated(self) -> None:
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)

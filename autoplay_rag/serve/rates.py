"""Token buckets: how many requests each key, token or address may make."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from autoplay_rag._checks import check_above

__all__ = ["Rates"]

_MOST: Final = 10_000
"""The most buckets. The one that was used longest ago is dropped."""


class Rates:
    """Limits requests per name. A burst of one second's requests is allowed.

    Args:
        per_second: Requests per second and name.
        clock: Returns seconds.

    Example:
        >>> rates = Rates(2, clock=lambda: 5.0)
        >>> [rates.wait("ann"), rates.wait("ann"), rates.wait("ann"), rates.wait("bob")]
        [0.0, 0.0, 0.5, 0.0]
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        check_above("per_second", per_second)
        self._rate = per_second
        self._burst = max(1.0, per_second)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, name: str) -> float:
        """Count one request; returns 0 if it is allowed, else the seconds until the next one is."""
        now = self._clock()
        left, then = self._buckets.get(name, (self._burst, now))
        left = min(self._burst, left + (now - then) * self._rate)
        allowed = left >= 1
        self._buckets[name] = (left - 1 if allowed else left, now)
        self._buckets.move_to_end(name)
        if len(self._buckets) > _MOST:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self._rate

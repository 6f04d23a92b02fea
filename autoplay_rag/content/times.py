"""Times as payloads name them."""

from __future__ import annotations

import math
from typing import Final

__all__ = ["own_time"]

_LATEST: Final = 1e11
"""Unix seconds of the year 5138: larger numbers are milliseconds or smaller units."""


def own_time(at: float) -> float:
    """Convert a payload's time from seconds, milli-, micro- or nanoseconds to Unix seconds.

    Example:
        >>> own_time(1712345678.5), own_time(1712345678500.0)
        (1712345678.5, 1712345678.5)
    """
    while _LATEST < at < math.inf:
        at /= 1000
    return at

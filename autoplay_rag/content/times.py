"""Times as payloads name them."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Final

__all__ = ["own_time", "said_time"]

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


def said_time(at: float | None) -> str:
    """A time for a reader, to the minute and with its zone; "" if it is unknown.

    Example:
        >>> said_time(1712345678.5), said_time(None)
        ('2024-04-05 19:34 UTC', '')
    """
    try:
        return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC" if at else ""
    except (OverflowError, ValueError, OSError):
        return ""

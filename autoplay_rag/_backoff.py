"""How long to wait after a failure: the one rule for all retries. Pure, but for the jitter."""

from __future__ import annotations

import random
from typing import Final

__all__ = ["grown_delay"]

_MOST_DOUBLINGS: Final = 60
"""2.0**1024 would overflow; the maximum decides long before."""


def grown_delay(
    failures: int,
    shortest: float,
    longest: float,
    *,
    jitter: tuple[float, float] = (0.75, 1.0),
    random_source: random.Random | None = None,
) -> float:
    """Seconds to wait: doubles with each failure up to a maximum, then is spread at random.

    Args:
        failures: Failures in a row before this one; 0 gives about `shortest`.
        shortest: Seconds after the first failure.
        longest: The most seconds, before jitter.
        jitter: The factor is drawn evenly from this range.
        random_source: The source of the jitter; the module's own if None.

    Example:
        >>> grown_delay(3, 1.0, 30.0, jitter=(1.0, 1.0)), grown_delay(9, 1.0, 30.0, jitter=(1.0, 1.0))
        (8.0, 30.0)
    """
    grown = min(longest, shortest * 2.0 ** min(failures, _MOST_DOUBLINGS))
    return grown * (random_source or random).uniform(*jitter)

"""The pace at which recorded events are sent. Pure: time is an argument."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Pace"]


@dataclass(frozen=True, slots=True)
class Pace:
    """An average rate of events.

    A delayed subscriber catches up. The first event is due at once.

    Attributes:
        rate: Events per second; None for no limit.

    Example:
        >>> Pace(10.0).allowed(elapsed=0.25, sent=1)
        2
        >>> Pace(10.0).due_in(elapsed=0.25, sent=3)
        0.05
    """

    rate: float | None

    def allowed(self, elapsed: float, sent: int) -> float:
        """Return how many events may be sent now.

        Args:
            elapsed: Seconds since the first event was due.
            sent: The number of events sent so far.
        """
        if self.rate is None:
            return math.inf
        return max(0, math.floor(elapsed * self.rate) + 1 - sent)

    def due_in(self, elapsed: float, sent: int) -> float:
        """Return the seconds until the next event is due; 0 if it is due now."""
        return 0.0 if self.rate is None else max(0.0, round(sent / self.rate - elapsed, 6))

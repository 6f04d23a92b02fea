"""How many recorded events may go out by now (pure: time is an argument)."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Pace"]


@dataclass(frozen=True, slots=True)
class Pace:
    """A rate kept on the average.

    Who was held up catches up; the first event is due at once.

    Attributes:
        rate: Events a second; None is without limit.

    Example:
        >>> Pace(10.0).allowed(elapsed=0.25, sent=1)
        2
        >>> Pace(10.0).due_in(elapsed=0.25, sent=3)
        0.05
    """

    rate: float | None

    def allowed(self, elapsed: float, sent: int) -> float:
        """How many events may go now.

        Args:
            elapsed: Seconds since the first one was due.
            sent: How many have gone.
        """
        if self.rate is None:
            return math.inf
        return max(0, math.floor(elapsed * self.rate) + 1 - sent)

    def due_in(self, elapsed: float, sent: int) -> float:
        """Seconds until the next event is due; 0 if it is."""
        return 0.0 if self.rate is None else max(0.0, round(sent / self.rate - elapsed, 6))

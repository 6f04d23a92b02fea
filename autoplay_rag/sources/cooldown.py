"""One pause for all requests to a server that fails or asks to be left alone. Pure."""

from __future__ import annotations

import random
from typing import Final

from autoplay_rag._backoff import grown_delay

__all__ = ["Cooldown"]

_SHORTEST: Final = 1.0
_LONGEST: Final = 60.0


class Cooldown:
    """The time before which nothing is sent.

    Requests that fail together count as one failure: those in flight when a pause began do not
    make it longer, unless the server asks for more.

    Args:
        random_source: The source of the jitter; the module's own if None.

    Attributes:
        failures: Failures in a row.

    Example:
        >>> cooldown = Cooldown()
        >>> cooldown.failed(now=0.0, retry_after=7.0)
        >>> cooldown.left(now=0.0) >= 7.0, cooldown.left(now=60.0)
        (True, 0.0)
    """

    def __init__(self, *, random_source: random.Random | None = None) -> None:
        self.failures = 0
        self._random = random_source or random.Random()  # noqa: S311 - spreads requests, guards nothing
        self._until = float("-inf")

    def left(self, now: float) -> float:
        """Return the seconds until something may be sent."""
        return max(0.0, self._until - now)

    def failed(self, now: float, retry_after: float | None = None) -> None:
        """Note a failure that a retry may fix.

        Args:
            now: The time.
            retry_after: The seconds that the server asked for, if it did.
        """
        asked = now + (retry_after or 0.0) * self._random.uniform(1.0, 1.1)
        if now >= self._until:
            grown = grown_delay(self.failures, _SHORTEST, _LONGEST, random_source=self._random)
            self.failures += 1
            self._until = now + grown
        self._until = max(self._until, asked)

    def pause(self, now: float, seconds: float) -> None:
        """Pause for a time that is known."""
        self._until = max(self._until, now + seconds)

    def succeeded(self) -> None:
        """Note an answer: the count of failures restarts."""
        self.failures = 0

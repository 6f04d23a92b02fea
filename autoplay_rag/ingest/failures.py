"""Whose fault a failure is: the service's, or the input's. Pure.

An outage is retried for as long as it lasts and counts against no payload. Only what a service
refuses for its content may cost a payload its place.
"""

from __future__ import annotations

import random
from typing import Any

from autoplay_rag._retry_after import LONGEST_PAUSE, parse_retry_after
from autoplay_rag.errors import (
    AutoplayError,
    EmbedderRejectedError,
    StoreRejectedError,
)

__all__ = ["Pause", "is_rejection", "retry_after"]

_REJECTING_STATUS = frozenset({400, 413, 422})
# What code raises that stumbles over a value; anything else may pass another time.
_REJECTING_ERRORS = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError)


def is_rejection(error: BaseException) -> bool:
    """Whether the input is to blame: 400, 413, 422, or an error like ValueError.

    Everything else is an outage: connection errors, timeouts, 401, 403, 404, 408, 429, 5xx, a
    store of the wrong kind, and whatever is not known.

    Example:
        >>> is_rejection(ValueError("bad metadata")), is_rejection(ConnectionError())
        (True, False)
    """
    if isinstance(error, EmbedderRejectedError | StoreRejectedError):
        return True
    if isinstance(error, AutoplayError):
        return False
    status = _status(error)
    if status is not None:
        return status in _REJECTING_STATUS
    return isinstance(error, _REJECTING_ERRORS) and not isinstance(error, OSError)


def retry_after(error: BaseException) -> float:
    """Seconds the service asked us to wait; 0 if it did not say. At most an hour counts."""
    asked: Any = getattr(error, "retry_after", None)
    if isinstance(asked, int | float):
        return min(max(float(asked), 0.0), LONGEST_PAUSE)
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    return parse_retry_after(headers.get("retry-after"), longest=LONGEST_PAUSE) or 0.0


def _status(error: BaseException) -> int | None:
    for holder in (error, getattr(error, "response", None)):
        status = getattr(holder, "status_code", None)
        if isinstance(status, int):
            return status
    return None


class Pause:
    """How long everything waits together while a service is out.

    Args:
        shortest: Seconds after the first failure.
        longest: Seconds it grows to, doubling.
    """

    def __init__(self, shortest: float = 0.5, longest: float = 30.0) -> None:
        self._shortest = shortest
        self._longest = longest
        self.failures = 0
        self.until = 0.0
        self._set_at = float("-inf")

    def failed(self, started: float, now: float, asked: float = 0.0) -> None:
        """A request that was started at `started` found the service out.

        Requests already on their way when the pause began say nothing new: several that hit
        the same rate limit are one failure.
        """
        if started >= self._set_at:
            self.failures += 1
            grown = min(self._shortest * 2 ** min(self.failures - 1, 16), self._longest)
            self.until = now + grown * random.uniform(0.8, 1.2)  # noqa: S311 - spreads retries
            self._set_at = now
        self.until = max(self.until, now + asked)

    def passed(self) -> None:
        """A request went through."""
        self.failures = 0
        self.until = 0.0

"""What an error of an embedder or a store means: an outage, or input that is never accepted. Pure."""

from __future__ import annotations

from typing import Any, Final

from autoplay_rag._retry_after import LONGEST_PAUSE, parse_retry_after
from autoplay_rag._statuses import REJECTING_STATUSES
from autoplay_rag.errors import AutoplayError, EmbedderRejectedError, StoreRejectedError

__all__ = ["is_forbidden", "is_rejection", "retry_after", "status_of"]

_FORBIDDEN: Final = 403
_REJECTIONS: Final = (EmbedderRejectedError, StoreRejectedError, NotImplementedError)
# Errors of code that fails on a value. Other errors may be transient.
_VALUE_ERRORS: Final = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError)


def is_rejection(error: BaseException) -> bool:
    """Whether the input caused the error: status 400, 413, 422, or an error like ValueError.

    A missing capability of the store (`NotImplementedError`) is a rejection too, because a retry
    does not help. Everything else is an outage: connection errors, timeouts, status 401, 403, 404,
    408, 429, 5xx, a mismatched store, and unknown errors.

    Example:
        >>> is_rejection(ValueError("bad metadata")), is_rejection(ConnectionError())
        (True, False)
    """
    if isinstance(error, _REJECTIONS):
        return True
    if isinstance(error, AutoplayError):
        return False
    status = status_of(error)
    if status is not None:
        return status in REJECTING_STATUSES
    return isinstance(error, _VALUE_ERRORS) and not isinstance(error, OSError)


def is_forbidden(error: BaseException) -> bool:
    """Whether the credentials do not allow this kind of request: 403, or a `PermissionError`.

    For an upsert this is an outage. For an update or a delete it is a rejection: with a key that
    may only add, each retry fails the same way.

    Example:
        >>> is_forbidden(PermissionError("upserts only")), is_forbidden(ConnectionError())
        (True, False)
    """
    return isinstance(error, PermissionError) or status_of(error) == _FORBIDDEN


def retry_after(error: BaseException) -> float:
    """Return the seconds that the service asked to wait, at most an hour; 0 if it did not ask.

    Example:
        >>> from autoplay_rag.errors import EmbedderUnavailableError
        >>> retry_after(EmbedderUnavailableError("rate limit", retry_after=7)), retry_after(OSError())
        (7.0, 0.0)
    """
    asked: Any = getattr(error, "retry_after", None)
    if isinstance(asked, int | float):
        return min(max(float(asked), 0.0), LONGEST_PAUSE)
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    return parse_retry_after(headers.get("retry-after"), longest=LONGEST_PAUSE) or 0.0


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that an error or its response carries; None if there is none."""
    for holder in (error, getattr(error, "response", None)):
        status = getattr(holder, "status_code", None)
        if isinstance(status, int):
            return status
    return None

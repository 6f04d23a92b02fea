"""An error of a store in its worker process as a reply, and that reply as an error of the parent."""

from __future__ import annotations

from autoplay_rag._describe import describe
from autoplay_rag._failures import is_forbidden, is_rejection, retry_after, status_of
from autoplay_rag.errors import (
    AutoplayError,
    ConfigurationError,
    MissingCapabilityError,
    StoreMismatchError,
    StoreRejectedError,
    StoreUnavailableError,
    UnsupportedFilterError,
)
from autoplay_rag.stores.process.frames import Failed, Reply

__all__ = ["error_of", "failure_of"]

_FORBIDDEN = 403
_ERRORS: dict[str, type[AutoplayError]] = {
    "configuration": ConfigurationError,
    "filter": UnsupportedFilterError,
    "mismatch": StoreMismatchError,
    "rejected": StoreRejectedError,
}


def failure_of(error: BaseException) -> Failed:
    """Return the reply for an error of the store.

    Example:
        >>> failure_of(ValueError("bad metadata")).kind, failure_of(ConnectionError()).kind
        ('rejected', 'unavailable')
    """
    message = str(error) if isinstance(error, AutoplayError) else describe(error)
    if isinstance(error, MissingCapabilityError):
        return Failed(kind="capability", message=error.capability)
    if isinstance(error, UnsupportedFilterError):
        return Failed(kind="filter", message=message)
    if isinstance(error, StoreMismatchError):
        return Failed(kind="mismatch", message=message)
    if isinstance(error, ConfigurationError):
        return Failed(kind="configuration", message=message)
    if is_rejection(error):
        return Failed(kind="rejected", message=message)
    return Failed(
        kind="unavailable",
        message=message,
        status=_FORBIDDEN if is_forbidden(error) else status_of(error),
        retry_after=retry_after(error) or None,
    )


def error_of(reply: Reply) -> AutoplayError | None:
    """Return the error that a reply stands for; None if it is an answer.

    Example:
        >>> error_of(Failed(kind="rejected", message="bad metadata"))
        StoreRejectedError('bad metadata')
    """
    if not isinstance(reply, Failed):
        return None
    if reply.kind == "capability":
        return MissingCapabilityError("the store in the worker process", reply.message)
    if reply.kind == "unavailable":
        return StoreUnavailableError(
            reply.message, retry_after=reply.retry_after, status_code=reply.status
        )
    return _ERRORS[reply.kind](reply.message)

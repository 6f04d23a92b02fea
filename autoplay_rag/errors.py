"""Every error this package raises on purpose.

    AutoplayError
    ├── ConfigurationError (ValueError)          an argument or a setting that cannot work
    │   └── MissingExtraError (ImportError)      an optional package is not installed
    ├── DecodeError (ValueError)                 bytes that are no payload
    │   └── UnknownPayloadError                  a payload of a type this version does not know
    ├── RecordingError (ValueError)              a line of a recording that cannot be read
    ├── ConnectorError
    │   ├── ConnectorStatusError (httpx.HTTPStatusError)   the connector refused, for good
    │   │   ├── NotStreamModeError               400: the product is not in stream mode
    │   │   ├── AuthenticationError              401, 403
    │   │   └── ProductNotFoundError             404
    │   ├── TransientError                       429, 5xx, the end of a stream: retried
    │   ├── NotAnEventStreamError                a 200 that is something else
    │   ├── RedirectError                        a redirect the token must not follow
    │   └── RetriesExhaustedError (RuntimeError)
    ├── ClientStateError (RuntimeError)          a client used in the wrong order
    ├── WebhookError (ValueError)
    │   ├── SignatureError                       a delivery that is not signed with the secret
    │   └── BodyTooLargeError                    a delivery over `max_body_bytes`
    ├── EmbedderError
    │   ├── EmbedderUnavailableError             an outage: the same request may pass later
    │   └── EmbedderRejectedError (ValueError)   this input will never pass
    ├── StoreError
    │   ├── StoreUnavailableError                an outage: the same request may pass later
    │   │   └── StoreLockedError                 another process owns the store
    │   ├── StoreRejectedError (ValueError)      this input will never pass
    │   ├── StoreMismatchError                   another model's vectors, or not this journal's store
    │   ├── MissingCapabilityError (NotImplementedError)  the store cannot do this at all
    │   └── UnsupportedFilterError (ValueError)  a filter the store cannot translate
    ├── BrokerError                              Kafka's broker does not answer, or refuses
    ├── JournalError
    │   ├── FencedError                          another process works on these sessions now
    │   ├── JournalLockedError                   another process writes it
    │   ├── JournalDamagedError                  set aside under a new name
    │   ├── JournalFullError                     no room for a message of a topic, which stays there
    │   └── JournalVersionError                  written by another version
    ├── BackupError                              a backup that cannot be written or restored
    ├── ReembedError                             the new model cannot replace the old one
    ├── PipelineError
    │   ├── PipelineClosedError (RuntimeError)   a payload came after the pipeline had ended
    │   └── DrainTimeoutError (TimeoutError)     time ran out before all was stored
    └── ServerError                              `ServeClient`: an answer that cannot be used
        ├── ServerUnavailableError               no answer in time, 429, 5xx: may pass later
        └── ServerAccessError                    401, 403: the key or token does not allow it

No message holds a token or a payload's text.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import httpx

__all__ = [
    "AuthenticationError",
    "AutoplayError",
    "BackupError",
    "BodyTooLargeError",
    "BrokerError",
    "ClientStateError",
    "ConfigurationError",
    "ConnectorError",
    "ConnectorStatusError",
    "DecodeError",
    "DrainTimeoutError",
    "EmbedderError",
    "EmbedderRejectedError",
    "EmbedderUnavailableError",
    "FencedError",
    "JournalDamagedError",
    "JournalError",
    "JournalFullError",
    "JournalLockedError",
    "JournalVersionError",
    "MissingCapabilityError",
    "MissingExtraError",
    "NotAnEventStreamError",
    "NotStreamModeError",
    "PipelineClosedError",
    "PipelineError",
    "ProductNotFoundError",
    "RecordingError",
    "RedirectError",
    "ReembedError",
    "RetriesExhaustedError",
    "ServerAccessError",
    "ServerError",
    "ServerUnavailableError",
    "SignatureError",
    "StoreError",
    "StoreLockedError",
    "StoreMismatchError",
    "StoreRejectedError",
    "StoreUnavailableError",
    "TransientError",
    "UnknownPayloadError",
    "UnsupportedFilterError",
    "WebhookError",
]


class AutoplayError(Exception):
    """The root: catches everything this package raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        # The usual way calls the class with the message, and many are not made of one.
        return _restore, (type(self), self.args, self.__dict__)


class ConfigurationError(AutoplayError, ValueError):
    """An argument or a setting that cannot work."""


class MissingExtraError(ConfigurationError, ImportError):
    """An optional package is not installed; the message has the line that installs it."""

    def __init__(self, what: str, extra: str, *, package: str = "autoplay-rag") -> None:
        super().__init__(f"{what} needs an extra: pip install '{package}[{extra}]'")
        self.extra = extra


class DecodeError(AutoplayError, ValueError):
    """Bytes that are no payload."""


class UnknownPayloadError(DecodeError):
    """A well-formed event of a type this version does not know.

    Attributes:
        type: What the event said it was.
    """

    def __init__(self, type: str) -> None:
        super().__init__(f"unknown payload type {type[:80]!r}")
        self.type = type


class RecordingError(AutoplayError, ValueError):
    """A line of a recording, or a whole file, that cannot be read; the message has file and line."""


class ConnectorError(AutoplayError):
    """Something about the connection to the connector."""


class ConnectorStatusError(ConnectorError, httpx.HTTPStatusError):
    """The connector refused in a way that no retry will change.

    Its `request` is a copy without headers, userinfo and query, so that no secret travels with
    the error.

    Attributes:
        status_code: The HTTP status.
    """

    def __init__(self, message: str, *, response: httpx.Response) -> None:
        url = response.request.url.copy_with(userinfo=b"", query=None, fragment=None)
        request = httpx.Request(response.request.method, url)
        bare = httpx.Response(response.status_code, request=request)
        super().__init__(message, request=request, response=bare)
        self.status_code = response.status_code


class NotStreamModeError(ConnectorStatusError):
    """400: the product exists, but is not in stream mode."""


class AuthenticationError(ConnectorStatusError):
    """401 or 403: the token is missing, wrong, or not good for this product."""


class ProductNotFoundError(ConnectorStatusError):
    """404: the connector knows no such product."""


class TransientError(ConnectorError):
    """Something that may be otherwise at the next attempt (429, 5xx, the end of a stream).

    A client retries after it. It shows as `last_error`, and as the cause of a
    `RetriesExhaustedError`.

    Attributes:
        retry_after: Seconds the server asked us to wait, if it did.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotAnEventStreamError(ConnectorError):
    """The server answered 200, but with something that is no plain event stream."""


class RedirectError(ConnectorError):
    """A redirect that is not followed.

    It leads to another origin, which must not be given the token; or its `Location` is missing or
    invalid; or it is one of too many.
    """


class RetriesExhaustedError(ConnectorError, RuntimeError):
    """`max_retries` retries in a row failed too; the last failure is the cause."""


class ClientStateError(AutoplayError, RuntimeError):
    """A client used in the wrong order, such as two runs at once."""


class WebhookError(AutoplayError, ValueError):
    """A delivery of push mode that is refused."""


class SignatureError(WebhookError):
    """A delivery that is not signed with the secret; answer it with 401."""


class BodyTooLargeError(WebhookError):
    """A delivery over `max_body_bytes`; answer it with 413."""

    def __init__(self, max_body_bytes: int) -> None:
        super().__init__(f"the body is larger than max_body_bytes={max_body_bytes}")


class EmbedderError(AutoplayError):
    """Something about turning text into vectors."""


class EmbedderUnavailableError(EmbedderError):
    """An outage: the same request may pass later.

    Attributes:
        retry_after: Seconds the service asked us to wait, if it did.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EmbedderRejectedError(EmbedderError, ValueError):
    """The service will never take this input."""


class StoreError(AutoplayError):
    """Something about the vector store."""


class StoreUnavailableError(StoreError):
    """An outage: the same request may pass later.

    Attributes:
        retry_after: Seconds the service behind the store asked us to wait, if it did.
        status_code: The HTTP status that the service answered with, if it is known.
    """

    def __init__(
        self, *args: object, retry_after: float | None = None, status_code: int | None = None
    ) -> None:
        super().__init__(*args)
        self.retry_after = retry_after
        self.status_code = status_code


class StoreLockedError(StoreUnavailableError):
    """Another process owns the store."""


class StoreRejectedError(StoreError, ValueError):
    """The store will never take this input."""


class StoreMismatchError(StoreError):
    """The store holds vectors of another model, or is not the one the journal belongs to."""


class MissingCapabilityError(StoreError, NotImplementedError):
    """The store cannot do this at all; see `autoplay_rag.stores.Capability`.

    Attributes:
        capability: What was asked for.
    """

    def __init__(self, store: str, capability: str) -> None:
        super().__init__(f"{store} has no {capability!r}")
        self.capability = capability


class UnsupportedFilterError(StoreError, ValueError):
    """A filter the store cannot translate; it is never searched unfiltered instead."""


class BrokerError(AutoplayError):
    """Kafka's broker does not answer, or refuses.

    Attributes:
        code: The name of Kafka's error code; "" without one.
    """

    def __init__(self, message: str, *, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class JournalError(AutoplayError):
    """Something about the journal file."""


class FencedError(JournalError):
    """Another process works on these partitions now, so this one writes nothing for them.

    Attributes:
        partitions: The numbers of the partitions.
    """

    def __init__(self, message: str, *, partitions: Iterable[int] = ()) -> None:
        super().__init__(message)
        self.partitions = frozenset(partitions)


class JournalLockedError(JournalError):
    """Another process writes this journal."""


class JournalDamagedError(JournalError):
    """The journal could not be read; it was set aside under the name in the message."""


class JournalFullError(JournalError):
    """There is no room for messages of a topic. They stay in the topic until there is."""


class JournalVersionError(JournalError):
    """The journal was written by another version of this package."""


class BackupError(AutoplayError):
    """A backup that cannot be written, is not complete, or cannot be restored."""


class ReembedError(AutoplayError):
    """The new model refused chunks. The old vectors stay in use."""


class PipelineError(AutoplayError):
    """Something about the ingestion pipeline as a whole."""


class PipelineClosedError(PipelineError, RuntimeError):
    """A payload came before the pipeline was started or after it had ended."""


class DrainTimeoutError(PipelineError, TimeoutError):
    """Time ran out before everything accepted was stored; the message says what is left."""


class ServerError(AutoplayError):
    """An answer to a `ServeClient` that cannot be used; the URL may be of another server."""


class ServerUnavailableError(ServerError):
    """The server is stopped, did not answer in time, or is overloaded: retry later.

    Attributes:
        retry_after: Seconds the server asked us to wait, if it did.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ServerAccessError(ServerError):
    """The key or token is missing, wrong or expired, or does not allow this request."""


def _restore(cls: type[AutoplayError], args: tuple[Any, ...], state: dict[str, Any]) -> Any:
    """The error another process, or a copy, made of these."""
    error = cls.__new__(cls, *args)
    error.__dict__.update(state)
    return error

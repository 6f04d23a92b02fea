"""Retry or fatal, and how long to wait. Nothing here reads a clock or touches a socket."""

from __future__ import annotations

import random
from typing import Final, Literal, TypeAlias

import httpx

from autoplay_rag._backoff import grown_delay
from autoplay_rag.errors import (
    ConnectorStatusError,
    NotAnEventStreamError,
    ProductNotFoundError,
    RedirectError,
    TransientError,
)

__all__ = [
    "LONGEST_WAIT",
    "MOST_REFUSALS",
    "Backoff",
    "Verdict",
    "classify",
]

Verdict: TypeAlias = Literal["stream", "redirect", "retry", "refused", "fatal"]

LONGEST_WAIT: Final = 300.0
"""Seconds. What a server asks for (`retry:`, `Retry-After`) is followed up to here, so that a
wrong number in one answer cannot silence a client for days."""

MOST_REFUSALS: Final = 5
"""Retries after refusals in a row, once a stream had been given. With the default settings they
take two and a half minutes."""

_PROVEN_AFTER: Final = 5.0
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
# Of the 4xx, those that speak of this moment and not of the request.
_PASSING: Final = frozenset({408, 409, 421, 423, 425, 429})


def classify(outcome: int | BaseException, *, worked: bool = False) -> Verdict:
    """What to do after an attempt to connect, or after a connection broke.

    Args:
        outcome: The HTTP status of the answer, or the exception that ended the attempt.
        worked: Whether the same request gave a stream before: then a page instead of one, or a
            404, is a maintenance or a deployment, and passes. Any other refusal may come from a
            firewall, or from a token service that restarts.

    Returns:
        "stream" (read it), "redirect", "retry" (wait and connect again), "refused" (try again
        slowly, `MOST_REFUSALS` times in a row) or "fatal".

    Example:
        >>> classify(503), classify(401), classify(ConnectionResetError())
        ('retry', 'fatal', 'retry')
    """
    if isinstance(outcome, int):
        if outcome == httpx.codes.OK:
            return "stream"
        if outcome in _REDIRECTS:
            return "redirect"
        passing = outcome in _PASSING or outcome >= httpx.codes.INTERNAL_SERVER_ERROR
        return "retry" if passing else "fatal"
    if isinstance(outcome, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
        return "fatal"  # our own request is at fault: it will be the same the next time
    if isinstance(outcome, NotAnEventStreamError | ProductNotFoundError):
        verdict: Verdict = "retry" if worked else "fatal"
    elif isinstance(outcome, ConnectorStatusError | RedirectError):
        verdict = "refused" if worked else "fatal"
    else:
        passing = isinstance(outcome, TransientError | httpx.TransportError | OSError)
        verdict = "retry" if passing else "fatal"
    return verdict


class Backoff:
    """How long to wait before the next attempt: doubling from `initial` to `maximum`, with jitter.

    The count of failures starts anew only after a connection that proved itself: it held for five
    seconds, and brought a byte (a comment is enough) or was ended by the other side. A server that
    takes connections and closes them at once is thus not hammered, and a proxy that ends every
    connection after some seconds is no failure.

    Attributes:
        failures: Attempts and short connections since the last one that proved itself.

    Example:
        >>> backoff = Backoff(1.0, 30.0)
        >>> 0.75 <= backoff.next_delay() <= 1.0 and 1.5 <= backoff.next_delay() <= 2.0
        True
    """

    def __init__(
        self, initial: float, maximum: float, *, random_source: random.Random | None = None
    ) -> None:
        self.failures = 0
        self._initial = initial
        self._maximum = maximum
        self._asked: float | None = None
        self._random = random_source or random.Random()  # noqa: S311 - spreads clients, guards nothing

    def ask(self, milliseconds: int) -> None:
        """Take in the server's `retry:` field: the wait after a connection that had worked."""
        # Compared as integers first: a very long one is no float.
        self._asked = min(milliseconds, int(LONGEST_WAIT * 1000)) / 1000

    def connection_ended(self, *, lasted: float, silent: bool) -> None:
        """Start anew if the connection had proved itself.

        Args:
            lasted: Seconds it was open.
            silent: Whether it was given up because it never brought a byte.
        """
        if lasted >= _PROVEN_AFTER and not silent:
            self.failures = 0

    def refused(self) -> float:
        """Count a refusal and return the seconds to wait: the longest wait."""
        self.failures += 1
        return self._maximum * self._random.uniform(0.75, 1.0)

    def next_delay(self, retry_after: float | None = None) -> float:
        """Count a failure and return the seconds to wait.

        Args:
            retry_after: The least the server asked for, in seconds.
        """
        grown = grown_delay(self.failures, self._initial, self._maximum, jitter=(1.0, 1.0))
        least = max(self._asked or 0.0, retry_after or 0.0)
        if self._asked is not None and self.failures == 0:
            grown = self._asked
        self.failures += 1
        if least >= grown:
            # A server that names a time means no earlier one.
            return least * self._random.uniform(1.0, 1.1)
        return max(least, grown * self._random.uniform(0.75, 1.0))

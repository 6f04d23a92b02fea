"""Whether to retry, and how long to wait. No clock and no I/O."""

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
    "REFUSALS",
    "Backoff",
    "Verdict",
    "classify",
]

Verdict: TypeAlias = Literal["stream", "redirect", "retry", "refused", "fatal"]

LONGEST_WAIT: Final = 300.0
"""Seconds. Waits that a server asks for (`retry:`, `Retry-After`) are capped here, so that one
wrong number cannot stop a client for days."""

MOST_REFUSALS: Final = 5
"""The most retries after refusals in a row, once there was a stream. With the default settings
they take two and a half minutes."""

REFUSALS: Final = (ConnectorStatusError, RedirectError, NotAnEventStreamError)
"""What a connector answers that gives no stream and asks for no other attempt."""

_PROVEN_AFTER: Final = 5.0
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
# The 4xx that are temporary, not caused by the request itself.
_PASSING: Final = frozenset({408, 409, 421, 423, 425, 429})


def classify(outcome: int | BaseException, *, worked: bool = False) -> Verdict:
    """What to do after an attempt to connect, or after a connection broke.

    Args:
        outcome: The HTTP status of the answer, or the exception that ended the attempt.
        worked: Whether the same request got a stream before. Then a response that is not a
            stream, or a 404, is temporary: maintenance or a deployment. Any other refusal may
            come from a firewall, or from a token service that restarts.

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
        return "fatal"  # the request itself is invalid, so a retry would fail too
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

    The count of failures restarts only after a good connection: one that lasted five seconds, and
    received a byte (a comment is enough) or was ended by the other side. So a server that accepts
    connections and closes them at once is not flooded with attempts, and a proxy that ends every
    connection after some seconds does not count as a failure.

    Attributes:
        failures: Failed attempts and short connections since the last good connection.

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
        """Note the server's `retry:` field: the wait after a good connection."""
        # Compared as integers first: a very large one does not fit a float.
        self._asked = min(milliseconds, int(LONGEST_WAIT * 1000)) / 1000

    def connection_ended(self, *, lasted: float, silent: bool) -> None:
        """Restart the count of failures if the connection was good.

        Args:
            lasted: Seconds it was open.
            silent: Whether it timed out without having received a byte.
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
            # Jitter only upwards: the server asked for no earlier attempt.
            return least * self._random.uniform(1.0, 1.1)
        return max(least, grown * self._random.uniform(0.75, 1.0))

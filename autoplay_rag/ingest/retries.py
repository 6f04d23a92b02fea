"""Decides what follows a failed request: retry, split or fail. Pure: time is an argument.

During an outage, requests are retried until it ends, and no item counts as rejected. An item fails
only if a service rejects it because of its content.
"""

from __future__ import annotations

import heapq
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final, Generic, TypeVar

from autoplay_rag._backoff import grown_delay
from autoplay_rag._describe import describe
from autoplay_rag._failures import is_rejection, retry_after, status_of
from autoplay_rag._statuses import hint_of
from autoplay_rag.errors import AutoplayError

__all__ = [
    "Pause",
    "Request",
    "RequestLimits",
    "RetryQueue",
]

T = TypeVar("T")

_log = logging.getLogger(__name__)

_SHORTEST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 30.0
_LONE_RETRY_SECONDS: Final = 0.2
_LONGEST_LONE_RETRY_SECONDS: Final = 30.0

_LASTING_SECONDS: Final = 20.0
"""An outage of this length is logged as an error. The pauses grow, so the first failure after this
time, which logs the error, comes within a minute."""


class Pause:
    """The pause of all requests to a service during its outage.

    Args:
        shortest: Seconds to wait after the first failure.
        longest: The most seconds to wait. The wait doubles with each failure up to this.

    Attributes:
        failures: Consecutive failures.
        until: No request starts before this time.

    Example:
        >>> pause = Pause(shortest=1.0)
        >>> pause.failed(started=10.0, now=11.0)
        >>> 11.8 <= pause.until <= 12.2
        True
    """

    def __init__(self, shortest: float = _SHORTEST_PAUSE, longest: float = _LONGEST_PAUSE) -> None:
        self._shortest = shortest
        self._longest = longest
        self.failures = 0
        self.until = 0.0
        self._set_at = float("-inf")

    def failed(self, started: float, now: float, asked: float = 0.0) -> None:
        """Record a request that failed because of an outage.

        Concurrent requests that hit the same rate limit count as one failure: a request that
        began before the pause was set does not lengthen it.

        Args:
            started: When the request began.
            now: When it failed.
            asked: Seconds that the service asked to wait.
        """
        if started >= self._set_at:
            wait = grown_delay(self.failures, self._shortest, self._longest, jitter=(0.8, 1.2))
            self.failures += 1
            self.until = now + wait
            self._set_at = now
        self.rest(now + asked)

    def rest(self, until: float) -> None:
        """Extend the pause to `until`, independently of failures."""
        self.until = max(self.until, until)

    def passed(self) -> None:
        """Record a success: end the pause."""
        self.failures = 0
        self.until = 0.0


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """The limits of one request.

    Attributes:
        count: The most items.
        cost: The highest total cost (tokens) of the items. An item above it is sent alone.
    """

    count: int
    cost: int


@dataclass(slots=True)
class _Record:
    """The attempts of an item that was rejected alone."""

    attempts: int = 0
    tries: int = 0
    seen_successes: int = 0


@dataclass(slots=True, eq=False)
class Request(Generic[T]):
    """Items to send to the service together, as returned by `RetryQueue.take`.

    Attributes:
        items: The items, at least one.
        started: When the request began.
        needs_probe: Whether to probe the service first, with input that any healthy service
            accepts. True if the item was rejected alone and nothing has succeeded since.
    """

    items: list[T]
    started: float
    needs_probe: bool = False
    record: _Record | None = None


class RetryQueue(Generic[T]):
    """Decides which items to send to a service next, and what to do with them after a failure.

    After an outage error, the items return to the queue and all requests pause. During the outage,
    one request at a time tests the service. An outage is logged once as a warning, and once as an
    error if it lasts.

    A rejection splits the request in halves until each holds one item. An item that is rejected
    alone waits, longer each time, while others go first. It fails after `max_attempts` rejections
    with another success before each except the first: this shows that the item is the cause and
    not the service.

    The caller ends every request that `take` returned with exactly one call of `succeeded`,
    `failed`, `unhealthy` or `withdrawn`.

    Args:
        name: The service in log lines and errors, "embedder" or "store".
        limits: The limits of one request.
        max_attempts: The rejections of an item alone until it fails.
        cost: Returns the cost of an item, in the unit of `limits.cost`; by default items have no
            cost.
        take_back: Called with an item that was rejected alone. True means that the owner takes
            it back and the item leaves the queue.
        pause: The pause during outages.

    Attributes:
        problem: The current problem of the service in one line; None if there is none.

    Example:
        >>> queue = RetryQueue("store", RequestLimits(count=10, cost=0), max_attempts=1)
        >>> queue.put(["a", "b"])
        >>> both = queue.take(now=0.0)
        >>> queue.failed(both, ValueError("bad metadata"), now=1.0)  # split in halves
        >>> queue.failed(queue.take(now=1.0), ValueError("bad metadata"), now=2.0)
        'store: ValueError: bad metadata'
        >>> queue.take(now=2.0).items
        ['b']
    """

    def __init__(
        self,
        name: str,
        limits: RequestLimits,
        max_attempts: int,
        *,
        cost: Callable[[T], int] | None = None,
        take_back: Callable[[T], bool] | None = None,
        pause: Pause | None = None,
    ) -> None:
        self._name = name
        self._limits = limits
        self._max_attempts = max_attempts
        self._cost = cost
        self._take_back = take_back
        self._pause = pause or Pause()
        self._fresh: deque[T] = deque()
        self._halves: deque[list[T]] = deque()
        # Items rejected alone, as a heap of (due, number, item, record).
        self._waiting: list[tuple[float, int, T, _Record]] = []
        self._numbers = count()
        self._in_flight = 0
        self._successes = 0
        self._out_since: float | None = None
        self._lasts = False
        self.problem: str | None = None

    @property
    def is_out(self) -> bool:
        """Whether the last request failed by an outage. If so, one request at a time may start."""
        return self._pause.failures > 0

    def put(self, items: Iterable[T]) -> None:
        """Append items to the queue."""
        self._fresh.extend(items)

    def take(self, now: float) -> Request[T] | None:
        """Return the next request; None if none may start now."""
        pause = self._pause
        if pause.until > now or (pause.failures and self._in_flight):
            return None
        if self._halves:
            request = Request(self._halves.popleft(), now)
        elif self._waiting and self._waiting[0][0] <= now and self._goes_next(self._waiting[0][3]):
            _, _, item, record = heapq.heappop(self._waiting)
            request = Request([item], now, self._needs_probe(record), record)
        elif self._fresh:
            request = Request(self._take_fresh(), now)
        else:
            return None
        self._in_flight += 1
        return request

    def next_at(self, now: float) -> float | None:
        """Return when `take` will next return a request; None if it first needs another call."""
        if self._pause.failures and self._in_flight:
            return None
        if self._halves or self._fresh:
            return max(now, self._pause.until)
        if self._waiting:
            return max(now, self._pause.until, self._waiting[0][0])
        return None

    def succeeded(self, request: Request[T]) -> None:  # noqa: ARG002 - as `failed`
        """Record that the service accepted a request. Its items leave the queue."""
        self._in_flight -= 1
        self._passed()

    def probed(self) -> None:
        """Record a successful probe. It counts as the success of another item."""
        self._passed()

    def failed(self, request: Request[T], error: BaseException, now: float) -> str | None:
        """Decide what to do with the items of a request that failed.

        Returns:
            The error of the request's only item if it failed for good and left the queue. None if
            all items stay in the queue, or if the owner took the only item back.
        """
        self._in_flight -= 1
        if is_rejection(error):
            return self._rejected(request, error, now)
        if request.record is None:
            self._fresh.extendleft(reversed(request.items))
        else:
            self._wait(request.items[0], request.record, now)
        self._out(request, error, now)
        return None

    def unhealthy(self, request: Request[T], error: BaseException, now: float) -> None:
        """Record that the probe before a request failed: an outage, whatever the error is.

        The item waits again and others go first, because the success of another item is better
        evidence than a probe.
        """
        assert request.record is not None
        self._in_flight -= 1
        self._wait_longer(request.items[0], request.record, now)
        self._out(request, error, now)

    def withdrawn(self, request: Request[T]) -> None:  # noqa: ARG002 - as `failed`
        """Record that the caller ended all items of a request itself, without a call."""
        self._in_flight -= 1

    def reduced(self, request: Request[T], items: Sequence[T]) -> None:  # noqa: ARG002 - as `failed`
        """Record that the caller ended some items of a request itself, without a call.

        Args:
            request: The request.
            items: Its other items. They are the next to be sent.
        """
        self._in_flight -= 1
        self._fresh.extendleft(reversed(items))

    def rest(self, until: float) -> None:
        """Start no request before `until`, which the service asked for through another queue."""
        self._pause.rest(until)

    def renew(self, limits: RequestLimits) -> None:
        """Send the next requests to another service, with its limits. Its failures begin anew."""
        self._limits = limits
        self._end_outage()
        self.problem = None

    def clear(self) -> None:
        """Drop all items and reset the failures. No request may be in flight."""
        self._fresh.clear()
        self._halves.clear()
        self._waiting.clear()
        self._in_flight = 0
        self._end_outage()
        self.problem = None

    def _take_fresh(self) -> list[T]:
        fresh, most = self._fresh, self._limits.count
        if self._cost is None:
            if len(fresh) <= most:
                taken = list(fresh)
                fresh.clear()
                return taken
            return [fresh.popleft() for _ in range(most)]
        taken = []
        cost = 0
        while fresh and len(taken) < most:
            cost += self._cost(fresh[0])
            if taken and cost > self._limits.cost:
                break
            taken.append(fresh.popleft())
        return taken

    def _needs_probe(self, record: _Record) -> bool:
        return record.seen_successes == self._successes

    def _goes_next(self, record: _Record) -> bool:
        # Try another item instead of a probe first: its success is as good. This also prevents one
        # bad item from blocking all others if the service rejects the probe.
        return not (self._fresh and self._needs_probe(record))

    def _rejected(self, request: Request[T], error: BaseException, now: float) -> str | None:
        items = request.items
        if len(items) > 1:
            middle = len(items) // 2
            self._halves.extend((items[:middle], items[middle:]))
            return None
        if self._take_back is not None and self._take_back(items[0]):
            return None
        record = request.record or _Record()
        if not record.attempts or self._successes > record.seen_successes:
            record.attempts += 1
            record.seen_successes = self._successes
        if record.attempts >= self._max_attempts:
            self.problem = None
            return f"{self._name}: {describe(error)}"
        if record.attempts == record.tries == 1:
            # Rejected twice without a success in between: the service may reject everything.
            self.problem = describe(error)
            _log.warning(
                "the %s rejects a payload and has accepted nothing since (%s); retrying",
                self._name,
                self.problem,
            )
        self._wait_longer(items[0], record, now)
        return None

    def _wait_longer(self, item: T, record: _Record, now: float) -> None:
        delay = grown_delay(
            record.tries, _LONE_RETRY_SECONDS, _LONGEST_LONE_RETRY_SECONDS, jitter=(1.0, 1.0)
        )
        record.tries += 1
        self._wait(item, record, now + delay)

    def _wait(self, item: T, record: _Record, until: float) -> None:
        heapq.heappush(self._waiting, (until, next(self._numbers), item, record))

    def _out(self, request: Request[T], error: BaseException, now: float) -> None:
        asked = retry_after(error)
        self._pause.failed(request.started, now, asked)
        self.problem = _problem_of(error)
        if self._out_since is None:
            self._out_since = now
            _log.warning(
                "the %s is not available (%s); nothing is lost, requests are retried until it is back",
                self._name,
                self.problem,
            )
        elif not self._lasts and not asked and now - self._out_since >= _LASTING_SECONDS:
            # A wrong address, key or model looks like an outage that never ends.
            self._lasts = True
            _log.error(
                "the %s has failed for %.0f s%s (%s): check its address, its key and its settings; "
                "requests are still retried, and nothing is lost",
                self._name,
                now - self._out_since,
                "" if self._successes else " and has not worked since the start",
                self.problem,
            )

    def _passed(self) -> None:
        self._successes += 1
        if self.problem is not None:
            _log.warning("the %s is back", self._name)
            self.problem = None
        self._end_outage()

    def _end_outage(self) -> None:
        self._pause.passed()
        self._out_since = None
        self._lasts = False


def _problem_of(error: BaseException) -> str:
    """Return an error in one line, with a hint for the HTTP status if it has one."""
    # This package's own errors already contain the hint.
    hint = None if isinstance(error, AutoplayError) else hint_of(status_of(error))
    return f"{describe(error)}; {hint}" if hint else describe(error)

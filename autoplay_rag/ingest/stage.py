"""One step of the way to the store: requests that carry many pieces, and what follows failure.

Embedding and storing are both such a step. Pieces wait in a queue; a free worker takes as many
as one request may hold, so that requests grow with the load and no timer is needed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from autoplay_rag._cancelled import is_cancelled
from autoplay_rag._describe import describe
from autoplay_rag.ingest.failures import Pause, is_rejection, retry_after

__all__ = ["Limits", "Stage"]

T = TypeVar("T")
R = TypeVar("R")

_log = logging.getLogger(__name__)
_LONE_RETRY_SECONDS = 0.2
_LONGEST_LONE_RETRY_SECONDS = 30.0
_SLOW_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may hold.

    Attributes:
        count: The most pieces.
        cost: The most cost (tokens) of all of them.
    """

    count: int
    cost: int


@dataclass(slots=True, eq=False)
class _Task(Generic[T]):
    value: T
    attempts: int = 0
    tries: int = 0
    seen_successes: int = -1


class Stage(Generic[T, R]):
    """Carries out requests for pieces of work.

    An outage puts the pieces back and pauses every request of the stage together. A rejection
    splits the request in two until the culprit stands alone. A piece dies after `max_attempts`
    alone, each with another success in between: only then is it the piece and not the service.

    Args:
        name: For the log: "embedder" or "store".
        request: Carries out one request; returns one result for each piece.
        cost: What a piece costs, in the unit of `limits.cost`.
        limits: What one request may hold.
        concurrency: Requests in flight at most.
        max_attempts: Attempts alone until a piece is given up.
        on_done: Called with each piece and its result.
        on_dead: Called with a piece that is given up, and why.
        divide: Called with a piece that is rejected alone; True if it takes it back to divide it.
        probe: Makes a request that any healthy service takes: it stands for the other success
            where there is no other piece. False if there is no such request yet.
    """

    def __init__(
        self,
        name: str,
        request: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        *,
        cost: Callable[[T], int],
        limits: Limits,
        concurrency: int,
        max_attempts: int,
        on_done: Callable[[T, R], None],
        on_dead: Callable[[T, str], None],
        divide: Callable[[T], bool],
        probe: Callable[[], Awaitable[bool]],
    ) -> None:
        self._name = name
        self._request = request
        self._cost = cost
        self._limits = limits
        self._concurrency = concurrency
        self._max_attempts = max_attempts
        self._on_done = on_done
        self._on_dead = on_dead
        self._divide = divide
        self._probe = probe
        self._fresh: deque[_Task[T]] = deque()
        self._suspects: deque[list[_Task[T]]] = deque()
        self._changed = asyncio.Event()
        self._pause = Pause()
        self._in_flight: dict[_Task[T], float] = {}
        self._successes = 0
        self.retries = 0
        self._trouble: str | None = None

    @property
    def trouble(self) -> str | None:
        """What is wrong with the service, in one line; None while all is well."""
        if self._trouble is None and self._in_flight:
            waited = asyncio.get_running_loop().time() - min(self._in_flight.values())
            if waited > _SLOW_SECONDS:
                return f"a request has had no answer for {waited:.0f} s"
        return self._trouble

    def put(self, values: Iterable[T]) -> None:
        """Queue pieces."""
        self._fresh.extend(_Task(value) for value in values)
        self._changed.set()

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._concurrency):
                group.create_task(self._work())

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            tasks = await self._next()
            self._in_flight[tasks[0]] = loop.time()
            try:
                await self._carry_out(tasks)
            finally:
                del self._in_flight[tasks[0]]
                self._changed.set()
            if is_cancelled():
                raise asyncio.CancelledError  # which the request kept to itself

    async def _next(self) -> list[_Task[T]]:
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            wait = self._pause.until - loop.time()
            if wait <= 0 and not (self._pause.failures and self._in_flight):
                if tasks := self._take():
                    return tasks
                wait = 0
            # While the service is out one request at a time asks whether it is back.
            try:
                async with asyncio.timeout(wait if wait > 0 else None):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def _take(self) -> list[_Task[T]]:
        if self._suspects:
            return self._suspects.popleft()
        taken: list[_Task[T]] = []
        cost = 0
        while self._fresh and len(taken) < self._limits.count:
            cost += self._cost(self._fresh[0].value)
            if taken and cost > self._limits.cost:
                break
            taken.append(self._fresh.popleft())
        return taken

    async def _carry_out(self, tasks: list[_Task[T]]) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            if tasks[0].attempts and tasks[0].seen_successes == self._successes:
                await self._prove_healthy()
                started = loop.time()
            results = await self._request([task.value for task in tasks])
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            # Extensions written in Rust raise what is no Exception.
            if _is_ours(error):
                raise
            self.retries += 1
            if is_rejection(error) and not isinstance(error, _UnhealthyError):
                self._rejected(tasks, error)
            else:
                self._out(tasks, error, started, loop.time())
        else:
            self._successes += 1
            self._back()
            for task, result in zip(tasks, results, strict=True):
                self._on_done(task.value, result)

    async def _prove_healthy(self) -> None:
        """Before a lone piece is tried again: is it the piece, or the service?"""
        try:
            proven = await self._probe()
        except Exception as error:
            raise _UnhealthyError(describe(error)) from error
        self._successes += proven

    def _rejected(self, tasks: list[_Task[T]], error: BaseException) -> None:
        if len(tasks) > 1:
            middle = len(tasks) // 2
            self._suspects.extend((tasks[:middle], tasks[middle:]))
            return
        task = tasks[0]
        if self._divide(task.value):
            return
        if not task.attempts or self._successes > task.seen_successes:
            task.attempts += 1
            task.seen_successes = self._successes
        if task.attempts >= self._max_attempts:
            _log.error("%s: a payload was given up: %s", self._name, type(error).__name__)
            self._trouble = None
            self._on_dead(task.value, f"{self._name}: {describe(error)}")
            return
        if task.attempts == task.tries == 1:
            # It came again and nothing went through meanwhile: it may be all that is refused.
            self._trouble = describe(error)
            _log.warning(
                "the %s refuses a payload and has taken nothing since (%s); it is tried again",
                self._name,
                self._trouble,
            )
        # Others first: their success is what shows whose fault it is.
        wait = min(_LONE_RETRY_SECONDS * 2 ** min(task.tries, 16), _LONGEST_LONE_RETRY_SECONDS)
        task.tries += 1
        asyncio.get_running_loop().call_later(wait, self._suspect, task)

    def _suspect(self, task: _Task[T]) -> None:
        self._suspects.append([task])
        self._changed.set()

    def _out(self, tasks: list[_Task[T]], error: BaseException, started: float, now: float) -> None:
        if len(tasks) == 1 and tasks[0].attempts:
            self._suspects.appendleft(tasks)
        else:
            self._fresh.extendleft(reversed(tasks))
        self._pause.failed(started, now, retry_after(error))
        self._trouble = str(error) if isinstance(error, _UnhealthyError) else describe(error)
        if self._pause.failures == 1:
            _log.warning(
                "the %s is not available (%s); nothing is lost, it is retried until it is back",
                self._name,
                self._trouble,
            )

    def _back(self) -> None:
        if self._trouble is not None:
            _log.warning("the %s is back", self._name)
        self._trouble = None
        self._pause.passed()


def _is_ours(error: BaseException) -> bool:
    """Whether it is the stage that was cancelled, not something that its request awaited."""
    return isinstance(error, asyncio.CancelledError) and is_cancelled()


class _UnhealthyError(Exception):
    """Not even the probe went through."""

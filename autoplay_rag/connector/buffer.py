"""A buffer between the reader and a consumer that takes payloads one by one."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from typing import Any

from autoplay_rag.connector.metrics import Recorder
from autoplay_rag.connector.overflow import BoundedSink, Overflow
from autoplay_rag.payloads import Payload

__all__ = ["Patience", "PayloadBuffer"]


class Patience:
    """The deadline for further payloads. Pure: time is an argument.

    Args:
        seconds: The most seconds in total; None for no limit.
        idle: The most seconds while nothing arrives; None for no limit.

    Attributes:
        quiet_since: When something last arrived, or when the time began.

    Example:
        >>> patience = Patience(seconds=60.0, idle=10.0)
        >>> patience.begin(now=100.0)
        >>> patience.quiet_since = 104.0
        >>> patience.ends_at()
        114.0
    """

    def __init__(self, seconds: float | None, idle: float | None) -> None:
        self.quiet_since = math.inf
        self._seconds = math.inf if seconds is None else seconds
        self._idle = math.inf if idle is None else idle
        self._deadline = math.inf

    def begin(self, now: float) -> None:
        """Start the time."""
        self.quiet_since = now
        self._deadline = now + self._seconds

    def ends_at(self) -> float:
        """The deadline if nothing more arrives; infinity for never."""
        return min(self._deadline, self.quiet_since + self._idle)


class PayloadBuffer(BoundedSink):
    """A bounded queue that closes after a number of payloads, a time, or an idle time.

    Payloads received before it closed are still handed out.

    Args:
        recorder: See `BoundedSink`.
        wanted: How many payloads to hand out; None for no limit.
        seconds: Close after this many seconds; None for never.
        idle: Close after this many seconds without a payload or a connection, once the queue is
            empty; None for never.
        wants: Whether to hand out a payload. The others are counted as skipped. None hands out
            all.
        limit: See `BoundedSink`.
        overflow: See `BoundedSink`.
        on_drop: See `BoundedSink`.
    """

    def __init__(
        self,
        recorder: Recorder,
        *,
        wanted: int | None = None,
        seconds: float | None = None,
        idle: float | None = None,
        wants: Callable[[Payload], bool] | None = None,
        limit: int = 100_000,
        overflow: Overflow = "wait",
        on_drop: Callable[[Payload, int], Any] | None = None,
    ) -> None:
        super().__init__(limit, overflow, recorder, on_drop)
        self._payloads: deque[Payload] = deque()
        self._wanted = wanted
        self._wants = wants
        self._patience = Patience(seconds, idle)
        self._on_close: Callable[[], None] | None = None
        self._taken = 0
        self.closed = wanted == 0
        self._wakeup: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def start(self, on_close: Callable[[], None]) -> None:
        """Start the time; `on_close` is called once, when the buffer closes."""
        self._on_close = on_close
        self._patience.begin(self._loop.time())
        self._watch()

    def wants(self, payload: Payload) -> bool:
        """Whether to hand out a payload."""
        return self._wants is None or self._wants(payload)

    def put(self, payload: Payload) -> None:
        """Keep a payload until it is taken."""
        if self._wants is not None and not self._wants(payload):
            self._recorder.skipped("no_callback")
            self._patience.quiet_since = self._loop.time()
            return
        self._payloads.append(payload)
        self.pending += 1
        self._recorder.pending(self.pending)
        self._patience.quiet_since = self._loop.time()
        self._wake()
        if self._wanted is not None and self._taken + len(self._payloads) >= self._wanted:
            self.close()

    async def take(self) -> Payload | None:
        """The next payload; None when the buffer is closed and empty."""
        while (payload := self.take_nowait()) is None:
            if self.closed:
                return None
            self._wakeup = self._loop.create_future()
            await self._wakeup
        return payload

    def take_nowait(self) -> Payload | None:
        """The next payload; None when none waits. Saves a coroutine when one waits."""
        if not self._payloads:
            return None
        self._taken += 1
        self._freed()
        return self._payloads.popleft()

    def connection_made(self, gate: asyncio.Event | None) -> None:  # noqa: ARG002 - calls nothing back
        """Restart the idle time."""
        self._patience.quiet_since = self._loop.time()

    def close(self) -> None:
        """Accept no more payloads; those held can still be taken."""
        if self.closed:
            return
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._wake()
        if self._on_close is not None:
            self._on_close()

    def discard(self) -> None:
        """Drop the payloads that are left."""
        while (payload := self._take_oldest()) is not None:
            self._give_up(payload)

    def _take_oldest(self) -> Payload | None:
        if not self._payloads:
            return None
        self._freed()
        return self._payloads.popleft()

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)

    def _watch(self) -> None:
        """Close at the deadline. One timer, reset only when it fires, not for each payload."""
        now = self._loop.time()
        if self._payloads:
            self._patience.quiet_since = now  # the consumer is slow, not the stream
        end = self._patience.ends_at()
        if now >= end:
            self.close()
        elif end < math.inf:
            self._timer = self._loop.call_at(end, self._watch)

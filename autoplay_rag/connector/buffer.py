"""Payloads between a reader and a consumer that takes them one by one."""

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
    """How long to wait for what may still come. Pure: time is an argument.

    Args:
        seconds: How long in all; None for ever.
        idle: How long while nothing comes; None for ever.

    Attributes:
        quiet_since: When something came last, or it began.

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
        """Let the time begin."""
        self.quiet_since = now
        self._deadline = now + self._seconds

    def ends_at(self) -> float:
        """When it ends if nothing more comes; infinity for never."""
        return min(self._deadline, self.quiet_since + self._idle)


class PayloadBuffer(BoundedSink):
    """A bounded queue that ends by itself after a number of payloads, a time, or a silence.

    What was received before the end is still handed out.

    Args:
        wanted: How many payloads to hand out; None for no limit.
        seconds: Close after so many seconds; None for never.
        idle: Close when so many seconds brought neither a payload nor a connection, and all is
            handed out; None for never.
        wants: Whether a payload is to be handed out; the others are counted as skipped. None
            wants all.
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
        """Let the time begin; `on_close` is called once, when the buffer closes."""
        self._on_close = on_close
        self._patience.begin(self._loop.time())
        self._watch()

    def wants(self, payload: Payload) -> bool:
        """Whether a payload is to be handed out."""
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
        """The next payload; None when it is closed and empty."""
        while (payload := self.take_nowait()) is None:
            if self.closed:
                return None
            self._wakeup = self._loop.create_future()
            await self._wakeup
        return payload

    def take_nowait(self) -> Payload | None:
        """The next payload; None when none waits: spares the usual case a coroutine."""
        if not self._payloads:
            return None
        self._taken += 1
        self._freed()
        return self._payloads.popleft()

    def connection_made(self, gate: asyncio.Event | None) -> None:  # noqa: ARG002 - calls nothing back
        """Let the silence begin anew."""
        self._patience.quiet_since = self._loop.time()

    def close(self) -> None:
        """Want no more; what is held can still be taken."""
        if self.closed:
            return
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._wake()
        if self._on_close is not None:
            self._on_close()

    def discard(self) -> None:
        """Give up what nobody will take."""
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
        """Close when it is time. One timer, set again only when it fires: none for each payload."""
        now = self._loop.time()
        if self._payloads:
            self._patience.quiet_since = now  # it is the consumer that is slow
        end = self._patience.ends_at()
        if now >= end:
            self.close()
        elif end < math.inf:
            self._timer = self._loop.call_at(end, self._watch)

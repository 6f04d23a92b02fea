"""The bound on payloads held in memory, and what happens when it is reached."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, Literal, TypeAlias

from autoplay_rag.connector.metrics import Recorder
from autoplay_rag.payloads import Payload

__all__ = ["BoundedSink", "Overflow"]

logger = logging.getLogger(__name__)

Overflow: TypeAlias = Literal["wait", "drop_oldest"]


class BoundedSink(ABC):
    """Takes payloads from a reader and holds at most `limit` of them.

    The reader calls `put` while `pending < limit`, and `put_when_full` otherwise. The usual case
    therefore needs no coroutine.

    Args:
        limit: The most payloads held, waiting or being processed.
        overflow: "wait" blocks the reader until there is room. "drop_oldest" drops the payload
            that has waited longest, or the new one if all others are being processed.
        recorder: Counts what happens.
        on_drop: Called with each dropped payload and the total so far; must be quick.

    Attributes:
        pending: How many payloads are held.
        limit: The most payloads that may be held.
        closed: Whether the sink accepts no more; the reader then ends.
    """

    closed = False

    def __init__(
        self,
        limit: int,
        overflow: Overflow,
        recorder: Recorder,
        on_drop: Callable[[Payload, int], Any] | None,
    ) -> None:
        self.pending = 0
        self.limit = limit
        self._overflow = overflow
        self._recorder = recorder
        self._on_drop = on_drop
        self._room: asyncio.Future[None] | None = None
        self._warned = False

    @abstractmethod
    def put(self, payload: Payload) -> None:
        """Take a payload. Never blocks."""

    def deliver(self, payload: Payload) -> Coroutine[Any, Any, None] | None:
        """Take a payload as `put` does, or return what processes it, for the caller to await.

        Returns:
            The processing, to be begun at once; None if the sink does it.
        """
        self.put(payload)
        return None

    def adopt(self, task: asyncio.Task[None]) -> None:  # noqa: B027 - nothing to note by default
        """Note the task in which the processing that was begun by `deliver` goes on."""

    @abstractmethod
    def connection_made(self, gate: asyncio.Event | None) -> None:
        """Note a new connection.

        Args:
            gate: Callbacks wait until it is set; None if they need not wait.
        """

    @abstractmethod
    def _take_oldest(self) -> Payload | None:
        """Remove and return the payload that has waited longest; None if none waits."""

    def wants(self, payload: Payload) -> bool:  # noqa: ARG002 - subclasses look at it
        """Whether this payload has a consumer. One without a consumer takes no room."""
        return True

    async def put_when_full(self, payload: Payload) -> None:
        """Take a payload while the limit is reached, as `overflow` says."""
        if not self.wants(payload):
            self.put(payload)  # only counts it
            return
        if self._overflow == "wait":
            try:
                await self._wait_for_room()
            finally:
                self.put(payload)  # also when reading is stopped meanwhile: it was received
            return
        self._warn("the oldest are dropped")
        oldest = self._take_oldest()
        if oldest is not None:
            self.put(payload)
        self._give_up(payload if oldest is None else oldest)

    def _held(self) -> None:
        """Note that one payload more is held."""
        self.pending += 1
        if self._recorder.observed:
            self._recorder.pending(self.pending)

    def _freed(self) -> None:
        """Note that one payload fewer is held."""
        self.pending -= 1
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        if self._recorder.observed:
            self._recorder.pending(self.pending)

    def _give_up(self, payload: Payload) -> None:
        self._recorder.dropped(payload)
        if self._on_drop:
            try:
                self._on_drop(payload, self._recorder.counts.dropped)
            except Exception:
                logger.exception("on_drop raised")

    async def _wait_for_room(self) -> None:
        self._warn("reading stops until there is room; the connector may drop events meanwhile")
        started = time.monotonic()
        try:
            while self.pending >= self.limit:
                self._room = asyncio.get_running_loop().create_future()
                await self._room
        finally:
            self._room = None
            self._recorder.paused(time.monotonic() - started)

    def _warn(self, consequence: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("%d payloads are pending (max_pending): %s", self.limit, consequence)

"""Passes payloads to callbacks: in order within a session, concurrently across sessions."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

from autoplay_rag._cancelled import is_cancelled
from autoplay_rag.connector.callbacks import Callback
from autoplay_rag.connector.metrics import Recorder
from autoplay_rag.connector.overflow import BoundedSink, Overflow
from autoplay_rag.payloads import Payload

__all__ = ["Dispatcher"]

logger = logging.getLogger(__name__)

_GRACE: Final = 5.0


class Dispatcher(BoundedSink):
    """Runs the callbacks: one task per payload, at most `session_concurrency` per session at once.

    A payload without a session id waits for no other. Waiting payloads have no task yet. Sessions
    without payloads use no memory.

    Args:
        callbacks: The callbacks for each kind of payload; looked up again for every payload.
        recorder: See `BoundedSink`.
        on_error: Called with a payload and the exception a callback raised.
        session_concurrency: The most tasks of one session at once.
        limit: See `BoundedSink`.
        overflow: See `BoundedSink`.
        on_drop: See `BoundedSink`.
    """

    def __init__(
        self,
        callbacks: Mapping[str, Sequence[Callback]],
        recorder: Recorder,
        *,
        on_error: Callback | None = None,
        session_concurrency: int = 4,
        limit: int = 100_000,
        overflow: Overflow = "wait",
        on_drop: Callable[[Payload, int], Any] | None = None,
    ) -> None:
        super().__init__(limit, overflow, recorder, on_drop)
        self._gate: asyncio.Event | None = None
        self._callbacks = callbacks
        self._on_error = on_error
        self._concurrency = session_concurrency
        # By session with payloads: how many tasks it has, and its waiting payloads in order.
        self._running: dict[str, int] = {}
        self._queues: dict[str, deque[tuple[int, Payload]]] = {}
        # All waiting payloads, oldest first, as number to session; and all running tasks.
        self._waiting: OrderedDict[int, str] = OrderedDict()
        self._tasks: dict[int, tuple[asyncio.Task[None], str | None, Payload]] = {}
        self._number = 0
        # What the reader's task processes, while nothing else ran: not yet among the others.
        self._here: tuple[int, str | None, Payload] | None = None
        self._idle: asyncio.Event | None = None
        self._loop = asyncio.get_running_loop()

    def wants(self, payload: Payload) -> bool:
        """Whether there is a callback for payloads of this kind."""
        return bool(self._callbacks.get(payload.kind))

    def put(self, payload: Payload) -> None:
        """Start the payload's callbacks, or queue it while its session is at its limit."""
        if not self._callbacks.get(payload.kind):
            self._recorder.skipped("no_callback")
            return
        self._held()
        session_id = payload.session_id
        if session_id:
            running = self._running.get(session_id, 0)
            if running >= self._concurrency:
                self._wait(session_id, payload)
                return
            self._running[session_id] = running + 1
        self._start(session_id, payload)

    def deliver(self, payload: Payload) -> Coroutine[Any, Any, None] | None:
        """Return the run of the payload's callbacks; see `BoundedSink.deliver`."""
        session_id = payload.session_id
        if (
            not self._callbacks.get(payload.kind)
            # In a task of its own. One that `put` started may not have begun: it would be overtaken.
            or session_id in self._running
            # As the ones after it, which could overtake it otherwise.
            or (self._gate is not None and not self._gate.is_set())
        ):
            self.put(payload)
            return None
        self._held()
        self._number += 1
        self._here = self._number, session_id, payload
        return self._deliver(self._number, session_id, payload)

    def adopt(self, task: asyncio.Task[None]) -> None:
        """Note the task in which the callbacks that were begun by `deliver` go on."""
        if self._here is not None:
            number, session_id, payload = self._here
            self._here = None
            self._tasks[number] = task, session_id, payload
            if session_id:
                self._running[session_id] = self._running.get(session_id, 0) + 1

    def connection_made(self, gate: asyncio.Event | None) -> None:
        """Make payloads that start from now on wait for `gate`."""
        self._gate = gate

    async def drain(self, within: float) -> None:
        """Wait for the pending payloads; after `within` seconds give up the rest.

        Payloads not started by then are dropped and counted; running callbacks are cancelled.
        """
        if self.pending:
            self._idle = asyncio.Event()
            try:
                async with asyncio.timeout(within):
                    await self._idle.wait()
            except TimeoutError:
                logger.warning(
                    "%d payloads were still pending after drain_timeout=%g s and are given up",
                    self.pending,
                    within,
                )
        if not await self.cancel(_GRACE):
            logger.error("%d callbacks do not end although cancelled", len(self._tasks))

    async def cancel(self, within: float | None = None) -> bool:
        """Drop waiting payloads, cancel running callbacks and wait for them to end.

        Returns:
            False if callbacks were still running after `within` seconds.
        """
        while (payload := self._take_oldest()) is not None:
            self._give_up(payload)
        running = dict(self._tasks)
        for task, _, _ in running.values():
            task.cancel()
        if running:
            await asyncio.wait([task for task, _, _ in running.values()], timeout=within)
        for number, (task, session_id, payload) in running.items():
            if number in self._tasks and task.done():
                # Cancelled before its first step: its own cleanup did not run.
                self._give_up(payload)
                self._ended(number, session_id)
        return not self._tasks

    def _wait(self, session_id: str, payload: Payload) -> None:
        self._number += 1
        self._queues.setdefault(session_id, deque()).append((self._number, payload))
        self._waiting[self._number] = session_id

    def _start(self, session_id: str | None, payload: Payload) -> None:
        self._number = number = self._number + 1
        task = self._loop.create_task(self._deliver(number, session_id, payload))
        self._tasks[number] = task, session_id, payload

    def _ended(self, number: int, session_id: str | None) -> None:
        """Forget a task, and start the session's next payload in its place."""
        if self._here is not None and self._here[0] == number:
            self._here = None
            self._freed()
            return
        del self._tasks[number]
        if session_id:
            if session_id in self._queues:
                following, next_payload = self._dequeue(session_id)
                del self._waiting[following]
                self._start(session_id, next_payload)
            elif (running := self._running[session_id]) > 1:
                self._running[session_id] = running - 1
            else:
                del self._running[session_id]
        self._freed()
        if self._idle is not None and not self.pending:
            self._idle.set()

    def _take_oldest(self) -> Payload | None:
        if not self._waiting:
            return None
        _, session_id = self._waiting.popitem(last=False)
        _, payload = self._dequeue(session_id)  # the oldest overall is the oldest of its session
        self._freed()
        return payload

    def _dequeue(self, session_id: str) -> tuple[int, Payload]:
        queue = self._queues[session_id]
        first = queue.popleft()
        if not queue:
            del self._queues[session_id]
        return first

    async def _deliver(self, number: int, session_id: str | None, payload: Payload) -> None:
        # `session_id` is passed because a callback may change the payload.
        try:
            if self._gate is not None:
                await self._gate.wait()
            callbacks = self._callbacks[payload.kind]
            if len(callbacks) == 1:
                well = await self._call(callbacks[0], payload)
            else:
                # Concurrent, so that none waits for another. `_call` does not raise their errors.
                well = all(await asyncio.gather(*(self._call(each, payload) for each in callbacks)))
            if well:
                self._recorder.delivered(payload.kind)
            else:
                self._recorder.failed(payload.kind)
        except asyncio.CancelledError:
            self._give_up(payload)
            raise
        except BaseException:
            self._recorder.failed(payload.kind)
            raise
        finally:
            self._ended(number, session_id)

    async def _call(self, callback: Callback, payload: Payload) -> bool:
        """Call one callback; False if it failed."""
        started = time.perf_counter() if self._recorder.observed else 0.0
        try:
            await callback.call(payload)
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:
            # CancelledError: something that the callback awaited may have been cancelled, and not
            # this task. pytest.fail() is a BaseException, too.
            if isinstance(error, asyncio.CancelledError) and is_cancelled():
                raise
            await self._failed(callback, payload, error)
            return False
        finally:
            if self._recorder.observed:
                self._recorder.callback_seconds(time.perf_counter() - started)
        return True

    async def _failed(self, callback: Callback, payload: Payload, error: BaseException) -> None:
        logger.error(
            "callback %r raised for a payload of kind %r; the payload is given up",
            callback,
            payload.kind,
            exc_info=error,
        )
        if self._on_error is not None:
            try:
                await self._on_error.call(payload, error)
            except Exception:
                logger.exception("on_error raised")

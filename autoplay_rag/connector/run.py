"""One run of a client, from the first connection until all payloads are processed."""

from __future__ import annotations

import asyncio
import contextvars
import types
from collections.abc import Coroutine, Generator, Iterator
from contextlib import suppress
from typing import Any, Final

from autoplay_rag.connector.hooks import ConnectionHooks
from autoplay_rag.connector.overflow import BoundedSink
from autoplay_rag.connector.stream import EventStream
from autoplay_rag.payloads import Payload

__all__ = ["ClientRun"]

_AS_TASKS: Final = 100
"""How many payloads get a task of their own after one whose callbacks had to wait."""


class ClientRun:
    """Reads a stream into a sink until it is stopped or fails.

    The task that reads runs the callbacks of a payload itself: they begin in the same turn of the
    event loop, and a callback that waits for nothing costs no task. When one waits for the first
    time, another task takes over the reading, so that no callback holds up the stream.

    Create it on the event loop it belongs to. `stop` may be called from any thread, also before
    `read`.

    Attributes:
        in_background: Whether the run's task may never be awaited.
        stopping: Whether it no longer reads, or `stop` was called.
        error: The error that ended the run; None after a stop.
        ended: Set when its tasks have ended.
        connected: Set while there is a connection, and when the run is over.
    """

    def __init__(self, stream: EventStream, sink: BoundedSink, hooks: ConnectionHooks) -> None:
        self.sink = sink
        self.hooks = hooks
        self.in_background = False
        self.stopping = False
        self.error: BaseException | None = None
        self.ended = asyncio.Event()
        self.connected = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self._reads = aiter(stream)
        self._context = contextvars.copy_context()
        # The task that reads now; others may still run callbacks. What the last read brought.
        self._reader: asyncio.Task[None] | None = None
        self._batch: Iterator[Payload] = iter(())
        self._read_all: asyncio.Future[None] = self.loop.create_future()
        # Whether the reader has taken its first step, and whether it runs callbacks right now.
        self._begun = True
        self._delivering = False
        self._as_tasks = 0
        self._finished = False

    @property
    def over(self) -> bool:
        """True once the run finished or its event loop was closed."""
        return self._finished or self.loop.is_closed()

    def stop(self) -> None:
        """Stop reading. Received payloads are still processed."""
        self.stopping = True
        with suppress(RuntimeError):  # the loop is closed: the run is over
            self.loop.call_soon_threadsafe(self._cancel_reader)

    async def read(self) -> None:
        """Read until `stop`, or until the sink accepts no more.

        Raises:
            Exception: The error that ended the stream, if one did.
        """
        if self.stopping or self.sink.closed:
            return
        self._start_reader()
        try:
            await asyncio.wait({self._read_all})
        except asyncio.CancelledError:
            self._cancel_reader()
            await asyncio.wait({self._read_all})
            self._read_all.exception()  # so that asyncio does not report it as lost
            raise
        finally:
            self.stopping = True
        self._read_all.result()

    def finish(self, error: BaseException | None = None) -> None:
        """Mark the run as ended."""
        self.error = error
        self._finished = True  # set after `error`, because other threads read both
        self.connected.set()
        self.ended.set()

    def _start_reader(self) -> None:
        # Each has a copy of the context: what a callback sets does not reach the ones after it.
        self._begun = self._delivering = False
        self._reader = self.loop.create_task(self._pump(), context=self._context.copy())

    async def _pump(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._begun = True
        try:
            if await self._pass_on(task):
                async for batch in self._reads:
                    self._batch = batch
                    if not await self._pass_on(task):
                        break
        except asyncio.CancelledError:
            if self._delivering and self._reader is task:
                self._hand_over()  # a callback cancelled its own task
            raise
        except Exception as error:  # noqa: BLE001 - raised by `read`
            self._read_all.set_exception(error)
        finally:
            if self._reader is task:
                try:
                    await self._reads.aclose()
                finally:
                    if not self._read_all.done():
                        self._read_all.set_result(None)

    async def _pass_on(self, task: asyncio.Task[None]) -> bool:
        """Pass on what is left of the last read; False if this task is to read no more."""
        sink = self.sink
        for payload in self._batch:
            if sink.pending >= sink.limit:
                await sink.put_when_full(payload)
            elif self._as_tasks:
                self._as_tasks -= 1
                sink.put(payload)
            elif (delivery := sink.deliver(payload)) is not None:
                self._delivering = True
                try:
                    waits_for = delivery.send(None)
                except StopIteration:
                    self._delivering = False
                else:
                    self._as_tasks = _AS_TASKS
                    # Not in the context of the callbacks, which the tasks begun here would inherit.
                    self._context.copy().run(self._hand_over)
                    await _resumed(delivery, waits_for)
                    return False
                if task.cancelling() or contextvars.copy_context() != self._context:
                    self._start_reader()
                    return False
            if sink.closed:
                return False
        return True

    def _hand_over(self) -> None:
        """Leave the reader with its callbacks, and start another."""
        assert self._reader is not None
        sink = self.sink
        sink.adopt(self._reader)
        # Begin what was read already in this turn, too.
        while not sink.closed and sink.pending < sink.limit:
            payload = next(self._batch, None)
            if payload is None:
                break
            sink.put(payload)
        self._start_reader()

    def _cancel_reader(self) -> None:
        if not self._begun:
            # A task that is cancelled before its first step would not pass on what was received.
            self.loop.call_soon(self._cancel_reader)
        elif self._reader is not None:
            self._reader.cancel()


@types.coroutine
def _resumed(work: Coroutine[Any, Any, None], waits_for: Any) -> Generator[Any, Any, None]:
    """Finish a coroutine that has begun, and waits for something, in the current task."""
    while True:
        try:
            sent = yield waits_for
        except BaseException as error:  # noqa: BLE001 - the coroutine decides what becomes of it
            try:
                waits_for = work.throw(error)
            except StopIteration:
                return
        else:
            try:
                waits_for = work.send(sent)
            except StopIteration:
                return

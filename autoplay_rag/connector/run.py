"""One run of a client, from the first connection until all payloads are processed."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress

from autoplay_rag.connector.hooks import ConnectionHooks
from autoplay_rag.connector.overflow import BoundedSink
from autoplay_rag.connector.stream import EventStream

__all__ = ["ClientRun"]


class ClientRun:
    """Reads a stream into a sink, in its own task, until it is stopped or fails.

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
        self._stream = stream
        self._reader: asyncio.Task[None] | None = None
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
        self._reader = self.loop.create_task(self._pump())
        try:
            await asyncio.wait({self._reader})
        except asyncio.CancelledError:
            self._reader.cancel()
            await asyncio.wait({self._reader})
            raise
        finally:
            self.stopping = True
        if not self._reader.cancelled():
            self._reader.result()

    def finish(self, error: BaseException | None = None) -> None:
        """Mark the run as ended."""
        self.error = error
        self._finished = True  # set after `error`, because other threads read both
        self.connected.set()
        self.ended.set()

    async def _pump(self) -> None:
        sink = self.sink
        async with aclosing(aiter(self._stream)) as payloads:
            async for payload in payloads:
                if sink.pending < sink.limit:
                    sink.put(payload)
                else:
                    await sink.put_when_full(payload)
                if sink.closed:
                    return

    def _cancel_reader(self) -> None:
        if self._reader is not None:
            self._reader.cancel()

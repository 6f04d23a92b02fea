"""An event loop in a thread of its own, for callers that have none or may not wait on theirs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any, TypeVar

__all__ = ["LoopClosedError", "LoopThread"]

T = TypeVar("T")

_GRACE_SECONDS = 5.0


class LoopClosedError(RuntimeError):
    """The loop was closed before the work ended, or before it began."""


class LoopThread:
    """Runs coroutines in a daemon thread, until `close`. All methods may be called from any thread.

    A daemon, so that an object somebody forgets to close does not keep the process from its end:
    the reason why this is not `anyio.from_thread.start_blocking_portal`, whose calls also take
    twice as long.

    Args:
        name: The thread's name.

    Raises:
        RuntimeError: If the system gives no more threads.

    Example:
        >>> thread = LoopThread("example")
        >>> thread.run(asyncio.sleep(0, "done"))
        'done'
        >>> thread.close()
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._closed = False
        self._within: float | None = _GRACE_SECONDS
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self._loop.close()
            raise

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop, to find out whether code runs on it."""
        return self._loop

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine, in the caller's context variables.

        Returns:
            A future; cancelling it cancels the coroutine, and so does `close`.

        Raises:
            LoopClosedError: If the loop was closed.
        """
        with self._lock:
            if not self._closed:
                return asyncio.run_coroutine_threadsafe(work, self._loop)
        work.close()
        raise self._closed_error()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine and wait for its end; from any thread but the loop's own.

        Returns:
            What it returns.

        Raises:
            LoopClosedError: If the loop was closed before or meanwhile.
            RuntimeError: If the work was cancelled by something in it.
            BaseException: What the work raised.
        """
        future = self.submit(work)
        try:
            return future.result()
        except CancelledError as error:
            # As itself it would look to a caller's event loop as if the caller had been cancelled.
            if self._closed:
                raise self._closed_error() from None
            raise RuntimeError("the call was cancelled by something it awaited") from error
        finally:
            future.cancel()

    def call_soon(self, fn: Callable[[], object]) -> None:
        """Have a plain function called on the loop; nothing happens once it is closed."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(fn)

    def close(self, within: float | None = _GRACE_SECONDS) -> None:
        """Cancel what runs, and end the loop and its thread. May be called more than once.

        It waits for the end, except in the loop's own thread, where the garbage collector may
        call it.

        Args:
            within: Seconds that what was cancelled may take to end; None waits for as long as it
                takes, and for the threads of `asyncio.to_thread` too.
        """
        with self._lock:
            if not self._closed:
                self._closed = True
                self._within = within
                self.call_soon(self._closing.set)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _closed_error(self) -> LoopClosedError:
        return LoopClosedError(f"the event loop of the thread {self._thread.name!r} was closed")

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._until_closed())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            if self._within is None:
                self._loop.run_until_complete(self._loop.shutdown_default_executor())
        finally:
            asyncio.set_event_loop(None)
            self._loop.close()

    async def _until_closed(self) -> None:
        await self._closing.wait()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others, timeout=self._within)

"""An asynchronous generator for code that is not: sync over async, in one place."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, suppress
from typing import Generic, TypeVar

__all__ = ["iterate"]

T = TypeVar("T")

_AHEAD = 256
"""Items made before they are asked for: few hand-overs between the threads, little memory."""


def iterate(make: Callable[[], AsyncGenerator[T, None]], name: str) -> Generator[T, None, None]:
    """What an asynchronous generator yields, one by one.

    It runs in a thread with an event loop of its own, so that this works in any thread and
    inside a running loop (which stands still while it waits). The thread starts with the first
    item asked for and is gone when this ends, also if the consumer stops early or raises.

    Args:
        make: Makes the generator; called in that thread.
        name: The thread's name.

    Yields:
        Its items, in order.

    Raises:
        RuntimeError: If it was cancelled, by whatever runs in it.
        BaseException: What it raised.
    """
    bridge = _Bridge(make)
    bridge.start(name)
    try:
        while items := bridge.take():
            yield from items
    finally:
        bridge.close()


class _Bridge(Generic[T]):
    def __init__(self, make: Callable[[], AsyncGenerator[T, None]]) -> None:
        self._make = make
        self._changed = threading.Condition()
        self._items: deque[T] = deque()
        self._over = False
        self._error: BaseException | None = None
        self._loop = asyncio.new_event_loop()
        self._room = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def start(self, name: str) -> None:
        # The generator sees the context variables of who asks for its items.
        context = contextvars.copy_context()
        # A daemon: an iterator that somebody keeps must not keep the process from its end.
        self._thread = threading.Thread(
            target=context.run, args=(self._run,), name=name, daemon=True
        )
        try:
            self._thread.start()
        except BaseException:
            self._loop.close()
            raise

    def take(self) -> deque[T]:
        """All items there are, at least one; none at the end."""
        with self._changed:
            while not (self._items or self._over):
                self._changed.wait()
            items, self._items = self._items, deque()
            if not items and self._error is not None:
                raise self._error
        if len(items) >= _AHEAD:
            self._call(self._room.set)
        return items

    def close(self) -> None:
        """End the generator and wait for it. May be called more than once."""
        self._call(self._cancel)
        # The garbage collector may call from the thread itself.
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _call(self, fn: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop is closed: all is over
            self._loop.call_soon_threadsafe(fn)

    def _cancel(self) -> None:
        self._closed = True
        if self._task is not None:
            self._task.cancel()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._produce())
        except asyncio.CancelledError as cancelled:
            # Nobody here asked for it: what came so far is not all. As itself it would look to
            # the consumer's event loop as if the consumer had been cancelled.
            if not self._closed:
                error = RuntimeError("the stream was cancelled before it had ended")
                error.__cause__ = cancelled
        except BaseException as found:  # noqa: BLE001 - raised again where the items are taken
            error = found
        with self._changed:
            self._error = error
            self._over = True
            self._changed.notify()

    async def _produce(self) -> None:
        self._task = asyncio.current_task()
        if self._closed:
            return
        async with aclosing(self._make()) as items:
            async for item in items:
                with self._changed:
                    self._items.append(item)
                    full = len(self._items) >= _AHEAD
                    if full:
                        self._room.clear()
                    self._changed.notify()
                if full:
                    await self._room.wait()

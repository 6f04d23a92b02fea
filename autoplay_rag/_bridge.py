"""The items of an asynchronous generator for synchronous code, in one place."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing
from typing import Generic, TypeVar

from autoplay_rag._loop_thread import LoopThread

__all__ = ["iterate"]

T = TypeVar("T")

_AHEAD = 256
"""Items made before they are asked for: few hand-overs between the threads, little memory."""


def iterate(make: Callable[[], AsyncGenerator[T, None]], name: str) -> Generator[T, None, None]:
    """Yield what an asynchronous generator yields, one by one.

    It runs on an event loop in a thread of its own, so this works in any thread and inside a
    running loop (which blocks while it waits). The generator sees the caller's context variables.
    The thread starts with the first item asked for and ends with this generator, also if the
    consumer stops early or raises.

    Args:
        make: Makes the generator; called in that thread.
        name: The thread's name.

    Yields:
        Its items, in order.

    Raises:
        RuntimeError: If it was cancelled by something it awaited.
        BaseException: What it raised.
    """
    thread = LoopThread(name)
    try:
        bridge = _Bridge(make, thread)
        thread.submit(bridge.produce())
        while items := bridge.take():
            yield from items
    finally:
        # However long the generator takes to clean up: its connections must be closed.
        thread.close(within=None)


class _Bridge(Generic[T]):
    def __init__(self, make: Callable[[], AsyncGenerator[T, None]], thread: LoopThread) -> None:
        self._make = make
        self._thread = thread
        self._changed = threading.Condition()
        self._items: deque[T] = deque()
        self._over = False
        self._error: BaseException | None = None
        self._room = asyncio.Event()

    def take(self) -> deque[T]:
        """All items there are, at least one; none at the end.

        Raises:
            BaseException: What the generator raised, after its last item.
        """
        with self._changed:
            while not (self._items or self._over):
                self._changed.wait()
            items, self._items = self._items, deque()
            if not items and self._error is not None:
                raise self._error
        if len(items) >= _AHEAD:
            self._thread.call_soon(self._room.set)
        return items

    async def produce(self) -> None:
        error: BaseException | None = None
        try:
            await self._produce()
        except asyncio.CancelledError as cancelled:
            # The consumer does not see it if it has left. Otherwise not all items came, and as
            # itself the error would look to its event loop as if the consumer had been cancelled.
            error = RuntimeError("the stream was cancelled before it had ended")
            error.__cause__ = cancelled
        except BaseException as found:  # noqa: BLE001 - raised again where the items are taken
            error = found
        with self._changed:
            self._error = error
            self._over = True
            self._changed.notify()

    async def _produce(self) -> None:
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

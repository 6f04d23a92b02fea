"""Items as they arrive, and None when a deadline passes without one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import TypeVar

__all__ = ["with_pauses"]

T = TypeVar("T")


async def with_pauses(
    items: AsyncGenerator[T, None], next_due: Callable[[], float | None]
) -> AsyncGenerator[T | None, None]:
    """Yield the items, and None whenever `next_due` passes before the next item.

    Args:
        items: The caller closes it, after this generator.
        next_due: Returns when to yield the next None, in the loop's time; None for never. Called
            again after each yield.
    """
    loop = asyncio.get_running_loop()
    # A timeout of `wait_for` would cancel the generator, so a task awaits the item.
    task: asyncio.Future[T] | None = None
    try:
        while True:
            task = task or asyncio.ensure_future(anext(items))
            due = next_due()
            await asyncio.wait({task}, timeout=None if due is None else max(0, due - loop.time()))
            if not task.done():
                yield None
                continue
            done, task = task, None
            try:
                item = done.result()
            except StopAsyncIteration:
                return
            yield item
    finally:
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.exception()  # retrieved, so that asyncio does not log it

"""Items as they come, and a sign when a time has come without one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import TypeVar

__all__ = ["with_pauses"]

T = TypeVar("T")


async def with_pauses(
    items: AsyncGenerator[T, None], next_due: Callable[[], float | None]
) -> AsyncGenerator[T | None, None]:
    """What `items` yields, and None whenever `next_due` has come meanwhile.

    Args:
        items: Closed by the caller, after this.
        next_due: When the next None is wanted, in the loop's time; None for not at all. Asked
            again after everything that was yielded.
    """
    loop = asyncio.get_running_loop()
    # `wait_for` would end the generator with its time-out: the item is awaited by a task.
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
                task.exception()  # the consumer has left and wants none

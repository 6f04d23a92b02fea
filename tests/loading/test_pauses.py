from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from autoplay_rag.loading.pauses import with_pauses


async def queued(queue: asyncio.Queue):
    while (item := await queue.get()) != "end":
        yield item


async def test_items_come_as_they_are_until_they_end():
    queue: asyncio.Queue[str] = asyncio.Queue()
    for item in ("a", "b", "end"):
        queue.put_nowait(item)
    assert [item async for item in with_pauses(queued(queue), lambda: None)] == ["a", "b"]


async def test_a_due_time_yields_none_and_loses_no_item():
    queue: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    due = [loop.time() + 0.01]
    async with asyncio.timeout(30), aclosing(with_pauses(queued(queue), lambda: due[0])) as items:
        assert await anext(items) is None
        due[0] = None
        queue.put_nowait("a")
        assert await anext(items) == "a"


async def test_an_error_of_the_items_is_raised():
    async def failing():
        raise LookupError("no more")
        yield

    with pytest.raises(LookupError):
        await anext(with_pauses(failing(), lambda: None))


async def test_closing_leaves_no_task():
    async def hanging():
        yield 1
        try:
            await asyncio.Event().wait()
        finally:
            raise LookupError("nobody wants this")

    before = asyncio.all_tasks()
    items = with_pauses(hanging(), asyncio.get_running_loop().time)
    async with asyncio.timeout(30):
        while await anext(items) is not None:
            pass
        while await anext(items) is not None:
            pass
        await items.aclose()
    assert asyncio.all_tasks() == before

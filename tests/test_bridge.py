from __future__ import annotations

import asyncio
import contextvars
import gc
import threading

import pytest

from autoplay_rag._bridge import iterate

NAME = "bridge-under-test"


async def numbers(count: int):
    for number in range(count):
        yield number


def alive() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == NAME]


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 5_000])
def test_it_gives_everything_in_order(count):
    assert list(iterate(lambda: numbers(count), NAME)) == list(range(count))
    assert alive() == []


def test_it_stays_within_its_bound_ahead_of_the_consumer():
    made = 0

    async def counted():
        nonlocal made
        async for number in numbers(5_000):
            made += 1
            yield number

    for taken, _ in enumerate(iterate(counted, NAME)):
        assert made <= taken + 600


def test_an_error_comes_after_what_came_before_it():
    async def failing():
        yield 1
        raise LookupError("no more")

    found = []
    with pytest.raises(LookupError, match="no more"):
        found.extend(iterate(failing, NAME))
    assert found == [1]
    assert alive() == []


@pytest.mark.parametrize("ahead", [0, 1, 300])
def test_a_cancellation_nobody_asked_for_is_an_error(ahead):
    async def cancelled():
        async for number in numbers(ahead):
            yield number
        raise asyncio.CancelledError

    found = []
    with pytest.raises(RuntimeError, match="cancelled before") as caught:
        found.extend(iterate(cancelled, NAME))
    assert found == list(range(ahead))
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)
    assert alive() == []


def test_the_generator_is_closed_when_the_consumer_leaves():
    closed = threading.Event()

    async def endless():
        try:
            while True:
                yield 1
                await asyncio.sleep(0)
        finally:
            closed.set()

    for _ in iterate(endless, NAME):
        break
    assert closed.is_set()
    assert alive() == []


def test_closing_does_not_wait_for_what_never_comes():
    async def silent():
        yield 1
        await asyncio.Event().wait()

    items = iterate(silent, NAME)
    assert next(items) == 1
    items.close()
    assert alive() == []


def test_the_generator_sees_the_context_of_its_consumer():
    variable = contextvars.ContextVar("variable")
    variable.set("mine")

    async def look():
        yield variable.get()

    assert list(iterate(look, NAME)) == ["mine"]


def test_the_garbage_collector_may_close_it_from_its_own_thread():
    holder = {}
    collected = threading.Event()
    go = threading.Event()

    async def endless():
        yield 1
        await asyncio.to_thread(go.wait)
        holder.clear()  # drops the last reference, in the bridge's own thread
        gc.collect()
        collected.set()
        await asyncio.Event().wait()

    holder["items"] = iterate(endless, NAME)
    next(holder["items"])
    [thread] = [thread for thread in threading.enumerate() if thread.name == NAME]
    go.set()
    assert collected.wait(30)
    thread.join(30)
    assert alive() == []

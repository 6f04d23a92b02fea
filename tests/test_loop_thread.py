from __future__ import annotations

import asyncio
import contextvars
import threading

import pytest

from autoplay_rag import _loop_thread
from autoplay_rag._loop_thread import LoopClosedError, LoopThread

NAME = "loop-thread-under-test"


@pytest.fixture
def thread():
    made = LoopThread(NAME)
    yield made
    made.close()
    assert NAME not in [other.name for other in threading.enumerate()]


async def where():
    return threading.current_thread().name


async def never():
    await asyncio.Event().wait()


def test_work_runs_on_one_loop_in_its_thread(thread):
    async def loop():
        return asyncio.get_running_loop()

    assert thread.run(where()) == NAME
    assert thread.run(loop()) is thread.run(loop())


async def test_a_caller_with_a_loop_of_its_own_may_wait(thread):
    assert thread.run(where()) == NAME
    assert await asyncio.wrap_future(thread.submit(where())) == NAME


def test_what_the_work_raises_is_raised(thread):
    async def failing():
        raise LookupError("no such thing")

    with pytest.raises(LookupError, match="no such thing"):
        thread.run(failing())


def test_work_sees_the_callers_context(thread):
    variable = contextvars.ContextVar("variable")
    variable.set("mine")

    async def look():
        return variable.get()

    assert thread.run(look()) == "mine"


def test_work_that_cancels_itself_does_not_cancel_the_caller(thread):
    async def cancelled():
        raise asyncio.CancelledError

    with pytest.raises(RuntimeError, match="cancelled by something it awaited"):
        thread.run(cancelled())
    assert thread.run(where()) == NAME


def test_waiting_callers_get_an_error_when_it_is_closed(thread):
    began, failed = threading.Event(), []

    async def work():
        began.set()
        await never()

    def wait():
        with pytest.raises(LoopClosedError, match=NAME) as caught:
            thread.run(work())
        failed.append(caught.value)

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert began.wait(5)
    thread.close()
    waiting.join(5)
    assert len(failed) == 1


def test_nothing_runs_after_it_was_closed(thread):
    thread.close()
    thread.close()
    with pytest.raises(LoopClosedError, match="was closed"):
        thread.run(where())
    thread.call_soon(lambda: pytest.fail("it is closed"))


def test_generators_are_closed_with_it(thread):
    closed = threading.Event()

    async def numbers():
        try:
            yield 1
        finally:
            closed.set()

    generator = numbers()

    async def begin():
        return await anext(generator)

    assert thread.run(begin()) == 1
    thread.close()
    assert closed.is_set()


def test_work_that_does_not_end_is_left_after_a_grace(thread, caplog):
    began = threading.Event()

    async def stubborn():
        while True:
            try:
                began.set()
                await never()
            except asyncio.CancelledError:
                continue

    future = thread.submit(stubborn())
    assert began.wait(5)
    thread.close(within=0.01)
    assert not future.done()


def test_work_is_cancelled_with_its_future(thread):
    began, ended = threading.Event(), threading.Event()

    async def work():
        began.set()
        try:
            await never()
        finally:
            ended.set()

    future = thread.submit(work())
    assert began.wait(5)
    future.cancel()
    assert ended.wait(5)


def test_it_may_be_closed_from_its_own_thread():
    made = LoopThread(NAME)
    made.call_soon(made.close)
    made._thread.join(5)
    assert not made._thread.is_alive()


def test_a_thread_that_cannot_start_leaves_no_loop_open(monkeypatch):
    def no_thread(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_loop_thread.threading.Thread, "start", no_thread)
    with pytest.raises(RuntimeError, match="can't start"):
        LoopThread(NAME)

import asyncio
import contextvars
import functools
import gc
import threading
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag.connector.callbacks import Callback, CallbackThreads
from autoplay_rag.connector.dispatch import Dispatcher
from autoplay_rag.connector.metrics import Recorder
from autoplay_rag.payloads import ActionsPayload, ChatTurn, SummaryPayload


def summary(session_id, n=0):
    return SummaryPayload(session_id=session_id, replaces=n)


def dispatcher(*functions, **options):
    callbacks = [Callback(fn, CallbackThreads()) for fn in functions]
    return Dispatcher({"summary": callbacks}, Recorder(None), **options)


def nothing_left(made):
    books = (made._running, made._queues, made._waiting, made._tasks)
    return made.pending == 0 and not any(books)


class Work:
    """A callback that records its starts and waits until the test releases it."""

    def __init__(self):
        self.started = []
        self.running = {}
        self.most = {}
        self._gates = []

    async def __call__(self, payload):
        self.started.append((payload.session_id, payload.replaces))
        running = self.running.get(payload.session_id, 0) + 1
        self.running[payload.session_id] = running
        self.most[payload.session_id] = max(running, self.most.get(payload.session_id, 0))
        gate = asyncio.get_running_loop().create_future()
        self._gates.append(gate)
        try:
            await gate
        finally:
            self.running[payload.session_id] -= 1

    def release(self, index=0):
        self._gates.pop(index).set_result(None)

    @property
    def held(self):
        return len(self._gates)


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_tasks_per_session_are_limited():
    work = Work()
    made = dispatcher(work, session_concurrency=2)
    for n in range(5):
        made.put(summary("a", n))
    await settle()
    assert work.started == [("a", 0), ("a", 1)]
    assert len(made._tasks) == 2  # pending payloads have no task
    assert made.pending == 5
    for expected in range(3, 6):
        work.release()
        await settle()
        assert len(work.started) == expected
    while work.held:
        work.release()
    await made.drain(5)
    assert nothing_left(made)


async def test_sessions_do_not_wait_for_each_other_nor_payloads_without_one():
    work = Work()
    made = dispatcher(work, session_concurrency=1)
    for session_id in ("a", "a", "b", None, None, "", ""):
        made.put(summary(session_id))
    await settle()
    assert [session_id for session_id, _ in work.started] == ["a", "b"] + [None] * 4
    await made.cancel()
    assert nothing_left(made)


orders = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5)), max_size=40)


@given(orders, st.integers(1, 4))
def test_every_session_keeps_its_order_and_its_limit(steps, concurrency):
    async def check():
        work = Work()
        made = dispatcher(work, session_concurrency=concurrency)
        for n, (session_id, releases) in enumerate(steps):
            made.put(summary(session_id, n))
            await settle()
            for _ in range(min(releases, work.held)):
                work.release(index=releases % work.held)
                await settle()
        while work.held:
            work.release(index=-1)
            await settle()
        await made.drain(5)
        for session_id in "abc":
            mine = [n for n, (of, _) in enumerate(steps) if of == session_id]
            assert [n for of, n in work.started if of == session_id] == mine
            assert work.most.get(session_id, 0) == min(concurrency, work.most.get(session_id, 0))
        assert nothing_left(made)

    asyncio.run(check())


async def test_a_callback_may_change_its_payload():
    async def rename(payload):
        await asyncio.sleep(0)
        payload.session_id = "other"

    made = dispatcher(rename, session_concurrency=1)
    for n in range(3):
        made.put(summary("a", n))
    await made.drain(5)
    assert nothing_left(made)
    assert made._recorder.counts.delivered == 3


async def test_a_million_sessions_leave_no_trace():
    async def work(payload):
        pass

    made = dispatcher(work)

    async def sessions(first, last):
        for n in range(first, last):
            made.put(summary(f"session-{n}"))
            if n % 100 == 99:
                await settle()
        await settle()

    await sessions(0, 2_000)
    gc.collect()
    tracemalloc.start()
    try:
        await sessions(2_000, 12_000)
        assert nothing_left(made)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 50_000
    finally:
        tracemalloc.stop()


async def test_callbacks_of_one_payload_start_together():
    order, release = [], asyncio.Event()

    async def slow(payload):
        order.append("slow")
        await release.wait()

    async def quick(payload):
        order.append("quick")

    made = dispatcher(slow, quick)
    made.put(summary("a"))
    await settle()
    assert order == ["slow", "quick"]
    release.set()
    await made.drain(5)
    assert made._recorder.counts.delivered == 1


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), asyncio.CancelledError(), BaseException("x"), pytest.fail.Exception("x")],
)
async def test_a_callback_that_ends_badly_costs_its_own_payload(error):
    told, done = [], []

    async def bad(payload):
        if payload.replaces == 0:
            raise error
        done.append(payload.replaces)

    async def on_error(payload, found):
        told.append((payload.replaces, found))

    made = dispatcher(bad, session_concurrency=1, on_error=Callback(on_error, CallbackThreads()))
    made.put(summary("a", 0))
    made.put(summary("a", 1))
    await made.drain(5)
    assert done == [1]
    assert told == [(0, error)]
    counts = made._recorder.counts
    assert (counts.failed, counts.delivered, counts.dropped) == (1, 1, 0)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_exception_that_ends_the_program_is_raised_and_counted(error):
    counts = []

    async def bad(payload):
        raise error

    async def deliver():
        made = dispatcher(bad)
        counts.append(made._recorder.counts)
        made.put(summary("a"))
        await asyncio.Event().wait()

    with pytest.raises(error):
        asyncio.run(deliver())
    assert (counts[0].failed, counts[0].delivered, counts[0].dropped) == (1, 0, 0)


async def test_a_plain_callback_may_raise_stop_iteration():
    told = []

    def first_click(payload):
        next(iter(()))

    made = dispatcher(
        first_click,
        session_concurrency=1,
        on_error=Callback(lambda payload, error: told.append(repr(error)), CallbackThreads()),
    )
    made.put(summary("a", 0))
    made.put(summary("a", 1))
    await made.drain(5)
    assert told == [f"RuntimeError('{first_click.__qualname__} raised StopIteration')"] * 2
    assert made._recorder.counts.failed == 2


async def test_a_payload_without_a_callback_is_counted_and_released():
    made = dispatcher()
    made.put(summary("a"))
    made.put(ActionsPayload(session_id="a"))
    made.put(ChatTurn(session_id="a"))
    assert nothing_left(made)
    assert made._recorder.counts.skipped == 3


async def test_the_oldest_waiting_payload_of_all_is_dropped():
    work, dropped = Work(), []
    made = dispatcher(
        work,
        session_concurrency=1,
        limit=5,
        overflow="drop_oldest",
        on_drop=lambda payload, total: dropped.append((payload.session_id, payload.replaces)),
    )
    for session_id, n in [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("b", 2)]:
        made.put(summary(session_id, n))
    await made.put_when_full(summary("a", 2))
    await made.put_when_full(summary("c", 0))
    assert dropped == [("b", 1), ("a", 1)]
    assert made.pending == 5
    await made.cancel()
    assert nothing_left(made)


@pytest.mark.parametrize("overflow", ["drop_oldest", "wait"])
async def test_a_payload_without_a_callback_takes_no_room_when_it_is_full(overflow):
    dropped = []
    made = dispatcher(
        Work(),
        session_concurrency=1,
        limit=2,
        overflow=overflow,
        on_drop=lambda payload, _: dropped.append(payload),
    )
    made.put(summary("a"))
    made.put(summary("a"))
    await made.put_when_full(ActionsPayload(session_id="a"))
    assert (dropped, made.pending) == ([], 2)
    assert made._recorder.counts.skipped == 1
    await made.cancel()


async def test_with_nothing_pending_the_new_payload_is_dropped():
    work, dropped = Work(), []
    made = dispatcher(
        work, limit=2, overflow="drop_oldest", on_drop=lambda payload, _: dropped.append(payload)
    )
    made.put(summary("a"))
    made.put(summary("b"))
    new = summary("c")
    await made.put_when_full(new)
    assert dropped == [new]
    await made.cancel()


async def test_dropping_stays_cheap_behind_a_session_that_hangs():
    """The bookkeeping of pending payloads must not grow while the first one hangs."""
    release = asyncio.Event()

    async def work(payload):
        if payload.session_id == "hangs":
            await release.wait()

    made = dispatcher(work, session_concurrency=1)
    made.put(summary("hangs"))
    made.put(summary("hangs"))
    for _ in range(500):
        made.put(summary("b"))
        made.put(summary("b"))
        await settle()
    assert len(made._waiting) == 1
    release.set()
    await made.drain(5)


async def test_on_drop_may_fail(caplog):
    def broken(payload, total):
        raise OSError

    made = dispatcher(Work(), limit=1, overflow="drop_oldest", on_drop=broken)
    made.put(summary("a"))
    await made.put_when_full(summary("a"))
    assert made._recorder.counts.dropped == 1
    assert "on_drop raised" in caplog.text
    await made.cancel()


async def test_a_callback_that_will_not_end_is_left_after_a_grace(monkeypatch, caplog):
    monkeypatch.setattr("autoplay_rag.connector.dispatch._GRACE", 0.01)
    release = asyncio.Event()

    async def stubborn(payload):
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    made = dispatcher(stubborn)
    made.put(summary("a"))
    await settle()
    await made.drain(0.01)
    assert "do not end although cancelled" in caplog.text
    release.set()


async def test_context_variables_reach_plain_functions():

    variable = contextvars.ContextVar("variable")
    seen = []
    threads = CallbackThreads()
    callback = Callback(lambda payload: seen.append(variable.get()), threads)
    variable.set("here")
    await callback.call(summary("a"))
    threads.close()
    assert seen == ["here"]


async def test_async_callables_of_every_kind_are_awaited_on_the_loop():

    seen = []

    async def function(extra, payload):
        seen.append(threading.get_ident())

    class Instance:
        async def __call__(self, payload):
            seen.append(threading.get_ident())

        async def method(self, payload):
            seen.append(threading.get_ident())

    threads = CallbackThreads()
    for fn in (functools.partial(function, 1), Instance(), Instance().method):
        await Callback(fn, threads).call(summary("a"))
    assert seen == [threading.get_ident()] * 3

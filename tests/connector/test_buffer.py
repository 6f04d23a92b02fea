"""`client.stream()`: payloads without callbacks."""

import asyncio
from contextlib import aclosing

import pytest

from autoplay_rag.connector.buffer import PayloadBuffer
from autoplay_rag.connector.metrics import Recorder
from autoplay_rag.errors import ClientStateError, ConfigurationError
from autoplay_rag.payloads import SummaryPayload


def indexes(payloads):
    return [payload.actions[0].index for payload in payloads]


async def test_limit_ends_it_and_reads_no_further(server, connect, event):
    server.script(server.stream(*(event("s1", n) for n in range(10))))
    client = connect()
    assert indexes([p async for p in client.stream(limit=3)]) == [0, 1, 2]
    assert client.counts.received == 3
    assert client.state == "stopped"


async def test_limit_zero_connects_to_nobody(server, connect):
    assert [p async for p in connect().stream(limit=0)] == []
    assert server.peers == []


@pytest.mark.parametrize("option", ["limit", "seconds", "idle"])
async def test_negative_conditions_are_refused(server, connect, option):
    with pytest.raises(ConfigurationError, match=option):
        await anext(connect().stream(**{option: -1}))


class Clock:
    """The part of an event loop that a buffer uses, with a clock that the test sets."""

    def __init__(self):
        self.now = 100.0
        self._timers = []

    def time(self):
        return self.now

    def call_at(self, when, fn):
        timer = asyncio.TimerHandle(when, fn, (), asyncio.get_running_loop())
        self._timers.append(timer)
        return timer

    def until(self, now):
        """Advance the clock; run each timer at the time it is due."""
        while due := [t for t in self._timers if t.when() <= now and not t.cancelled()]:
            timer = min(due, key=asyncio.TimerHandle.when)
            self._timers.remove(timer)
            self.now = timer.when()
            timer._run()
        self.now = now


@pytest.fixture
async def clock():
    return Clock()


@pytest.fixture
def started(clock):
    """Make a buffer that starts at time 100."""

    def make(**conditions):
        buffer = PayloadBuffer(Recorder(None), **conditions)
        buffer._loop = clock
        buffer.start(lambda: None)
        return buffer

    return make


async def test_without_a_condition_it_never_ends(clock, started):
    buffer = started()
    clock.until(1e9)
    assert not buffer.closed


async def test_seconds_end_it_and_what_came_by_then_is_given(clock, started):
    buffer = started(seconds=10.0)
    for n in (1, 2):
        buffer.put(SummaryPayload(summary=str(n)))
    clock.until(109.9)
    assert not buffer.closed
    clock.until(110.0)
    assert buffer.closed
    assert [(await buffer.take()).summary for _ in range(2)] == ["1", "2"]
    assert await buffer.take() is None


async def test_idle_counts_from_the_last_payload(clock, started):
    buffer = started(idle=10.0)
    for now in (109.0, 118.0, 127.0):
        clock.until(now)
        buffer.put(SummaryPayload())
        assert buffer.take_nowait() is not None
    clock.until(136.9)
    assert not buffer.closed
    clock.until(137.0)
    assert buffer.closed


async def test_idle_counts_from_a_connection(clock, started):
    buffer = started(idle=10.0)
    clock.until(109.0)
    buffer.connection_made(None)
    clock.until(118.9)
    assert not buffer.closed
    clock.until(119.0)
    assert buffer.closed


async def test_a_slow_consumer_is_not_idleness(clock, started):
    buffer = started(idle=10.0)
    buffer.put(SummaryPayload())
    clock.until(195.0)
    assert not buffer.closed
    assert buffer.take_nowait() is not None
    clock.until(199.0)
    assert not buffer.closed  # the timer ran at 190, when the payload was still pending
    clock.until(200.0)
    assert buffer.closed


async def test_the_earlier_condition_ends_it(clock, started):
    both = {"seconds": 10.0, "idle": 3.0}
    quiet, busy = started(**both), started(**both)
    for now in (102.0, 104.0, 106.0, 108.0, 109.5):
        clock.until(now)
        busy.put(SummaryPayload())
        busy.take_nowait()
        assert quiet.closed == (now > 103.0)
    assert not busy.closed
    clock.until(110.0)
    assert busy.closed


async def test_a_client_tells_of_its_connections(server, connect, event, monkeypatch):
    told = []
    monkeypatch.setattr(PayloadBuffer, "connection_made", lambda *_: told.append(len(server.peers)))
    server.script(server.stream(event("s1", 0), then="close"), server.stream(event("s1", 1)))
    assert indexes([p async for p in connect().stream(limit=2)]) == [0, 1]
    assert told == [1, 2]


@pytest.mark.parametrize("option", ["seconds", "idle"])
async def test_time_ends_a_stream_that_never_connects(server, connect, option):
    server.script(server.status(503))
    assert [p async for p in connect().stream(**{option: 0.01})] == []


async def test_a_slow_consumer_does_not_slow_the_reader(server, connect, event, until):
    server.script(server.stream(*(event("s1", n) for n in range(500))))
    client = connect()
    async with aclosing(client.stream()) as payloads:
        await anext(payloads)
        await until(lambda: client.pending == 499)


async def test_leaving_early_closes_the_connection_and_leaves_no_task(server, connect, event):
    server.script(server.stream(*(event("s1", n) for n in range(5))))
    client = connect()
    async with aclosing(client.stream()) as payloads:
        async for _ in payloads:
            break
    assert asyncio.all_tasks() - {asyncio.current_task()} <= _server_tasks()
    assert client.state == "stopped"
    counts = client.counts
    assert counts.received == counts.delivered + counts.dropped
    assert client.pending == 0
    assert [p async for p in client.stream(limit=1)]


def _server_tasks():
    return {task for task in asyncio.all_tasks() if "_handle" in repr(task.get_coro())}


async def test_leaving_the_client_does_not_wait_for_a_consumer_that_stopped_taking(
    server, connect, event
):
    server.script(server.stream(event("s1", 0), event("s1", 1)))
    async with connect() as client:
        payloads = client.stream()
        assert indexes([await anext(payloads)]) == [0]
    assert indexes([p async for p in payloads]) in ([1], [])
    assert client.state == "stopped"


async def test_stop_ends_it(server, connect, event):
    server.script(server.stream(event("s1", 0)))
    client = connect()
    got = []
    async for payload in client.stream():
        got.append(payload)
        client.stop()
    assert indexes(got) == [0]


async def test_cancelling_the_consumer_leaves_nothing(server, connect):
    client = connect()

    async def consume():
        async for _ in client.stream():
            pass

    task = asyncio.create_task(consume())
    await server.requests(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert client.state == "stopped"


async def test_one_at_a_time(server, connect, event):
    server.script(server.stream(event("s1", 0)))
    client = connect()
    async with aclosing(client.stream()) as payloads:
        await anext(payloads)
        with pytest.raises(ClientStateError):
            client.run_in_background()


async def test_leaving_the_client_waits_for_its_hooks(server, connect, event):
    server.script(server.stream(event("s1", 0), event("s1", 1)))
    began, release, ended = asyncio.Event(), asyncio.Event(), []

    async def slow():
        began.set()
        await release.wait()
        ended.append(True)

    client = connect(on_disconnect=slow)

    async def leave():
        async with client:
            await anext(payloads)
        assert ended, "the hook had not ended"

    payloads = client.stream()
    leaving = asyncio.create_task(leave())
    await began.wait()
    await asyncio.wait({leaving}, timeout=0.05)
    release.set()
    await leaving
    await payloads.aclose()
    assert client.state == "stopped"


async def test_overflow_rules_hold_here_too(server, connect, event, until):
    first_taken, dropped = asyncio.Event(), []

    async def answer(peer):
        await server.stream(event("s1", 0), then="")(peer)
        await first_taken.wait()
        await peer.write(b"".join(event("s1", n) for n in range(1, 10)))
        await peer.gone()

    server.script(answer)
    client = connect(
        max_pending=3,
        overflow="drop_oldest",
        on_drop=lambda payload, total: dropped.append(payload.actions[0].index),
    )
    got = []
    async with aclosing(client.stream()) as payloads:
        got.append(await anext(payloads))
        first_taken.set()
        await until(lambda: client.counts.received == 10)
        got += [await anext(payloads) for _ in range(3)]
    assert indexes(got) == [0, 7, 8, 9]
    assert dropped == [1, 2, 3, 4, 5, 6]

"""The task that reads runs callbacks itself, until one waits."""

import asyncio
import contextvars

import pytest

from autoplay_rag.connector.dispatch import Dispatcher
from autoplay_rag.connector.hooks import ConnectionHooks
from autoplay_rag.connector.metrics import Recorder
from autoplay_rag.connector.run import ClientRun
from autoplay_rag.payloads import SummaryPayload

NOTE = contextvars.ContextVar("note", default="nothing")


def numbers(payloads):
    return [payload.actions[0].index for payload in payloads]


async def test_callbacks_that_wait_for_nothing_share_one_task(server, connect, event):
    server.script(server.stream(*(event(f"s{n}", n) for n in range(20))))
    tasks, done = [], asyncio.Event()

    async def work(_):
        tasks.append(asyncio.current_task())
        if len(tasks) == 20:
            done.set()

    async with connect().on_actions(work) as client:
        client.run_in_background()
        await done.wait()
    assert len(set(tasks)) == 1


async def test_a_callback_that_waits_holds_up_nobody(server, connect, event):
    server.script(server.stream(*(event(f"s{n}", n) for n in range(20))))
    begun, release, all_begun = [], asyncio.Event(), asyncio.Event()

    async def work(payload):
        begun.append(payload)
        if len(begun) == 20:
            all_begun.set()
        await release.wait()

    async with connect().on_actions(work) as client:
        client.run_in_background()
        await all_begun.wait()
        assert client.pending == 20
        release.set()
    assert numbers(begun) == list(range(20))
    assert client.counts.delivered == 20


async def test_one_session_runs_at_most_its_share_at_once(server, connect, event):
    server.script(server.stream(*(event("s1", n) for n in range(12)), event("s2", 12)))
    running, most, others, release = 0, 0, asyncio.Event(), asyncio.Event()

    async def work(payload):
        nonlocal running, most
        if payload.session_id == "s2":
            others.set()
            return
        running += 1
        most = max(most, running)
        await release.wait()
        running -= 1

    async with connect(session_concurrency=3).on_actions(work) as client:
        client.run_in_background()
        await others.wait()
        assert (running, client.pending) == (3, 12)
        release.set()
    assert most == 3
    assert client.counts.delivered == 13


async def test_what_a_callback_sets_does_not_reach_the_next_one(server, connect, event):
    server.script(server.stream(*(event("s1", n) for n in range(5))))
    seen, done = [], asyncio.Event()

    async def work(payload):
        seen.append(NOTE.get())
        NOTE.set(f"payload {payload.actions[0].index}")
        if len(seen) == 5:
            done.set()

    async with connect().on_actions(work) as client:
        client.run_in_background()
        await done.wait()
    assert seen == ["nothing"] * 5


@pytest.mark.parametrize("waits", [False, True])
async def test_a_callback_that_cancels_its_own_task_does_not_stop_the_stream(
    server, connect, event, waits
):
    server.script(server.stream(*(event("s1", n) for n in range(5))))
    seen, done = [], asyncio.Event()

    async def work(payload):
        seen.append(payload)
        if len(seen) == 5:
            done.set()
        if len(seen) == 2:
            asyncio.current_task().cancel()
            if waits:
                await asyncio.sleep(0)

    async with connect().on_actions(work) as client:
        client.run_in_background()
        await done.wait()
    assert numbers(seen) == list(range(5))
    assert (client.counts.delivered, client.counts.dropped) == ((4, 1) if waits else (5, 0))


@pytest.mark.parametrize("waits", [False, True])
async def test_a_stop_inside_a_callback_passes_on_what_was_received(server, connect, event, waits):
    server.script(server.stream(*(event(f"s{n}", n) for n in range(10))))
    ended = []

    async def work(payload):
        if payload.actions[0].index == 3:
            client.stop()
        if waits:
            await asyncio.sleep(0)
        ended.append(payload)

    client = connect().on_actions(work)
    async with asyncio.timeout(10):
        await client.run()
    assert sorted(numbers(ended)) == list(range(client.counts.received))
    assert client.counts.received >= 4
    assert client.counts.dropped == 0
    assert client.state == "stopped"


async def test_cancelling_the_run_cancels_a_callback_that_waits(server, connect, event):
    server.script(server.stream(event("s1", 0)))
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def work(_):
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    client = connect().on_actions(work)
    running = asyncio.create_task(client.run())
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert cancelled.is_set()
    assert (client.pending, client.counts.dropped) == (0, 1)


async def test_a_stop_and_a_context_variable_in_one_callback_end_the_run(server, connect, event):
    server.script(server.stream(*(event(f"s{n}", n) for n in range(10))))
    ended = []

    async def work(payload):
        if payload.actions[0].index == 3:
            client.stop()
            NOTE.set("stopped")
        ended.append(payload)

    client = connect().on_actions(work)
    async with asyncio.timeout(10):
        await client.run()
    assert sorted(numbers(ended)) == list(range(client.counts.received))
    assert client.counts.received >= 4


async def test_a_callback_may_catch_what_it_waits_for_and_wait_again(server, connect, event):
    server.script(server.stream(event("s1", 0)))
    steps, done = [], asyncio.Event()

    async def work(_):
        for error in (ValueError("refused"), asyncio.CancelledError()):
            future = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_soon(future.set_exception, error)
            try:
                await future
            except (ValueError, asyncio.CancelledError) as caught:
                steps.append(type(caught))
        await asyncio.sleep(0)
        done.set()

    async with connect().on_actions(work) as client:
        client.run_in_background()
        await done.wait()
    assert steps == [ValueError, asyncio.CancelledError]
    assert client.counts.delivered == 1


async def test_a_session_keeps_its_order_when_its_payloads_run_in_the_reader_again():
    """After a callback that waits, the next hundred start in tasks. The others do not overtake them."""
    seen = []

    class Waiting:
        async def call(self, payload):
            seen.append(payload.forwarded_at)
            await asyncio.sleep(0)

    async def stream():
        for number in range(100):
            yield iter([summary(number)])
            for _ in range(10):  # it has ended before the next one comes
                await asyncio.sleep(0)
        yield iter([summary(number) for number in range(100, 103)])

    def summary(number):
        return SummaryPayload("acme", "s1", "did it", 1, float(number))

    recorder = Recorder(None)
    dispatcher = Dispatcher({"summary": [Waiting()]}, recorder)
    await ClientRun(stream(), dispatcher, ConnectionHooks(None, None)).read()
    await dispatcher.drain(5)
    assert seen == list(range(103))

"""`client.stream()`: payloads for those who want no callbacks."""

import asyncio
import time
from contextlib import aclosing

import pytest

from autoplay_rag.errors import ClientStateError, ConfigurationError


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


async def test_seconds_end_it_and_give_what_came_by_then(server, connect, event):
    server.script(server.stream(event("s1", 1), event("s1", 2)))
    got = []
    async for payload in connect().stream(seconds=0.1):
        await asyncio.sleep(0.1)  # the time is over before the second one is taken
        got.append(payload)
    assert indexes(got) == [1, 2]


async def test_idle_counts_from_the_last_payload(server, connect, event):
    async def three(peer):
        head = server.stream(then="")
        await head(peer)
        for n in range(3):
            await asyncio.sleep(0.1)
            await peer.write(event("s1", n))
        await peer.gone()

    server.script(three)
    started = time.monotonic()
    assert indexes([p async for p in connect().stream(idle=0.2)]) == [0, 1, 2]
    assert time.monotonic() - started >= 0.5


async def test_idle_counts_from_a_connection(server, connect, event):
    async def late(peer):
        await server.stream(then="")(peer)
        await asyncio.sleep(0.15)
        await peer.write(event("s1", 1))
        await peer.gone()

    server.script(server.stream(event("s1", 0), then="close"), late)
    client = connect(initial_backoff_s=0.13, max_backoff_s=0.13)
    assert indexes([p async for p in client.stream(idle=0.2)]) == [0, 1]


async def test_idle_ends_a_stream_that_never_connects(server, connect):
    server.script(server.status(503))
    assert [p async for p in connect().stream(idle=0.05)] == []


async def test_a_slow_consumer_is_not_idleness(server, connect, event):
    server.script(server.stream(*(event("s1", n) for n in range(4))))
    got = []
    async for payload in connect(max_pending=1).stream(idle=0.05):
        await asyncio.sleep(0.08)
        got.append(payload)
    assert indexes(got) == [0, 1, 2, 3]


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

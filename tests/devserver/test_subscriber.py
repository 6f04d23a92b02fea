"""What one subscriber receives, without a socket."""

import asyncio

from autoplay_rag.devserver.pace import Pace
from autoplay_rag.devserver.source import MemorySource
from autoplay_rag.devserver.subscriber import WAITING_LIMIT, Subscriber, frame


def subscriber(*lines, rate=None, loop=False):
    return Subscriber(MemorySource(lines), Pace(rate), heartbeat=None, loop=loop)


async def test_push_waits_while_too_many_wait():
    one = subscriber()
    for _ in range(WAITING_LIMIT):
        assert await one.push(b"{}")
    waiting = asyncio.create_task(one.push(b'{"last":1}'))
    await asyncio.sleep(0)
    assert not waiting.done()
    stream = one.stream()
    assert await anext(stream) == frame(b"{}") * WAITING_LIMIT
    last = asyncio.create_task(anext(stream))
    assert await waiting
    assert await last == frame(b'{"last":1}')
    await stream.aclose()


async def test_a_subscriber_who_left_gets_nothing_and_blocks_no_other():
    one = subscriber()
    for _ in range(WAITING_LIMIT):
        await one.push(b"{}")
    waiting = asyncio.create_task(one.push(b"{}"))
    await asyncio.sleep(0)
    one.end()
    assert not await waiting
    assert not await one.push(b"{}")
    assert [piece async for piece in one.stream()] == []


async def test_large_events_are_not_joined_into_huge_pieces():
    lines = [b"x" * 50_000] * 10
    one = subscriber(*lines)
    stream = one.stream()
    assert len(await anext(stream)) < 110_000
    await stream.aclose()


async def test_what_is_pushed_comes_before_what_is_left_of_the_recording():
    one = subscriber(b"1", b"2", rate=0.001)
    stream = one.stream()
    assert await anext(stream) == frame(b"1")
    await one.push(b"pushed")
    assert await anext(stream) == frame(b"pushed")
    await stream.aclose()


def test_a_bare_carriage_return_cannot_end_a_frame_early():
    assert frame(b'{"a":\r1}') == b'data: {"a": 1}\n\n'

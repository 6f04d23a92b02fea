"""The stream of what comes in: events, ids, resume, filters, slow readers, the end."""

import asyncio
import json
import socket
from contextlib import AsyncExitStack

import pytest
from msgspec.json import encode
from pipelines import make_actions
from serve_server import KEYS, SECRET_WORD, fill, of_both, token

from autoplay_rag import SummaryPayload
from autoplay_rag.live import Feed
from autoplay_rag.live.feed import Subscription
from autoplay_rag.serve import sse as sse_module
from autoplay_rag.serve.routes import stream as stream_module


class Events:
    """Reads server-sent events of an open answer."""

    def __init__(self, answer):
        self._lines = answer.aiter_lines()

    async def next(self):
        """The next event: id, name and data. None at the end."""
        found = {}
        async with asyncio.timeout(30):
            async for line in self._lines:
                name, _, value = line.partition(": ")
                if line and name:
                    found[name] = value
                elif "event" in found:
                    return int(found.get("id", 0)), found["event"], json.loads(found["data"])
        return None

    async def titles(self, count):
        events = [await self.next() for _ in range(count)]
        return [event[2]["payload"]["actions"][0]["title"] for event in events]


def opened(client, **options):
    return client.stream("GET", "/v1/stream", **options)


async def test_what_comes_in_is_streamed_with_ids(running):
    async with running.client(KEYS.read) as client, opened(client) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = Events(answer)
        await running.pipeline.accept(make_actions("s9", "cat arrived", user="cat"))
        await running.pipeline.accept(SummaryPayload("acme", "s9", "Cat arrived."))
        first, second = await events.next(), await events.next()
    assert first[1] == "actions"
    assert first[0] == first[2]["seq"]
    assert first[2]["user_id"] == "cat"
    assert first[2]["payload"]["actions"][0]["title"] == "cat arrived"
    assert second[0] > first[0]
    assert second[1] == "summary"
    assert second[2]["user_id"] == "cat"  # a summary names nobody; the session is Cat's


async def test_a_client_that_comes_back_gets_what_it_missed(running):
    pipeline = running.pipeline
    async with running.client(KEYS.read) as client:
        async with opened(client) as answer:
            await pipeline.accept(make_actions("s9", "one"))
            seen = (await Events(answer).next())[0]
        for title in ("two", "three"):
            await pipeline.accept(make_actions("s9", title))
        async with opened(client, headers={"last-event-id": str(seen)}) as answer:
            assert await Events(answer).titles(2) == ["two", "three"]
        async with opened(client, params={"after": seen}) as answer:
            assert await Events(answer).titles(2) == ["two", "three"]
        for unknown in (seen + 1000, 2**53):
            async with opened(client, headers={"last-event-id": str(unknown)}) as answer:
                assert (await Events(answer).next())[1:] == ("gap", {"missed": None})
        refused = await client.get("/v1/stream", headers={"last-event-id": "x"})
    assert refused.status_code == 422


async def test_a_gap_is_told_after_a_restart(serve, make_pipeline, tmp_path):
    async with serve(journal=tmp_path / "journal.db") as running:
        await fill(running.pipeline)
    pipeline = make_pipeline(journal=tmp_path / "journal.db", adopt=True)
    async with (
        serve(pipeline=pipeline) as running,
        running.client(KEYS.read) as client,
        opened(client, headers={"last-event-id": "3"}) as answer,
    ):
        events = Events(answer)
        assert (await events.next())[1] == "gap"
        await pipeline.accept(make_actions("s9", "later"))
        assert (await events.next())[0] > 3


async def test_a_token_gets_its_own_events_alone(running):
    pipeline = running.pipeline
    async with running.client(token(user_id="ann")) as client, opened(client) as answer:
        events = Events(answer)
        other = make_actions("s1", f"other {SECRET_WORD}", user="ann")
        other.product_id = "umbrella"
        for payload in (
            make_actions("s2", f"bob {SECRET_WORD}", user="bob"),
            make_actions("s3", f"somebody {SECRET_WORD}"),  # of a session of both
            SummaryPayload("acme", "s3", SECRET_WORD),
            SummaryPayload("acme", "s2", SECRET_WORD),
            other,
            of_both("s5"),
            make_actions("s1", "ann again"),  # names nobody; the session is Ann's
        ):
            await pipeline.accept(payload)
        first, second = await events.next(), await events.next()
    assert [action["title"] for action in first[2]["payload"]["actions"]] == ["ann looked"]
    assert second[2]["payload"]["actions"][0]["title"] == "ann again"
    assert SECRET_WORD not in str((first, second))


async def test_filters(running):
    asked = {"user_id": "cat", "product_id": "acme", "kind": "actions"}
    async with running.client(KEYS.read) as client, opened(client, params=asked) as answer:
        await running.pipeline.accept(make_actions("s8", "dog", user="dog"))
        await running.pipeline.accept(SummaryPayload("acme", "s9", "Cat."))
        await running.pipeline.accept(make_actions("s9", "cat", user="cat"))
        assert await Events(answer).titles(1) == ["cat"]


async def test_a_person_without_a_product_stays_in_the_first_one(running):
    async with (
        running.client(KEYS.read) as client,
        opened(client, params={"user_id": "cat"}) as answer,
    ):
        other = make_actions("s9", "other cat", user="cat")
        other.product_id = "umbrella"
        await running.pipeline.accept(make_actions("s9", "cat", user="cat"))
        await running.pipeline.accept(other)
        await running.pipeline.accept(make_actions("s9", "cat again", user="cat"))
        assert await Events(answer).titles(2) == ["cat", "cat again"]


async def test_the_end_of_a_token_ends_the_stream(running):
    async with running.client(token(user_id="ann", ttl=1)) as client, opened(client) as answer:
        events = Events(answer)
        assert await events.next() == (0, "end", {"reason": "the token expired"})
        assert await events.next() is None


async def test_every_subscriber_is_told_of_the_end_and_stalled_ones_do_not_hold_it(
    serve, monkeypatch, eventually
):
    monkeypatch.setattr("autoplay_rag.serve.server._GRACE_SECONDS", 0.3)
    async with serve() as running:
        stalled = [_stalled(running.server.port) for _ in range(3)]
        async with running.client(KEYS.read) as client, opened(client) as answer:
            events = Events(answer)
            await eventually(lambda: len(running.pipeline.feed) == 4)
            for number in range(200):  # more than the buffers of the sockets hold
                await running.pipeline.accept(make_actions("s9", f"{number} " + "x" * 20_000))
            running.server.stop()
            last = None
            while event := await events.next():
                last = event
            assert last[1:] == ("end", {"reason": "the server stops"})
        await eventually(lambda: not len(running.pipeline.feed))
    for one in stalled:
        one.close()


async def test_a_client_that_reads_slowly_is_told_what_it_missed(running, eventually):
    async with running.client(KEYS.read) as client, opened(client) as answer:
        feed = running.pipeline.feed
        await eventually(lambda: len(feed) == 1)
        for number in range(400):  # 8 MB: more than the buffers hold
            await running.pipeline.accept(make_actions("s9", f"{number} " + "x" * 20_000))
        events = Events(answer)
        seen, missed, at = 0, 0, -1
        while at < 399:
            _, name, data = await events.next()
            if name == "gap":
                missed += data["missed"]
                continue
            at = int(data["payload"]["actions"][0]["title"].split()[0])
            seen += 1
    assert missed > 0
    assert seen + missed == 400


def _stalled(port):
    """A subscriber that never reads."""
    one = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.connect(("127.0.0.1", port))
    one.sendall(
        f"GET /v1/stream HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEYS.read}\r\n\r\n".encode()
    )
    return one


async def test_the_streams_of_one_token_are_bounded(running, monkeypatch, eventually):
    monkeypatch.setattr("autoplay_rag.serve.serving._MOST_OF_TOKEN", 1)
    async with running.client(token(user_id="ann")) as client, opened(client):
        assert (await client.get("/v1/stream")).status_code == 429
    await eventually(lambda: not running.server._serving.streams)


async def test_forgotten_events_are_not_streamed(running):
    pipeline = running.pipeline
    before = pipeline.watermark
    await pipeline.accept(make_actions("s9", "cat", user="cat"))
    await pipeline.drain()
    await pipeline.forget(user_id="cat")
    await pipeline.accept(make_actions("s8", "dog", user="dog"))
    async with (
        running.client(KEYS.read) as client,
        opened(client, params={"after": before}) as answer,
    ):
        assert await Events(answer).titles(1) == ["dog"]


# -- the feed itself ------------------------------------------------------------------------------


async def test_a_slow_subscriber_loses_the_oldest_and_is_told():
    feed = Feed()
    with feed.subscribe(limit=3) as slow, feed.subscribe() as fast:
        for seq in range(1, 11):
            feed.publish(seq, 0.0, 7, make_actions("s", str(seq)), 100)
        missed, events = slow.take()
        assert (missed, [event.seq for event in events]) == (7, [8, 9, 10])
        assert slow.take() == (0, [])
        assert fast.take()[0] == 0
    assert len(feed) == 0
    assert slow.closed


async def test_what_waits_is_bounded_in_bytes_too():
    feed = Feed()
    with feed.subscribe(max_bytes=250) as slow:
        for seq in range(1, 11):
            feed.publish(seq, 0.0, 7, make_actions("s", str(seq)), 100)
        missed, events = slow.take()
        assert (missed, len(events)) == (8, 2)
        feed.publish(11, 0.0, 7, make_actions("s", "large"), 1000)
        assert [event.seq for event in slow.take()[1]] == [11]


async def test_a_part_of_what_waits_can_be_taken():
    feed = Feed()
    with feed.subscribe(limit=4) as one:
        for seq in range(1, 6):
            feed.publish(seq, 0.0, 7, make_actions("s", str(seq)), 100)
        missed, events = one.take(250)
        assert (missed, [event.seq for event in events], one.waiting) == (1, [2, 3], 2)
        async with asyncio.timeout(30):
            await one.wait()  # there is more
        feed.publish(6, 0.0, 7, make_actions("s", "6"), 1000)
        assert [event.seq for event in one.take(250)[1]] == [4, 5]
        assert [event.seq for event in one.take(250)[1]] == [6]  # larger, and alone
        assert (one.take(250), one.waiting) == ((0, []), 0)
        # What it counts for `max_bytes` is right again.
        for seq in range(7, 11):
            feed.publish(seq, 0.0, 7, make_actions("s", str(seq)), 100)
        assert len(one.take()[1]) == 4


async def test_events_gather_until_half_of_what_may_wait_does():
    feed = Feed()
    with feed.subscribe(limit=4, max_bytes=1000) as one:
        for sizes in ([1, 1], [500]):
            await one.gather(0.0)
            gathering = asyncio.create_task(one.gather(3600.0))
            await asyncio.sleep(0)
            for seq, size in enumerate(sizes, 1):
                assert not gathering.done()
                feed.publish(seq, 0.0, 7, make_actions("s", str(seq)), size)
                await asyncio.sleep(0)
            async with asyncio.timeout(30):
                await gathering
            one.take()
        gathering = asyncio.create_task(one.gather(3600.0))
        await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await gathering  # closed


async def test_with_many_streams_more_events_are_sent_together(running, monkeypatch):
    gathered = []

    async def gather(self, seconds):
        gathered.append(seconds)

    monkeypatch.setattr(Subscription, "gather", gather)
    monkeypatch.setattr(sse_module, "_MOST_SENDS", 2)
    async with running.client(KEYS.read) as client, AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(opened(client))
        answer = await stack.enter_async_context(opened(client))
        await running.pipeline.accept(make_actions("s9", "cat arrived", user="cat"))
        await Events(answer).next()
    assert max(gathered) == 4 / 2


async def test_a_client_that_fell_behind_gets_everything_in_small_parts(running, monkeypatch):
    sizes = []
    take = stream_module.EventStream.take

    def measured(response):
        sizes.append(len(taken := take(response)))
        return taken

    monkeypatch.setattr(stream_module.EventStream, "take", measured)
    text = "x" * 1_000
    async with running.client(KEYS.read) as client, opened(client) as answer:
        events = Events(answer)
        # In one turn of the event loop, so that all of them wait.
        for n in range(300):
            payload = make_actions("s9", f"{n} {text}")
            running.pipeline.feed.publish(10_000 + n, 0.0, 7, payload, len(encode(payload)))
        titles = await events.titles(300)
    assert [title.split()[0] for title in titles] == [str(n) for n in range(300)]
    assert sum(sizes) > 300 * 2_000
    assert max(sizes) < 2**17 * 1.5


async def test_what_is_kept_for_a_resume_is_bounded():
    feed = Feed(kept=5, kept_bytes=1000)
    feed.begin(10)
    assert feed.keeps(10)
    assert not feed.keeps(9)
    for seq in range(11, 31):
        feed.publish(seq, 0.0, 7, make_actions("s", str(seq)), 100)
    assert feed.keeps(25)
    assert not feed.keeps(24)
    assert not feed.keeps(31)
    with feed.subscribe(after=27) as later:
        assert [event.seq for event in later.take()[1]] == [28, 29, 30]


@pytest.mark.parametrize(
    ("payloads", "owner"),
    [
        ([make_actions("s", "a", user="ann"), make_actions("s", "b")], "ann"),
        ([make_actions("s", "a"), make_actions("s", "b")], None),
        (
            [make_actions("s", "a", user="ann"), make_actions("s", "b", user="bob"), make_actions("s", "c")],
            None,
        ),
        ([of_both("s"), make_actions("s", "c")], None),
        ([make_actions("s", "a", user="ann"), SummaryPayload("acme", "s", "b")], "ann"),
        ([make_actions(None, "a", user="ann"), make_actions(None, "b")], None),
    ],
)  # fmt: skip
async def test_whose_an_event_is(payloads, owner):
    feed = Feed()
    with feed.subscribe() as subscription:
        for seq, payload in enumerate(payloads, 1):
            lane = 7 if payload.session_id else -seq
            feed.publish(seq, 0.0, lane, payload, 1)
        assert subscription.take()[1][-1].user_id == owner

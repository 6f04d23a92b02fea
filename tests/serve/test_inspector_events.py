"""The stream that makes a page move: HTML in server-sent events, and only what changed."""

import asyncio
import json
import time
from contextlib import asynccontextmanager

from pipelines import make_actions
from serve_server import KEYS, SECRET_WORD, token

from autoplay_rag.journal.inflow import TopicPart, TopicStatus
from autoplay_rag.serve.inspector.events import PageStream


class Events:
    """Reads a stream. `next` waits for an event of a name that has a text."""

    def __init__(self, lines):
        self._lines = lines
        self.names = []
        self.latest = {}

    async def next(self, name, text=""):
        async with asyncio.timeout(20):
            while True:
                event, data = await self._read()
                self.names.append(event)
                self.latest[event] = data
                if event == name and text in data:
                    return data

    async def _read(self):
        event, data = "", []
        async for line in self._lines:
            if not line and event:
                return event, "\n".join(data)
            if line.startswith("event: "):
                event = line[7:]
            elif line.startswith("data: "):
                data.append(line[6:])
        raise AssertionError("the stream ended")


@asynccontextmanager
async def watching(started, credential, query=""):
    async with (
        started.client(credential) as client,
        client.stream("GET", f"/events{query}") as answer,
    ):
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield Events(answer.aiter_lines())


async def accept(started, session, *texts, user="ann"):
    await started.pipeline.accept(make_actions(session, *texts, user=user, at=time.time()))


async def test_a_session_appears_while_one_looks(serve):
    async with serve() as started, watching(started, KEYS.read, "?page=overview") as events:
        assert "No session is live" in await events.next("live")
        await accept(started, "s<1>", "opened <b>reports</b>")
        live = await events.next("live", "opened")
        assert "<bdi>s&lt;1&gt;</bdi>" in live
        assert "&lt;b&gt;reports&lt;/b&gt;" in live
        assert 'href="./sessions/s%3C1%3E?product_id=acme"' in live
        counts = await events.next("counts", "<dt>Received</dt><dd>1</dd>")
        assert "<dt>Live sessions</dt><dd>1</dd>" in counts
        sample = json.loads(events.latest.get("sample") or await events.next("sample"))
        assert len(sample) == 5
        assert abs(sample[0] - time.time()) < 30


async def test_only_what_changed_is_sent(serve):
    async with serve() as started, watching(started, KEYS.read, "?page=sessions") as events:
        await events.next("live")
        for number in range(3):
            await accept(started, f"n{number}", f"opened {number}")
            await events.next("live", f"n{number}")
    assert events.names.count("state") == 1
    assert events.names.count("live") == 4


async def test_a_page_is_not_sent_what_it_does_not_show(serve):
    async with serve() as started, watching(started, KEYS.read, "?page=settings") as events:
        assert "running" in await events.next("state")
        await accept(started, "s1", "opened")
        await started.pipeline.aclose()
        assert "stopped" in await events.next("state", "stopped")
    assert set(events.names) == {"state"}


async def test_a_session_page_hears_of_newer_events(serve):
    async with serve() as started:
        await accept(started, "s1", "opened")
        seen = started.pipeline.live.sessions()[0].events[-1].at
        query = f"?page=session&session_id=s1&product_id=acme&after={seen!r}"
        async with watching(started, KEYS.read, query) as events:
            await accept(started, "other", "looked")
            await accept(started, "s1", "paid <i>")
            said = await events.next("newer")
    assert "1 newer event<" in said
    assert "paid &lt;i&gt;" in said
    assert "looked" not in said


async def test_a_token_hears_of_its_own_sessions_alone(serve):
    async with serve() as started:
        query = "?page=overview"
        async with watching(started, token(user_id="ann"), query) as events:
            await events.next("live")
            await accept(started, "b1", SECRET_WORD, user="bob")
            await accept(started, "a1", "opened")
            live = await events.next("live", "opened")
            assert SECRET_WORD not in live
            assert "b1" not in live
    assert set(events.names) == {"live"}


async def test_the_stream_ends_with_its_token_and_with_the_server(serve):
    async with serve() as started:
        async with watching(started, token(user_id="ann", ttl=1), "?page=overview") as events:
            assert json.loads(await events.next("end")) == {"reason": "the token expired"}
        async with watching(started, KEYS.read, "?page=overview") as events:
            await events.next("live")
            started.server.stop()
            assert json.loads(await events.next("end")) == {"reason": "the server stops"}


async def test_a_reader_that_left_is_forgotten(serve, eventually):
    async with serve() as started:
        async with watching(started, KEYS.read, "?page=overview") as events:
            await events.next("live")
            assert len(started.pipeline.feed) == 1
        await eventually(lambda: not len(started.pipeline.feed))


async def test_pages_that_look_the_same_are_rendered_once(serve, monkeypatch):
    async with serve() as started:
        made = []
        take = PageStream.take
        monkeypatch.setattr(PageStream, "take", lambda self: made.append(self) or take(self))
        async with (
            watching(started, KEYS.read, "?page=overview") as one,
            watching(started, KEYS.admin, "?page=overview") as other,
        ):
            await accept(started, "s1", "opened")
            assert await one.next("live", "opened") == await other.next("live", "opened")
            fragments = made[0].serving.fragments
        assert len({id(stream) for stream in made}) == 2
        assert {name[0] for name in fragments} == {"state", "counts", "connections", "live"}


async def test_the_topic_moves_for_those_who_may_see_everything(serve):
    async with serve() as started:
        condition = started.pipeline._run.condition
        condition.topic = TopicStatus("events", "rag", (TopicPart(0, "host<1>:7", 1200, 1250, 0),))
        async with watching(started, KEYS.read, "?page=overview") as events:
            said = await events.next("topic")
            assert "host&lt;1&gt;:7" in said
            assert ">1,200<" in said
            assert "Messages that are not taken in yet: 50." in said
            assert "no process reads" not in said
            condition.topic = condition.topic.read_by(())
            await events.next("topic", "Partitions that no process reads: 0.")
            condition.topic = TopicStatus("events", "rag", (TopicPart(0, "host:8", 1300, None, 4),))
            said = await events.next("topic", "host:8")
            assert "deleted from the topic before they were read: 4." in said
            assert "unknown" in said
            condition.topic = TopicStatus("events", "rag", ())
            await events.next("topic", "No process has read the topic yet.")
        async with watching(started, token(user_id="ann"), "?page=overview") as events:
            await events.next("live")
            await accept(started, "a1", "opened")
            await events.next("live", "opened")
        assert "topic" not in events.names

"""What people see of a topic: the page, `/metrics`, `/v1/status`, `autoplay-rag status`, receipts."""

import asyncio
import json
import os
import re
import sys
from asyncio.subprocess import PIPE

import pytest
from confluent_kafka.admin import AdminClient, NewTopic
from page_reader import HTML, main_of
from serve_server import KEYS
from topics import Topic

from autoplay_rag.journal.inflow import TopicPart, TopicStatus
from autoplay_rag.kafka.messages import Message
from autoplay_rag.stores import MemoryStore

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def events(broker, topic, postgres, make_pg_store):
    return Topic(broker, topic, postgres, make_pg_store)


def create(events, **config):
    """Create the topic with settings: `retention_ms=1000` is `retention.ms`."""
    client = AdminClient({"bootstrap.servers": events.broker.bootstrap, "log_level": 0})
    given = {name.replace("_", "."): str(value) for name, value in config.items()}
    made = client.create_topics([NewTopic(events.name, 1, config=given)])
    made[events.name].result(20)


async def metrics(client):
    """The metrics of the topic, by name and labels."""
    text = (await client.get("/metrics")).text
    found = re.findall(r"^autoplay_rag_(topic_\w+)(?:\{(.*)\})? (\S+)$", text, re.MULTILINE)
    return {(name, labels): float(value) for name, labels, value in found}


async def until(condition):
    """Wait for what another task reads from the broker and the database."""
    async with asyncio.timeout(60):
        while not (found := await condition()):  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.1)
    return found


@pytest.fixture
async def front(serve, events, make_actions):
    """A server that does not read the topic, beside a process that does, and has."""
    await events.create(2)
    await events.send(make_actions("s1", "opened", "exported"), part=1)
    await events.send_messages([Message(None, b"no payload", ())], part=1)
    front = events.pipeline(takes_work=False)
    async with serve(pipeline=front) as running, events.pipeline() as reader:
        running.reader = reader
        async with running.client(KEYS.admin) as client:

            async def taken():
                found = (await client.get("/v1/status")).json()["topic"]
                return [part["offset"] for part in found["parts"]] == [None, 2]

            await until(taken)
        yield running


async def command(front, *args):
    """Run a command that asks the server; return what it prints."""
    given = {**os.environ, "AUTOPLAY_RAG_URL": front.server.url, "AUTOPLAY_RAG_KEY": KEYS.admin}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "autoplay_rag", *args, stdout=PIPE, env=given
    )
    out, _ = await process.communicate()
    return out.decode()


@pytest.mark.slow
async def test_a_server_that_does_not_read_shows_the_topic(front, topic):
    async with front.client(KEYS.admin) as client:
        found = (await client.get("/v1/status")).json()["topic"]
        assert (found["topic"], found["group"]) == (topic, topic)
        assert [part["number"] for part in found["parts"]] == [0, 1]
        assert (found["lag"], found["missed"]) == (0, 0)
        (owner,) = {part["owner"] for part in found["parts"]}
        assert owner
        await front.pipeline.drain()
        assert front.pipeline.ledger.dead == front.pipeline.ledger.stored == 1

        shown = await metrics(client)
        assert shown["topic_offset", 'partition="1"'] == 2
        assert shown["topic_lag", 'partition="1"'] == 0
        assert shown["topic_missed_total", 'partition="0"'] == 0
        assert shown["topic_read", f'partition="1",replica="{owner}"'] == 1
        assert shown["topic_unread_partitions", ""] == 0

        page = main_of((await client.get("/", headers=HTML)).text)
        assert '<h2 id="h-topic">Topic</h2>' in page
        assert f"<bdi>{topic}</bdi>" in page
        assert "no process reads" not in page
        assert json.loads(await command(front, "status", "--json"))["topic"] == found


@pytest.mark.slow
async def test_a_topic_without_a_reader_is_said(front, topic):
    async with front.client(KEYS.admin) as client:
        await front.reader.aclose()

        async def released():
            found = await metrics(client)
            return found if found["topic_unread_partitions", ""] else None

        shown = await until(released)
        assert shown["topic_unread_partitions", ""] == 2
        assert not [name for name, _ in shown if name == "topic_read"]
        page = main_of((await client.get("/", headers=HTML)).text)
        assert "Partitions that no process reads: 0, 1." in page
    said = await command(front, "status")
    assert re.search(rf"^topic +{topic}, group {topic}$", said, re.MULTILINE)
    assert re.search(r"^topic lag +0$", said, re.MULTILINE)
    said = await command(front, "status", "--check")
    assert "no process reads the partitions 0, 1 of the topic" in said


def test_a_reader_that_was_killed_reads_nothing():
    # It has released nothing, and its lease is over.
    parts = (
        TopicPart(0, "a:1", 3, 9, 0),
        TopicPart(1, "b:2", None, None, 2),
        TopicPart(2, None, 1, 1, 0),
    )
    status = TopicStatus("events", "rag", parts).read_by({"b:2", "c:3"})
    assert [part.owner for part in status.parts] == [None, "b:2", None]
    assert status.unread == (0, 2)
    assert [part.lag for part in status.parts] == [6, 0, 0]
    assert (status.lag, status.missed) == (6, 2)


@pytest.fixture
def receipt_of(serve, events, make_actions):
    """Forget somebody whose payload came from the topic, over HTTP; return the receipt."""

    async def forget(**config):
        create(events, **config)
        ann = make_actions("s1", "opened", user="ann")
        await events.send(ann)
        async with (
            serve(pipeline=events.pipeline()) as running,
            running.client(KEYS.admin) as client,
        ):

            async def stored():
                return running.pipeline.ledger.stored == 1

            await until(stored)
            asked = await client.post("/v1/forget", json={"user_id": "ann"})

            async def erased():
                found = (await client.get(f"/v1/forget/{asked.json()['number']}")).json()
                return found if found["erased_at"] else None

            receipt = await until(erased)
            # The topic has the message still. Read again, it is refused.
            await events.send(ann)

            async def refused():
                return running.pipeline.ledger.refused == 1

            await until(refused)
            assert running.pipeline.ledger.received == 2
            assert await running.pipeline.sessions(user_id="ann") == []
            return receipt

    return forget


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"retention_ms": 7 * 86400 * 1000}, "for 7 days"),
        pytest.param(
            {}, "forever, unless the broker's own settings have a limit", marks=pytest.mark.slow
        ),
        pytest.param({"retention_ms": 36 * 3600 * 1000}, "for 36 hours", marks=pytest.mark.slow),
    ],
)
async def test_the_receipt_of_forget_names_topic_and_retention(
    config, said, receipt_of, broker, topic
):
    receipt = await receipt_of(**config)
    (line,) = [one for one in receipt["remaining"] if one.startswith("Kafka (")]
    assert f"topic {topic} on {broker.bootstrap}" in line
    assert f"the topic keeps its messages {said} (retention.ms)" in line
    assert any(one.startswith("PostgreSQL (") for one in receipt["remaining"])


@pytest.mark.slow
async def test_the_receipt_without_a_broker(
    make_pipeline, postgres, make_pg_store, unused_tcp_port
):
    address = f"kafka://127.0.0.1:{unused_tcp_port}/events?group=rag"
    settings = {"socket.connection.setup.timeout.ms": 1000}
    pipeline = make_pipeline(
        MemoryStore(), journal=address, catalog=postgres.dsn, kafka_settings=settings
    )
    async with pipeline:
        receipt = await pipeline.forget(user_id="ann")
        (line,) = [one for one in receipt.remaining if one.startswith("Kafka (")]
        assert "for a time that is unknown here, because the broker did not say so" in line

"""Reading for a process that has ended, with a real broker and a real database.

No group is joined here, so nobody else reads.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from topics import Topic, until, visit

from autoplay_rag.cluster.presence import Presence
from autoplay_rag.errors import BrokerError
from autoplay_rag.ingest.inflowing import Entries
from autoplay_rag.ingest.intake import Intake
from autoplay_rag.kafka import KafkaQueue, standing_in
from autoplay_rag.kafka.admin import Topic as Described

pytestmark = pytest.mark.timeout(120)
CHILD = Path(__file__).parents[1] / "cluster" / "presence_child.py"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(standing_in, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(standing_in, "_SURE_SECONDS", 0.1)


class NothingPulled:
    def unknown(self, payload):
        return payload


class Readers:
    """Two processes: one that reads the topic and may end, and one that stands in."""

    def __init__(self, events, queue):
        self.events, self.queue = events, queue
        self.rows, self.admin = queue._rows, queue._admin
        self.stand_in = queue.inflow._stand_in
        self.name = self.stand_in._name
        self.entries = Entries(
            Intake(None, None), NothingPulled(), itertools.count(1).__next__, lambda: None
        )

    @property
    def schema(self):
        return f'"{self.events.schema}"'

    async def read_by(self, name, *parts):
        """Let a process have read nothing yet of these partitions."""
        topic = await self.admin.describe()
        return await self.rows.take(name, topic.id, parts)

    def presence_of(self, name):
        return Presence(self.queue._link, self.schema, name)

    def seqs(self):
        return [seq for (seq,) in self.events.postgres.run(
            f"SELECT seq FROM {self.events.schema}.payload ORDER BY seq"
        )]  # fmt: skip

    def owners(self):
        return [owner for _, owner, _, _ in self.events.parts()]

    async def until_left(self, count):
        """Wait until as many partitions have no reader that runs; return them."""
        async with asyncio.timeout(30):
            while len(left := await self.rows.left_behind("me")) != count:  # noqa: ASYNC110
                await asyncio.sleep(0.02)  # what another process does has no event
        return left

    @asynccontextmanager
    async def standing_in(self):
        task = asyncio.create_task(self.stand_in.run(self.entries, lambda: None))
        try:
            yield
        finally:
            self.stand_in.stop()
            await task


@pytest.fixture
async def readers(broker, topic, postgres, make_pg_store):
    events = Topic(broker, topic, postgres, make_pg_store)
    await events.create(2)
    queue = KafkaQueue(
        broker.bootstrap, topic, topic, dsn=postgres.dsn, schema=events.schema, lease_seconds=None
    )
    await queue.open()
    yield Readers(events, queue)
    await queue.close()


@asynccontextmanager
async def running(work):
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_process_that_was_killed_is_noticed(readers):
    child = await asyncio.create_subprocess_exec(
        sys.executable, str(CHILD), readers.events.postgres.dsn, readers.schema, "host:7"
    )
    try:
        await readers.read_by("host:7", 0)
        await readers.until_left(0)
        child.kill()
        left = await readers.until_left(1)
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()
    assert [(one.part, one.owner) for one in left] == [(0, "host:7")]
    # A process does not take itself for ended.
    assert await readers.rows.left_behind("host:7") == []


async def test_a_process_that_lost_its_connection_is_connected_again(readers):
    def holders():
        return readers.events.postgres.run(
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock'"
        )

    async with running(readers.presence_of("runs:1").run()):
        await until(holders)
        before = holders()
        readers.events.postgres.run("SELECT pg_terminate_backend(%s)", *before[0])
        await until(lambda: holders() not in ([], before))
    await until(lambda: not holders())


async def test_one_process_takes_a_partition_over(readers):
    await readers.read_by("gone:1", 0)
    (left,) = await readers.rows.left_behind("me")
    topic = await readers.admin.describe()
    assert await readers.rows.take_over("me", "of another topic", left) is None
    held = await readers.rows.take_over("me", topic.id, left)
    assert (held.part, held.epoch, held.offset) == (0, left.epoch + 1, -1)
    assert await readers.rows.take_over("other", topic.id, left) is None
    assert await readers.rows.owner(0) == "me"
    assert await readers.rows.owner(1) is None


async def test_messages_are_taken_in_for_a_process_that_has_ended(readers, make_actions, caplog):
    await readers.read_by("gone:1", 0, 1)
    payloads = [visit(f"s{n % 5}", n, make_actions) for n in range(20)]
    await readers.events.send(*payloads)
    with caplog.at_level(logging.INFO):
        async with readers.standing_in():
            await until(lambda: len(readers.seqs()) == 20)
            assert readers.owners() == [readers.name] * 2
            await readers.events.send(*payloads[:3])
            await until(lambda: sum(row[2] for row in readers.events.parts()) == 23)
    assert len(readers.seqs()) == 20
    assert "for gone:1, which has ended" in caplog.text
    assert readers.owners() == [None, None]


async def test_the_group_s_reader_takes_the_partition_from_the_one_that_stands_in(
    readers, make_actions
):
    await readers.read_by("gone:1", 0, 1)
    async with readers.standing_in(), running(readers.presence_of("member:1").run()):
        await until(lambda: readers.owners() == [readers.name] * 2)
        (member,) = await readers.read_by("member:1", 0)
        await until(lambda: 0 not in readers.stand_in._held)
        await readers.events.send(*[visit("s", n, make_actions) for n in range(4)], part=0)
        await readers.events.send(*[visit("t", n, make_actions) for n in range(4)], part=1)
        await until(lambda: len(readers.seqs()) == 4)
        assert readers.owners() == ["member:1", readers.name]
    assert (await readers.rows.current(0)).epoch == member.epoch
    assert readers.owners() == ["member:1", None]


async def test_a_process_that_runs_is_left_alone(readers, monkeypatch):
    """With its lock always; without it, after it has shown that it runs."""
    looks = 0
    found = readers.rows.left_behind

    async def left_behind(name):
        nonlocal looks
        looks += 1
        return await found(name)

    monkeypatch.setattr(readers.rows, "left_behind", left_behind)
    async with running(readers.presence_of("runs:1").run()):
        await readers.read_by("runs:1", 0)
        await readers.until_left(0)
        async with readers.standing_in():
            await until(lambda: looks > 6)
            assert readers.owners() == ["runs:1"]
            await readers.read_by("unseen:1", 1)
            await until(lambda: readers.owners() == ["runs:1", readers.name])
            await readers.read_by("unseen:1", 1)
            await until(lambda: "unseen:1" in readers.stand_in._spared)
            looks = 0
            await until(lambda: looks > 6)
            assert readers.owners() == ["runs:1", "unseen:1"]


async def test_a_topic_that_was_made_anew_is_left_to_the_group(readers, make_actions, monkeypatch):
    await readers.read_by("gone:1", 0)
    await readers.events.send(visit("s", 0, make_actions), part=0)
    async with readers.standing_in():
        await until(lambda: len(readers.seqs()) == 1)
        topic = await readers.admin.describe()

        async def describe():
            return Described(f"{topic.id}-anew", 2)

        monkeypatch.setattr(readers.admin, "describe", describe)
        await until(lambda: readers.owners() == [None])
        # The next one is not taken over either: its offset is of the topic before.
        await readers.read_by("gone:2", 1)
        await until(lambda: readers.stand_in._seen)
    assert len(readers.seqs()) == 1


async def test_a_broker_that_does_not_answer_is_left_to_the_group(readers, monkeypatch):
    asked = asyncio.Event()

    async def describe():
        asked.set()
        raise BrokerError("it is away")

    await readers.read_by("gone:1", 0)
    monkeypatch.setattr(readers.admin, "describe", describe)
    async with readers.standing_in():
        await asked.wait()
    assert readers.owners() == ["gone:1"]
    assert readers.stand_in.problem is None

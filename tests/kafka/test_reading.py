"""Pipelines that read a topic, with a real broker and a real database."""

from __future__ import annotations

import asyncio
import logging
import time
from types import SimpleNamespace

import pytest
from broker import Broker
from confluent_kafka import Consumer
from confluent_kafka.admin import AdminClient
from postgres import PostgresServer
from topics import SETTINGS, Topic, until, visit

from autoplay_rag import ActionsPayload, SlimAction
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.kafka import queue
from autoplay_rag.kafka.messages import Message

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def events(broker, topic, postgres, make_pg_store):
    return Topic(broker, topic, postgres, make_pg_store)


@pytest.fixture
def own_broker():
    broker = Broker()
    yield broker
    broker.kill()


@pytest.fixture
def own_events(own_broker, topic, postgres, make_pg_store):
    return Topic(own_broker, topic, postgres, make_pg_store)


@pytest.fixture
def visits(make_actions):
    """Payloads of three sessions in turn."""

    def make(*numbers: int) -> list[ActionsPayload]:
        return [visit(f"s{number % 3}", number, make_actions) for number in numbers]

    return make


def expected(*numbers: int) -> dict[str, list[str]]:
    """What `Topic.titles` returns once `visits` are stored."""
    found: dict[str, list[str]] = {}
    for number in numbers:
        found.setdefault(f"s{number % 3}", []).append(f"s{number % 3} click {number}")
    return found


def balanced(ledger) -> bool:
    """Whether everything that was received is stored, dead or known."""
    settled = ledger.stored + ledger.duplicate + ledger.dead + ledger.filtered
    return not ledger.pending and ledger.received == settled + ledger.refused + ledger.discarded


async def test_what_a_topic_has_is_stored_once_and_found(events, visits):
    await events.create(2)
    await events.send(*visits(*range(12)))
    async with events.pipeline() as pipeline:
        await until(lambda: pipeline.ledger.stored == 12)
        await events.send(*visits(*range(5)))
        await until(lambda: pipeline.ledger.duplicate == 5)
        (hit,) = await pipeline.search("s1 click 4", k=1)
        assert hit.session_id == "s1"
        assert pipeline.health.reasons == ()
        began = time.monotonic()
    assert time.monotonic() - began < 8
    assert balanced(pipeline.ledger)
    assert pipeline.ledger.received == 17
    assert events.titles() == expected(*range(12))
    # Released, so that the next reader is not kept waiting.
    assert [owner for _, owner, _, _ in events.parts()] == [None, None]
    assert sum(offset for _, _, offset, _ in events.parts()) == 17


async def test_what_is_no_payload_becomes_a_dead_letter_once(events, visits, caplog):
    await events.create()
    await events.send(*visits(0))
    bad = [b"private garbage", b'{"type": "video"}', None]
    await events.send_messages(Message(None, value, ()) for value in bad)
    await events.send(*visits(1))
    async with events.pipeline() as pipeline:
        await until(lambda: pipeline.ledger.stored == 2)
        letters = await pipeline.dead_letters.list()
        assert pipeline.ledger.dead == 3
    assert [letter.payload for letter in letters] == [None] * 3
    for number, letter in enumerate(sorted(letters, key=lambda one: one.id), 1):
        assert f"offset {number} of partition 0 of the topic {events.name}" in letter.error
    errors = " ".join(letter.error for letter in letters)
    assert "video" in errors
    assert "private" not in caplog.text + errors
    # Read again, as after another group's mistake.
    events.postgres.run(f"UPDATE {events.schema}.topic_offset SET next_offset = -1")
    async with events.pipeline() as pipeline:
        await until(lambda: pipeline.ledger.received == 10)
        assert pipeline.ledger.dead == 3
        assert balanced(pipeline.ledger)
    assert events.titles() == expected(0, 1)


@pytest.mark.slow
async def test_the_rules_of_a_pipeline_apply(events, visits):
    """Several people in one payload, `select`, `redact`."""
    actions = [
        SlimAction(
            what, f"s9 {what}", "https://app.test/p", n, "click", 10.0 + n, 10.0 + n, user_id=who
        )
        for n, (who, what) in enumerate((("ann", "paid"), ("bob", "left")))
    ]
    both = ActionsPayload("acme", "s9", None, None, actions, 2, 20.0)

    def redact(payload):
        for action in getattr(payload, "actions", ()):
            action.title = action.description = action.title.replace("click", "***")
        return payload

    await events.create()
    await events.send(both, *visits(*range(4)))
    async with events.pipeline(
        select=lambda payload: payload.session_id != "s2", redact=redact
    ) as pipeline:
        await until(lambda: pipeline.ledger.stored == 5)
        assert pipeline.ledger.filtered == 1
        found = {
            user: [hit.text for hit in await pipeline.search("paid or left", user_id=user)]
            for user in ("ann", "bob")
        }
        assert found == {"ann": ["paid"], "bob": ["left"]}
        assert balanced(pipeline.ledger)
    titles = {text for texts in events.titles().values() for text in texts}
    assert "s0 *** 0" in titles
    assert not any("click" in text for text in titles if text.startswith("s0"))


@pytest.mark.slow
async def test_two_groups_read_a_topic_independently(events, visits, make_pg_store):
    await events.create(2)
    await events.send(*visits(*range(6)))
    other = make_pg_store().schema
    async with events.pipeline() as one, events.pipeline(group="other", schema=other) as two:
        await until(lambda: one.ledger.stored == two.ledger.stored == 6)
    assert events.titles() == events.titles(other) == expected(*range(6))
    assert sum(row[2] for row in events.parts()) == 6
    assert sum(row[2] for row in events.parts("other", other)) == 6


@pytest.mark.slow
async def test_pipelines_share_a_topic_and_hand_partitions_over(events, visits, monkeypatch):
    def shares():
        owners = [owner for _, owner, _, _ in events.parts()]
        return sorted(map(owners.count, {*owners} - {None})), owners.count(None)

    sending = asyncio.Event()
    sent = 0

    async def send():
        nonlocal sent
        while not sending.is_set():
            await events.send(*visits(*range(sent, sent + 20)))
            sent += 20
            await asyncio.sleep(0)

    def name_next(name):
        """Tell pipelines of one process apart."""
        monkeypatch.setattr(queue, "platform", SimpleNamespace(node=lambda: name))

    await events.create(4)
    producer = asyncio.create_task(send())
    try:
        name_next("one")
        async with events.pipeline() as one:
            await until(lambda: shares() == ([4], 0))
            name_next("two")
            two = events.pipeline()
            await two.start()
            await until(lambda: shares() == ([2, 2], 0))
            name_next("three")
            three = events.pipeline()
            await three.start()
            await until(lambda: shares() == ([1, 1, 2], 0))
            await two.aclose()
            await three.aclose()
            await until(lambda: shares() == ([4], 0))
            sending.set()
            await producer
            await until(lambda: one.ledger.stored == sent)
            assert one.ledger.received == sent  # no message was read twice
    finally:
        sending.set()
        await producer
    assert events.titles() == expected(*range(sent))


@pytest.mark.slow
async def test_a_full_journal_leaves_messages_in_the_topic(events, visits, embedder):
    refused = asyncio.Event()

    def refuse(texts):
        refused.set()
        raise ConnectionError

    embedder.script = refuse
    await events.create()
    await events.send(*visits(*range(40)))
    async with events.pipeline(embedder=embedder, journal_max_bytes=4096) as pipeline:
        await until(lambda: any("is full" in why for why in pipeline.health.reasons))
        ((_, _, offset, _),) = events.parts()
        assert f"the message at offset {offset} of partition 0" in "".join(pipeline.health.reasons)
        assert 0 < offset == pipeline.ledger.received < 40
        assert pipeline.ledger.overflow == 0
        await until(lambda: pipeline.topic and pipeline.topic.lag == 40 - offset)
        await refused.wait()
        embedder.script = lambda texts: None
        await until(lambda: pipeline.ledger.stored == 40)
        await until(lambda: pipeline.health.reasons == ())
        assert balanced(pipeline.ledger)
    assert events.titles() == expected(*range(40))


@pytest.mark.slow
async def test_a_database_that_stops_and_starts_loses_nothing(events, visits, make_pg_store):
    server = PostgresServer()
    try:
        own = Topic(
            events.broker, events.name, server, lambda **more: make_pg_store(dsn=server.dsn, **more)
        )
        await own.create(2)
        await own.send(*visits(*range(10)))
        # It also outlasts the time within which a member must ask for messages.
        settings = SETTINGS | {"max.poll.interval.ms": 4000}
        async with own.pipeline(kafka_settings=settings) as pipeline:
            await until(lambda: pipeline.ledger.stored == 10)
            await asyncio.to_thread(server.stop)
            await own.send(*visits(*range(10, 20)))
            await until(lambda: any("cannot be reached" in why for why in pipeline.health.reasons))
            await asyncio.sleep(6)
            await asyncio.to_thread(server.start)
            await own.send(*visits(*range(20, 30)))
            await until(lambda: pipeline.ledger.stored == 30)
            await until(lambda: pipeline.health.reasons == ())
            assert balanced(pipeline.ledger)
        assert own.titles() == expected(*range(30))
    finally:
        server.close()


@pytest.mark.slow
async def test_a_broker_that_comes_back_empty_doubles_and_skips_nothing(
    own_events, own_broker, visits, caplog
):
    await own_events.create(2)
    await own_events.send(*visits(*range(30)))
    async with own_events.pipeline() as pipeline:
        await until(lambda: pipeline.ledger.stored == 30)
        own_broker.kill()
        await until(lambda: pipeline.health.reasons)
        assert any(own_events.name in why for why in pipeline.health.reasons)
        own_broker.start()
        await own_events.create(2)
        # Less than before: the offsets of the new topic are below the saved ones.
        await own_events.send(*visits(*range(24, 36)))
        await until(lambda: pipeline.ledger.stored == 36, 120)
        await until(lambda: pipeline.health.reasons == ())
        assert pipeline.ledger.received == 42
        assert balanced(pipeline.ledger)
    assert "was made anew" in caplog.text
    assert own_events.titles() == expected(*range(36))
    assert sum(offset for _, _, offset, _ in own_events.parts()) == 12


@pytest.mark.slow
async def test_what_was_forgotten_stays_refused_when_it_is_read_again(events, make_actions):
    def of(user, *numbers):
        return [
            make_actions(f"{user}-{n}", f"{user}-{n} click", at=1000.0 + n, user=user)
            for n in numbers
        ]

    await events.create()
    await events.send(*of("ann", 1, 2), *of("bob", 1))
    async with events.pipeline() as pipeline:
        await until(lambda: pipeline.ledger.stored == 3)
        receipt = await pipeline.forget(user_id="ann")
        assert any(events.name in place for place in receipt.remaining)
    events.postgres.run(f"UPDATE {events.schema}.topic_offset SET next_offset = -1")
    async with events.pipeline() as pipeline:
        await until(lambda: pipeline.ledger.received == 6)
        await pipeline.drain()
        assert (pipeline.ledger.refused, pipeline.ledger.duplicate) == (2, 1)
        assert {hit.user_id for hit in await pipeline.search("click", k=9)} == {"bob"}
    assert [*events.titles()] == ["bob-1"]


@pytest.mark.slow
async def test_a_broker_that_is_away_at_the_start_is_waited_for(own_events, own_broker, visits):
    own_broker.kill()
    async with own_events.pipeline() as pipeline:
        await until(lambda: pipeline.health.reasons)
        assert any(own_events.name in why for why in pipeline.health.reasons)
        await pipeline.on_actions(visits(0)[0])  # other ways in stay open
        own_broker.start()
        await until(lambda: any("no such topic" in why for why in pipeline.health.reasons))
        await own_events.create(2)
        await own_events.send(*visits(1, 2, 3))
        await until(lambda: pipeline.ledger.stored == 4)
        await until(lambda: pipeline.health.reasons == ())
    assert own_events.titles() == expected(0, 1, 2, 3)


@pytest.mark.slow
async def test_closing_does_not_wait_for_a_broker_that_is_gone(own_events, own_broker, visits):
    await own_events.create()
    await own_events.send(*visits(0))
    async with own_events.pipeline() as pipeline:
        await until(lambda: pipeline.ledger.stored == 1)
        own_broker.kill()
        began = time.monotonic()
    assert time.monotonic() - began < 15
    assert [owner for _, owner, _, _ in own_events.parts()] == [None]


@pytest.fixture
def foreign(events):
    """Another program in the group, which shares partitions out in another way."""
    settings = {
        "bootstrap.servers": events.broker.bootstrap,
        "group.id": events.name,
        "partition.assignment.strategy": "range",
        "log_level": 0,
    }
    consumer = Consumer({**settings, **SETTINGS})
    yield consumer
    consumer.close()


@pytest.mark.slow
async def test_a_group_that_refuses_the_server_is_said_as_long_as_it_does(events, foreign):
    await events.create(2)
    foreign.subscribe([events.name])
    await until(lambda: foreign.poll(0.1) or foreign.assignment())

    def refused() -> bool:
        return any("group protocol" in why for why in pipeline.health.reasons)

    async with events.pipeline() as pipeline:
        await until(refused)
        # The broker has answered since then.
        await until(lambda: pipeline.topic and pipeline.topic.unread == (0, 1))
        assert refused()


@pytest.mark.slow
async def test_a_topic_that_is_made_anew_may_have_fewer_partitions(events, visits):
    def forget_topic() -> None:
        client = AdminClient({"bootstrap.servers": events.broker.bootstrap, "log_level": 0})
        client.delete_topics([events.name])[events.name].result(20)

    await events.create(3)
    async with events.pipeline() as pipeline:
        await until(lambda: len(events.parts()) == 3)
    await asyncio.to_thread(forget_topic)
    await events.create(1)
    await events.send(*visits(0))
    async with events.pipeline(group=events.name) as pipeline:
        await until(lambda: pipeline.ledger.stored == 1)
        await until(
            lambda: pipeline.topic and len(pipeline.topic.parts) == 1 and not pipeline.topic.unread
        )


@pytest.mark.slow
async def test_closing_does_not_wait_for_a_database_that_is_gone(events, visits, make_pg_store):
    server = PostgresServer()
    try:
        own = Topic(
            events.broker, events.name, server, lambda **more: make_pg_store(dsn=server.dsn, **more)
        )
        await own.create()
        await own.send(*visits(0))
        async with own.pipeline(drain_timeout=1.0) as pipeline:
            await until(lambda: pipeline.ledger.stored == 1)
            await asyncio.to_thread(server.stop)
            await own.send(*visits(1))  # its commit waits for the database
            await until(lambda: any("cannot be reached" in why for why in pipeline.health.reasons))
            async with asyncio.timeout(60):
                await pipeline.aclose()
        await asyncio.to_thread(server.start)
        async with own.pipeline() as pipeline:
            await until(lambda: pipeline.ledger.stored == 2)
            assert balanced(pipeline.ledger)
    finally:
        server.close()


async def test_wrong_settings_are_said_without_their_values(events, caplog):
    pipeline = events.pipeline(kafka_settings={"security.protocol": "s3cret"})
    with caplog.at_level(logging.DEBUG), pytest.raises(ConfigurationError) as raised:
        async with pipeline:
            pass
    assert "security.protocol" in str(raised.value)
    assert "s3cret" not in f"{raised.value}{raised.value.__cause__!r}{caplog.text}"


@pytest.mark.slow
async def test_wrong_credentials_are_said_without_them(events, caplog):
    """The broker speaks no SASL. Such a client gets no answer that it understands."""
    settings = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "ann",
        "sasl.password": "s3cret",
        "socket.connection.setup.timeout.ms": 1000,
        **SETTINGS,
    }
    with caplog.at_level(logging.DEBUG):
        async with events.pipeline(kafka_settings=settings) as pipeline:
            await until(lambda: pipeline.health.reasons)
            reasons = " ".join(pipeline.health.reasons)
    assert events.name in reasons
    assert "s3cret" not in reasons + caplog.text

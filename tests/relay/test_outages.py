"""Streams through a relay into the pipeline that reads its topic, while the broker loses everything."""

import asyncio
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest

from autoplay_rag import ActionsPayload, AsyncConnectorClient, IngestPipeline, SlimAction
from autoplay_rag.devserver import LocalConnector
from autoplay_rag.stores import MemoryStore

SESSIONS = 7


def payload(n):
    action = SlimAction(f"Step {n}", timestamp_start=1.7e9 + n)
    return ActionsPayload(
        "acme", f"s{n % SESSIONS}", "u1", actions=[action], count=1, forwarded_at=1.7e9 + n
    )


def number(one):
    return int(one.actions[0].title.split()[1])


def assert_once_and_in_order(payloads, count):
    for session in range(SESSIONS):
        found = [number(one) for one in payloads if one.session_id == f"s{session}"]
        assert found == list(range(session, count, SESSIONS))


@pytest.fixture
def dsn(postgres):
    """A database of the test's own."""
    name = f"relay_{uuid4().hex[:12]}"
    postgres.run(f"CREATE DATABASE {name}")
    return postgres.dsn.replace("/postgres?", f"/{name}?")


@pytest.fixture
def reading(broker, topic, dsn, scripted_embedder):
    """Run a pipeline that reads the topic."""

    @asynccontextmanager
    async def read():
        pipeline = IngestPipeline(
            MemoryStore(),
            scripted_embedder(),
            journal=broker.address(topic, "rag"),
            catalog=dsn,
            kafka_settings={"session.timeout.ms": 6000},
            batch_window=0.2,
        )
        async with pipeline:
            yield pipeline

    return read


async def until(condition):
    async with asyncio.timeout(100):
        while not condition():  # noqa: ASYNC110 - other processes send no event
            await asyncio.sleep(0.02)


async def titles_in(pipeline):
    """All actions in the catalog, in the order of acceptance."""
    return [(one.session_id, one.title) async for one in pipeline.actions()]


async def test_two_relays_on_one_stream_send_the_same_twice(make_relay, reader):
    """The order of a session holds for the first of each: keys tell the second."""
    async with LocalConnector([payload(n) for n in range(200)], token="t") as connector:
        async with make_relay("one.db") as one, make_relay("two.db") as two:
            for relay in (one, two):
                relay.read_in_background(AsyncConnectorClient(connector.url, "t"))
            await until(lambda: one.counts.received == two.counts.received == 200)
            assert await one.drain(30)
            assert await two.drain(30)
        messages = await reader.messages(lambda some: len(some) == 400)
        assert len({message.value() for message in messages}) == 200
        assert_once_and_in_order(await reader.payloads(200), 200)


async def test_a_stream_goes_on_over_a_restart_of_the_broker(make_relay, restarted, reader):
    payloads = [payload(n) for n in range(300)]
    async with LocalConnector(payloads, rate=100, token="t") as connector, make_relay() as relay:
        relay.read_in_background(AsyncConnectorClient(connector.url, "t"))
        await until(lambda: relay.counts.delivered >= 50)
        restarted.kill()
        # All that was delivered is gone with this broker. The rest arrives, in order.
        await until(lambda: relay.counts.received >= 200)
        before = relay.counts.delivered
        restarted.start()
        await until(lambda: relay.counts.received == 300)
        assert await relay.drain(60)
        found = await reader.payloads(300 - before)
    assert_once_and_in_order(payloads[: 300 - len(found)] + found, 300)


@pytest.mark.slow
async def test_a_broker_that_lost_everything_gets_what_was_not_read(
    make_relay, restarted, dsn, reading
):
    """Nobody reads while the broker is replaced by an empty one: the relay sends it all again."""
    async with make_relay(group="rag", postgres=dsn) as relay:
        for n in range(100):
            await relay.on_actions(payload(n))
        assert await relay.drain(30)
        await until(lambda: relay.counts.unread == 100)
        restarted.kill()
        restarted.start()
        for n in range(100, 150):
            await relay.on_actions(payload(n))
        async with reading() as pipeline:
            await until(lambda: pipeline.ledger.received - pipeline.ledger.duplicate >= 150)
            await until(lambda: relay.counts.delivered == 150)
            assert relay.counts.bytes == 0
            found = await titles_in(pipeline)
            assert len(found) == 150
            for session in range(SESSIONS):
                own = [title for name, title in found if name == f"s{session}"]
                assert own == [f"Step {n}" for n in range(session, 150, SESSIONS)]


@pytest.mark.slow
async def test_everything_is_stored_once_while_the_broker_is_replaced_again_and_again(
    make_relay, restarted, dsn, reading
):
    count = 1500
    async with (
        LocalConnector([payload(n) for n in range(count)], rate=100, token="t") as connector,
        make_relay(group="rag", postgres=dsn) as relay,
        reading() as pipeline,
    ):
        relay.read_in_background(AsyncConnectorClient(connector.url, "t"))
        for received in (200, 500, 900):
            await until(lambda received=received: relay.counts.received >= received)
            restarted.kill()
            restarted.start()
        await until(lambda: relay.counts.received == count)
        await until(lambda: relay.counts.delivered == count)
        found = await titles_in(pipeline)
        assert len(found) == len(set(found)) == count
        for session in range(SESSIONS):
            own = [title for name, title in found if name == f"s{session}"]
            assert own == [f"Step {n}" for n in range(session, count, SESSIONS)]
        assert relay.counts.overflow == 0


async def test_without_the_database_delivered_payloads_are_kept(
    make_relay, postgres, caplog, unused_tcp_port
):
    nowhere = f"postgresql://postgres@127.0.0.1:{unused_tcp_port}/app"
    async with make_relay(group="rag", postgres=nowhere) as relay:
        assert await relay.accept(payload(1)) == "accepted"
        await until(lambda: relay.counts.unread == 1)
        await until(lambda: "PostgreSQL" in "".join(relay.health.reasons))
        assert relay.is_available
    assert "delivered payloads are kept" in caplog.text
    assert relay.counts.unread == 1


async def test_what_is_only_kept_makes_room(make_relay, dsn):
    """Nobody reads, and the outbox is small: what the broker has goes first, and nothing is lost."""
    async with make_relay(group="rag", postgres=dsn, max_bytes=30_000) as relay:
        for n in range(90):
            await relay.on_actions(payload(n))
            if n % 30 == 29:
                assert await relay.drain(30)
                await until(lambda: not relay.counts.waiting)
        assert relay.counts.overflow == 0
        assert relay.counts.bytes <= 30_000
        # What had to go was delivered.
        assert relay.counts.delivered > 0
        assert relay.counts.delivered + relay.counts.unread == 90

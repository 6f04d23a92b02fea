"""The relay as a library: everything arrives, in order, whatever happens to the broker."""

import asyncio
import hashlib
import hmac

import httpx
import pytest

from autoplay_rag import ActionsPayload, ChatTurn, SlimAction, SummaryPayload, webhook_app
from autoplay_rag.errors import ConfigurationError, JournalLockedError, PipelineClosedError
from autoplay_rag.kafka.address import TopicAddress
from autoplay_rag.kafka.admin import TopicAdmin
from autoplay_rag.kafka.messages import key_of, payload_of
from autoplay_rag.kafka.settings import ClientSettings
from autoplay_rag.relay import Relay
from autoplay_rag.relay.outbox import Outbox, Outgoing
from autoplay_rag.relay.sender import Sender


def payload(n, session="s1", text=""):
    action = SlimAction(f"Step {n} {text}", timestamp_start=1.7e9 + n)
    return ActionsPayload("acme", session, "u1", actions=[action], count=1, forwarded_at=1.7e9 + n)


def steps(payloads, session):
    return [int(one.actions[0].title.split()[1]) for one in payloads if one.session_id == session]


async def put(relay, count, first=0, sessions=5):
    await asyncio.gather(
        *(relay.on_actions(payload(n, f"s{n % sessions}")) for n in range(first, first + count))
    )


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - the relay's thread sends no event
            await asyncio.sleep(0.01)


def assert_in_order(payloads, count, sessions=5):
    for n in range(sessions):
        assert steps(payloads, f"s{n}") == list(range(n, count, sessions))


async def test_every_kind_of_payload_becomes_a_message(make_relay, reader):
    turn = ChatTurn("acme", "s1", "c1", "How?", "So.", forwarded_at=1.0)
    given = [payload(1), SummaryPayload("acme", "s1", "Exported.", 1, 1.0), turn]
    async with make_relay() as relay:
        assert [await relay.accept(one) for one in given] == ["accepted"] * 3
        found = await reader.messages(lambda some: len(some) == 3)
    assert [payload_of(one.value()) for one in found] == given
    assert {one.key() for one in found} == {key_of("acme", "s1")}
    assert [dict(one.headers())["type"] for one in found] == [b"actions", b"summary", b"chat"]
    counts = relay.counts
    assert (counts.received, counts.delivered, counts.waiting, counts.bytes) == (3, 3, 0, 0)


async def test_the_order_of_a_session_is_that_of_the_calls(make_relay, reader):
    async with make_relay() as relay:
        await put(relay, 2000)
        assert await relay.drain(30)
    assert_in_order(await reader.payloads(2000), 2000)


async def test_what_comes_while_the_broker_is_away_waits(make_relay, restarted, reader, caplog):
    async with make_relay() as relay:
        await put(relay, 100)
        assert await relay.drain(30)
        restarted.kill()
        await put(relay, 100, 100)
        await until(lambda: relay.health.state == "degraded" and not relay.is_available)
        assert relay.counts.waiting == 100
        assert not await relay.drain(0.1)
        restarted.start()
        assert await relay.drain(60)
        await until(lambda: relay.health.state == "ok")
        # The broker keeps nothing: what was delivered before is not there any more.
        assert_in_order(
            [payload(n, f"s{n % 5}") for n in range(100)] + await reader.payloads(100), 200
        )
    assert "payloads wait in the outbox" in caplog.text
    assert "the broker answers again" in caplog.text


async def test_what_was_not_delivered_is_sent_by_the_next_run(make_relay, restarted, reader):
    restarted.kill()
    async with make_relay(drain_timeout=0) as relay:
        await put(relay, 50)
    assert relay.counts.waiting == 50
    restarted.start()
    async with make_relay() as relay:
        await put(relay, 50, 50)
        assert_in_order(await reader.payloads(100), 100)
    assert relay.counts.waiting == 0
    assert relay.counts.received == relay.counts.delivered == 100


async def test_a_payload_that_the_broker_does_not_take_in_time_is_delivered_later(
    make_relay, restarted, reader
):
    async with make_relay(delivery_timeout=0.5) as relay:
        restarted.kill()
        assert await relay.accept(payload(2)) == "waiting"
        restarted.start()
        assert steps(await reader.payloads(1), "s1") == [2]


async def test_the_producer_does_not_bring_a_topic_back(broker, topic, tmp_path):
    """It would have the broker's number of partitions. The relay creates it with its own."""
    address = TopicAddress(broker.bootstrap, topic)
    outbox = Outbox(tmp_path / "relay.db")
    outbox.put([Outgoing("actions", b"acme/s1", b"{}")])
    sender = Sender(
        outbox,
        address,
        ClientSettings({"message.timeout.ms": 2000}, {}),
        keeps=False,
        on_settled=lambda *_: None,
    )
    sender.topic_seen("deleted since", 0)
    async with asyncio.timeout(30):
        while sender.undelivered and not sender.problem:
            sender.work()
            await asyncio.sleep(0.01)
    sender.close()
    outbox.close()
    assert await TopicAdmin(address, ClientSettings({}, {})).describe() is None


async def test_a_payload_that_is_too_large_stops_nobody(make_relay, reader, caplog):
    secret = "x" * 5000
    async with make_relay(settings={"message.max.bytes": "4000"}) as relay:
        assert await relay.accept(payload(1)) == "accepted"
        assert await relay.accept(payload(2, text=secret)) == "dead"
        assert await relay.accept(payload(3)) == "accepted"
        assert relay.counts.dead == 1
    assert "raise message.max.bytes" in caplog.text
    assert secret not in caplog.text
    async with make_relay() as relay:
        assert sorted(steps(await reader.payloads(3), "s1")) == [1, 2, 3]
        assert await relay.drain(30)
        assert relay.counts.dead == 0
        assert relay.counts.delivered == 3


async def test_a_full_outbox_loses_the_newest_and_says_so(make_relay, restarted, reader, caplog):
    restarted.kill()
    async with make_relay(max_bytes=20_000, delivery_timeout=0.1) as relay:
        await put(relay, 200)
        counts = relay.counts
        assert counts.received == 200
        assert counts.waiting + counts.overflow == 200
        assert counts.overflow > 0
        assert counts.bytes <= 20_000
        assert await relay.accept(payload(1000)) == "overflow"
        assert "the outbox is full: payloads are lost" in relay.health.reasons
        restarted.start()
        assert_in_order(await reader.payloads(counts.waiting), counts.waiting)
        assert await relay.drain(30)
        assert await relay.accept(payload(1001)) == "accepted"
        await until(lambda: relay.health.state == "ok")
    assert "LOST" in caplog.text
    assert f"{counts.overflow + 1} payloads were lost" in caplog.text


async def test_two_relays_do_not_share_an_outbox(make_relay):
    async with make_relay():
        with pytest.raises(JournalLockedError, match="give each relay its own"):
            await make_relay().start()


async def test_without_a_group_postgres_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="group"):
        Relay(
            TopicAddress("broker.test:9092", "events"),
            outbox=tmp_path / "relay.db",
            postgres="postgresql://db.test/app",
        )


async def test_a_wrong_property_is_said_at_the_start(make_relay, tmp_path):
    with pytest.raises(ConfigurationError, match=r"message\.max\.bytes"):
        await make_relay(settings={"message.max.bytes": "many"}).start()
    async with make_relay():  # the outbox is free
        pass


async def test_a_relay_that_does_not_run_takes_nothing(make_relay):
    relay = make_relay()
    with pytest.raises(PipelineClosedError):
        await relay.accept(payload(1))
    async with relay:
        pass
    with pytest.raises(PipelineClosedError):
        await relay.on_actions(payload(1))
    assert not relay.is_running


async def test_a_failure_of_the_thread_is_said_and_nobody_waits_forever(make_relay, monkeypatch):
    """A bug must not look like a quiet stream."""
    async with make_relay(drain_timeout=0) as relay:
        await relay.on_actions(payload(1))

        def fail(_outbox, _messages):
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr(Outbox, "put", fail)
        assert await relay.accept(payload(2)) == "overflow"
        with pytest.raises(PipelineClosedError):
            await relay.watch()
        assert relay.health.state == "failed"
        assert not relay.is_running
        with pytest.raises(PipelineClosedError):
            await relay.accept(payload(3))
        monkeypatch.undo()
        with pytest.raises(PipelineClosedError):
            await relay.aclose()
    async with make_relay() as relay:
        assert await relay.drain(30)
        assert relay.counts.received == 1


async def test_webhook_app_takes_a_relay(make_relay, restarted):
    body = b'{"type": "summary", "product_id": "acme", "session_id": "s1", "summary": "Exported."}'
    signature = hmac.new(b"secret-of-tests", body, hashlib.sha256).hexdigest()
    headers = {"x-connector-signature": f"sha256={signature}"}
    restarted.kill()
    async with make_relay(delivery_timeout=0.1, drain_timeout=0) as relay:
        transport = httpx.ASGITransport(webhook_app(relay, "secret-of-tests"))
        async with httpx.AsyncClient(transport=transport, base_url="http://a.test") as http:
            answer = await http.post("/", content=body, headers=headers)
    assert answer.status_code == 503
    assert "broker" in answer.text

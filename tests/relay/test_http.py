"""The HTTP interface of a relay: what is acknowledged is in the topic."""

import asyncio
import hashlib
import hmac
import json
from contextlib import asynccontextmanager

import httpx
import pytest

from autoplay_rag.kafka.messages import payload_of
from autoplay_rag.relay import create_relay_app
from autoplay_rag.serve import Keys
from autoplay_rag.serve.server import HttpServer

SECRET = "a-secret-of-tests"
KEYS = Keys(read="read-key-of-tests", ingest="ingest-key-of-tests")
INGEST = {"authorization": f"Bearer {KEYS.ingest}"}
READ = {"authorization": f"Bearer {KEYS.read}"}


@asynccontextmanager
async def served(relay, **options):
    """Serve a relay alone; yields a client."""
    app = create_relay_app(relay, keys=KEYS, webhook_secret=SECRET, **options)
    server = HttpServer(app, "127.0.0.1", 0)
    task = asyncio.create_task(server.run_until_stopped())
    ready = asyncio.create_task(server.ready())
    await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
    try:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            yield client
    finally:
        server.stop()
        await task
        await ready


def actions(n=1, product="acme"):
    action = {"title": f"Step {n}", "timestamp_start": 1.7e9 + n}
    return {"type": "actions", "product_id": product, "session_id": "s1", "actions": [action]}


async def post(client, body, *, signed=True):
    raw = json.dumps(body).encode()
    signature = hmac.new(SECRET.encode(), raw, hashlib.sha256).hexdigest()
    headers = {"x-connector-signature": f"sha256={signature}"} if signed else {}
    return await client.post("/v1/webhooks/acme", content=raw, headers=headers)


async def test_a_push_is_acknowledged_once_the_broker_has_it(make_relay, restarted, reader):
    async with served(make_relay(delivery_timeout=1.0)) as client:
        restarted.kill()
        answer = await post(client, actions())
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "10"
        assert "broker" in answer.json()["detail"]
        restarted.start()
        while (answer := await post(client, actions())).status_code == 503:
            pass
        assert (answer.status_code, answer.json()) == (200, {"outcome": "accepted"})
        (found,) = await reader.payloads(1)
        assert found.actions[0].title == "Step 1"


async def test_who_may_push(make_relay):
    async with served(make_relay()) as client:
        assert (await post(client, actions(), signed=False)).status_code == 401
        assert (await post(client, actions(product="other"))).status_code == 422
        assert (await client.post("/v1/turns", json={})).status_code == 401
        assert (await client.post("/v1/turns", json={}, headers=READ)).status_code == 403
        assert (await client.get("/metrics")).status_code == 401
        assert (await client.post("/v1/search", json={}, headers=READ)).status_code == 404


async def test_turns_and_events_of_tools_go_into_the_topic(make_relay, reader):
    turn = {
        "product_id": "acme",
        "session_id": "s1",
        "conversation_id": "c1",
        "question": "How?",
        "answer": "So.",
    }
    event = {
        "event": "$autocapture",
        "uuid": "0190a5e4-1111-7000-8000-000000000001",
        "distinct_id": "u1",
        "timestamp": "2026-07-01T10:00:00Z",
        "properties": {"$event_type": "click", "$el_text": "Export", "$session_id": "s2"},
    }
    async with served(make_relay()) as client:
        answer = await client.post("/v1/turns", json=turn, headers=INGEST)
        assert answer.json() == {"outcome": "accepted"}, answer.text
        answer = await client.post("/v1/webhooks/acme/posthog", json=event, headers=INGEST)
        assert answer.json()["accepted"] == 1, answer.text
        found = {one.kind: one for one in await reader.payloads(2)}
        assert found["chat"].question == "How?"
        assert found["actions"].session_id == "s2"
        assert found["actions"].product_id == "acme"


async def test_a_device_keeps_its_session_over_a_restart(make_relay, reader):
    """A tool that names no session: the outbox remembers how sessions were cut."""

    def event(n, minute):
        return {
            "event": "Clicked",
            "type": "track",
            "messageId": f"m{n}",
            "anonymousId": "d1",
            "timestamp": f"2026-07-01T10:{minute:02}:00Z",
            "properties": {"n": n},
        }

    for n, minute in enumerate((10, 35, 55)):  # more than half an hour from the first to the last
        async with served(make_relay()) as client:
            answer = await client.post(
                "/v1/webhooks/acme/segment", json=event(n, minute), headers=INGEST
            )
            assert answer.json()["accepted"] == 1, answer.text
    assert len({one.session_id for one in await reader.payloads(3)}) == 1


async def test_a_payload_that_is_too_large_is_acknowledged_as_dead(make_relay):
    async with served(make_relay(settings={"message.max.bytes": "2000"})) as client:
        body = actions()
        body["actions"][0]["title"] = "x" * 5000
        answer = await post(client, body)
        assert (answer.status_code, answer.json()) == (200, {"outcome": "dead"})


async def test_the_state_is_told(make_relay, restarted):
    relay = make_relay(delivery_timeout=0.2, drain_timeout=0)
    async with served(relay) as client:
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        while (await client.get("/readyz")).status_code != 200:  # noqa: ASYNC110 - it sends no event
            await asyncio.sleep(0.02)
        assert (await post(client, actions())).status_code in (200, 503)
        assert await relay.drain(30)
        restarted.kill()
        while (await client.get("/readyz")).status_code == 200:  # noqa: ASYNC110 - it sends no event
            await asyncio.sleep(0.02)
        answer = await client.get("/readyz", headers=READ)
        assert answer.json()["status"] == "unavailable"
        assert "topic" in answer.json()["reasons"][0]
        assert (await client.get("/readyz")).json()["reasons"] is None
        await post(client, actions(2))
        text = (await client.get("/metrics", headers=READ)).text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values["autoplay_rag_relay_received_total"]) == 2
    assert float(values["autoplay_rag_relay_delivered_total"]) == 1
    assert float(values["autoplay_rag_relay_waiting"]) == 1
    assert float(values["autoplay_rag_relay_bytes"]) > 0
    assert float(values["autoplay_rag_relay_overflow_total"]) == 0
    assert float(values["autoplay_rag_relay_dead"]) == 0
    assert float(values["autoplay_rag_relay_broker_up"]) == 0
    assert float(values['autoplay_rag_relay_health{state="degraded"}']) == 1


@pytest.mark.parametrize("kept", [True, False])
async def test_a_relay_that_runs_already_is_left_running(make_relay, kept, reader):
    relay = make_relay()
    if kept:
        await relay.start()
    async with served(relay) as client:
        assert (await post(client, actions())).status_code in (200, 503)
    assert relay.is_running is kept
    await relay.aclose()
    (found,) = await reader.messages(lambda some: len(some) >= 1)
    assert payload_of(found.value()).session_id == "s1"

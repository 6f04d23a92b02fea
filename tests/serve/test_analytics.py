"""Events of analytics tools come in over HTTP."""

import gzip
import json

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serve_server import KEYS, WEBHOOK_SECRET, token

from autoplay_rag.connector.sse import MAX_EVENT_BYTES
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.serve import create_app
from autoplay_rag.sources.tools import segment_signature

EVENTS = {
    "posthog": {
        "event": {
            "event": "$autocapture",
            "distinct_id": "zoe",
            "timestamp": "2026-03-03T08:01:14.807Z",
            "elements_chain": 'button:text="Export"',
            "properties": {"$session_id": "of posthog", "$event_type": "click"},
        },
        "person": {"properties": {"email": "zoe@acme.test"}},
    },
    "amplitude": {
        "event_type": "Report Exported",
        "user_id": "zoe",
        "device_id": "d1",
        "session_id": 1772524874807,
        "event_time": "2026-03-03 08:01:14.807000",
    },
    "segment": {
        "type": "track",
        "event": "Report Exported",
        "userId": "zoe",
        "anonymousId": "d1",
        "timestamp": "2026-03-03T08:01:14.807Z",
    },
}
SECRET = {"x-webhook-secret": WEBHOOK_SECRET}
NOTHING = dict.fromkeys(
    ("accepted", "duplicate", "filtered", "refused", "dead", "skipped", "repeated", "bad"), 0
)


def answer(**counts):
    return {**NOTHING, **counts}


@pytest.mark.parametrize("tool", EVENTS)
async def test_an_event_is_accepted_once(tool, serve, tmp_path):
    path, body = f"/v1/webhooks/acme/{tool}", json.dumps(EVENTS[tool]).encode()
    async with serve(journal=tmp_path / "journal.db") as running:
        async with running.client() as sender:
            first = await sender.post(path, content=body, headers=SECRET)
            again = await sender.post(path, content=body, headers=SECRET)
            packed = await sender.post(path, content=gzip.compress(body), headers=SECRET)
        (session,) = await running.pipeline.sessions("zoe", "acme")
        event = (await running.pipeline.session(session.session_id, "acme")).events[0]
    assert (first.status_code, first.json()) == (200, answer(accepted=1))
    assert again.json() == packed.json() == answer(duplicate=1)
    assert event.description in (
        'User clicked the "Export" button',
        'User triggered "Report Exported"',
    )


@pytest.mark.parametrize("tool", EVENTS)
async def test_who_may_send(tool, running):
    path, body = f"/v1/webhooks/acme/{tool}", json.dumps(EVENTS[tool]).encode()
    signed = {"x-signature": segment_signature(body, WEBHOOK_SECRET)}
    async with running.client() as sender:

        async def status(content=body, **headers):
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            return (await sender.post(path, content=content, headers=sent)).status_code

        assert await status() == 401
        assert await status(x_webhook_secret="guess") == 401
        assert await status(x_webhook_secret="") == 401
        assert await status(authorization="Bearer guess") == 401
        assert await status(**signed) == (200 if tool == "segment" else 401)
        assert await status(body + b" ", **signed) == 401
        assert await status(x_webhook_secret=WEBHOOK_SECRET) == 200
        # Segment signs when it has a shared secret; its user may send the other one as well.
        assert await status(body + b" ", **signed, **SECRET) == 200
    for credential, expected in ((KEYS.ingest, 200), (KEYS.read, 403), (token(user_id="a"), 403)):
        async with running.client(credential) as client:
            assert (await client.post(path, content=body, headers=SECRET)).status_code == expected


async def test_each_tool_may_have_its_own_secret(serve, monkeypatch):
    monkeypatch.setenv("AUTOPLAY_RAG_AMPLITUDE_SECRET", "only amplitude's")
    own = {"x-webhook-secret": "only amplitude's"}
    async with serve() as running, running.client() as sender:
        statuses = [
            (
                await sender.post(f"/v1/webhooks/acme/{tool}", json=EVENTS[tool], headers=given)
            ).status_code
            for tool in ("amplitude", "posthog")
            for given in (own, SECRET)
        ]
    assert statuses == [200, 401, 401, 200]


async def test_a_secret_may_have_any_characters(serve):
    secret = "pässword “of” œuvre"
    headers = {"x-webhook-secret": secret.encode()}
    async with serve(analytics_secrets={"posthog": secret}) as running, running.client() as sender:
        sent = await sender.post(
            "/v1/webhooks/acme/posthog", json=EVENTS["posthog"], headers=headers
        )
    assert sent.status_code == 200


async def test_without_a_secret_an_ingest_key_is_needed(make_pipeline):
    app = create_app(make_pipeline(), keys=KEYS)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost", headers=SECRET
        ) as sender,
    ):
        refused = await sender.post("/v1/webhooks/acme/posthog", json=EVENTS["posthog"])
        key = {"authorization": f"Bearer {KEYS.ingest}"}
        let = await sender.post("/v1/webhooks/acme/posthog", json=EVENTS["posthog"], headers=key)
    assert (refused.status_code, let.status_code) == (401, 200)


async def test_one_bad_event_costs_itself_alone_and_is_counted(serve, caplog):
    good = EVENTS["posthog"]["event"]
    batch = [
        7,
        {"event": None, "properties": {"secret": "of zoe"}},
        {**good, "uuid": "a"},
        {**good, "uuid": "a"},
        {**good, "event": "$identify"},
        {**good, "uuid": "b", "timestamp": "2026-03-03T08:02:00Z"},
    ]
    async with serve() as running, running.client(headers=SECRET) as sender:
        sent = await sender.post("/v1/webhooks/acme/posthog", json={"batch": batch})
        async with running.client(KEYS.read) as reader:
            text = (await reader.get("/metrics")).text
        assert running.pipeline.ledger.received == 2
    assert sent.json() == answer(accepted=2, repeated=1, skipped=1, bad=2)
    assert "2 events could not be read" in caplog.text
    assert "zoe" not in caplog.text
    counted = {
        (sample.labels["tool"], sample.labels["outcome"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "autoplay_rag_webhook_events_total" and sample.value
    }
    assert counted == {
        ("posthog", "accepted"): 2,
        ("posthog", "repeated"): 1,
        ("posthog", "skipped"): 1,
        ("posthog", "bad"): 2,
    }


BOMB = gzip.compress(b"[" + b" " * (MAX_EVENT_BYTES + 1) + b"]")
ONE = gzip.compress(json.dumps(EVENTS["posthog"]).encode())


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"", {}, 400),
        (b"no json", {}, 400),
        (b"7", {}, 400),
        (b"[" * 100_000, {}, 400),
        (b"\x1f\x8b no gzip", {}, 400),
        (ONE[:-9], {"content-encoding": "gzip"}, 400),
        (BOMB, {"content-encoding": "gzip"}, 413),
        (b"{}", {"content-encoding": "br"}, 415),
        (b"[]", {"content-type": "text/plain"}, 200),
    ],
    ids=["empty", "text", "number", "deep", "damaged", "cut", "bomb", "brotli", "none"],
)
async def test_a_body_that_cannot_be_read_is_a_problem(serve, body, headers, status):
    async with serve() as running, running.client(headers=SECRET) as sender:
        sent = await sender.post("/v1/webhooks/acme/posthog", content=body, headers=headers)
        unknown = await sender.post("/v1/webhooks/acme/mixpanel", json={})
    assert sent.status_code == status
    if status != 200:
        assert sent.headers["content-type"] == "application/problem+json"
        assert sent.json()["status"] == status
    assert unknown.status_code == 422


async def test_a_full_journal_asks_for_a_retry(make_pipeline, serve):
    batch = [
        {"type": "track", "event": "x" * 400, "userId": "u", "timestamp": 1772524874 + n}
        for n in range(300)
    ]
    pipeline = make_pipeline(journal_max_bytes=30_000, batch_window=60)
    async with serve(pipeline=pipeline) as running, running.client(headers=SECRET) as sender:
        sent = await sender.post("/v1/webhooks/acme/segment", json={"batch": batch})
        assert (sent.status_code, sent.headers["retry-after"]) == (503, "10")
        again = await sender.post("/v1/webhooks/acme/segment", json=batch[:3])
    assert again.json() == answer(duplicate=3)


async def test_a_large_batch_is_accepted(serve):
    batch = [
        {**EVENTS["segment"], "timestamp": 1772524874 + n, "messageId": str(n)} for n in range(4000)
    ]
    async with serve() as running, running.client(headers=SECRET) as sender:
        sent = await sender.post("/v1/webhooks/acme/segment", json={"batch": batch})
        assert sent.json() == answer(accepted=4000)
        sessions = await running.pipeline.sessions("zoe")
    assert [one.actions for one in sessions] == [4000]


@pytest.mark.parametrize("secrets", [{"mixpanel": "s"}, {"posthog": ""}])
def test_secrets_are_checked(secrets, make_pipeline):
    with pytest.raises(ConfigurationError, match="secret"):
        create_app(make_pipeline(), keys=KEYS, analytics_secrets=secrets)

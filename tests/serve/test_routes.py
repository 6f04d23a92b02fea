"""What each route answers."""

import asyncio
import hashlib
import hmac
import json
from urllib.parse import quote

import pytest
from pipelines import make_actions
from prometheus_client.parser import text_string_to_metric_families
from serve_server import KEYS, WEBHOOK_SECRET, token
from starlette.applications import Starlette
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from autoplay_rag import AsyncConnectorClient, IngestPipeline, ServeClient
from autoplay_rag.devserver.serving import ConnectorServer
from autoplay_rag.errors import EmbedderUnavailableError
from autoplay_rag.serve import Keys, create_app
from autoplay_rag.stores import MemoryStore


@pytest.fixture
async def admin(running):
    async with running.client(KEYS.admin) as client:
        yield client


async def test_a_search_answers_what_the_pipeline_does(running, admin):
    asked = {"query": "exported", "k": 3, "user_id": "ann", "product_id": "acme", "mode": "text"}
    answer = (await admin.post("/v1/search", json=asked)).json()
    found = await running.pipeline.search(asked.pop("query"), **asked)
    assert [hit["id"] for hit in answer["hits"]] == [hit.id for hit in found]
    first, hit = answer["hits"][0], found[0]
    assert first["text"] == hit.text
    assert first["score"] == hit.score
    assert first["metadata"] == hit.metadata
    assert first["matched"]["text"] == hit.matched.text
    assert first["matched"]["places"] == [list(place) for place in hit.matched.places]
    assert answer["watermark"] == found.watermark
    assert answer["unembedded"] == found.unembedded == 0
    assert answer["scope_known"] is True


async def test_sessions_are_searched_listed_and_read(running, admin):
    asked = {"query": "exported", "user_id": "ann", "product_id": "acme"}
    found = (await admin.post("/v1/search/sessions", json=asked)).json()["hits"]
    assert found[0]["session_id"] == "s1"
    assert found[0]["hits"]
    first = (await admin.get("/v1/sessions", params={"limit": 3})).json()
    assert first["total"] == 5
    second = (await admin.get("/v1/sessions", params={"limit": 3, "cursor": first["next"]})).json()
    assert second["next"] is None
    ids = [one["session_id"] for one in first["sessions"] + second["sessions"]]
    assert sorted(ids) == ["s1", "s1", "s2", "s3", "s4"]
    since = (await admin.get("/v1/sessions", params={"since": "2500", "until": "5500"})).json()
    assert [one["session_id"] for one in since["sessions"]] == ["s3"]
    whole = (await admin.get("/v1/sessions/s1", params={"product_id": "acme"})).json()
    expected = await running.pipeline.session("s1", "acme")
    assert [event["description"] for event in whole["events"]] == [
        event.description for event in expected.events
    ]
    assert (await admin.get("/v1/sessions/unknown")).status_code == 404


async def test_a_long_session_is_read_in_parts(serve, tmp_path):
    async with serve(journal=tmp_path / "journal.db") as running:
        for n in range(40):
            steps = [f"step {n}.{k}" for k in range(50)]
            await running.pipeline.accept(
                make_actions("long", *steps, user="ann", at=1000.0 + 100 * n)
            )
        expected = await running.pipeline.session("long")
        async with running.client(KEYS.read) as client:
            answer = (await client.get("/v1/sessions/long")).json()
            assert (len(answer["events"]), answer["payloads"]) == (500, 40)
            found, cursor = [], None
            while cursor is not None or not found:
                params = {"limit": 120} | ({"cursor": cursor} if cursor else {})
                part = (await client.get("/v1/sessions/long", params=params)).json()
                assert len(part["events"]) < 120 + 50
                found += [event["description"] for event in part["events"]]
                cursor = part["next"]
            assert found == [event.description for event in expected.events]
            for wrong in ({"limit": 0}, {"limit": 5001}, {"cursor": "x"}, {"cursor": "1" * 30}):
                refused = await client.get("/v1/sessions/long", params=wrong)
                assert refused.status_code == 422
        async with running.client(token(user_id="bob")) as client:
            # The same with a cursor: it is not told whether somebody else has such a session.
            for params in ({}, {"cursor": "5"}):
                refused = await client.get("/v1/sessions/long", params=params)
                assert refused.status_code == 403
        async with ServeClient(running.server.url, KEYS.read) as client:
            assert await client.session("long") == expected


async def test_a_session_id_may_have_any_characters(running, admin):
    odd = "a/b?c#d é%2F"
    await running.pipeline.accept(make_actions(odd, "opened"))
    found = await admin.get(f"/v1/sessions/{quote(odd, safe='')}")
    assert found.json()["session_id"] == odd


async def test_live_answers_text_and_events(running, admin):
    found = (await admin.get("/v1/live", params={"user_id": "bob", "max_events": 1})).json()
    live = running.pipeline.live.get(user_id="bob")
    assert found["session"]["session_id"] == live.session_id
    assert [event["text"] for event in found["session"]["events"]] == [live.events[-1].text]
    assert live.events[-1].text in found["text"]
    assert (await admin.get("/v1/live")).status_code == 422
    unknown = (await admin.get("/v1/live", params={"user_id": "nobody"})).json()
    assert unknown == {"session": None, "text": ""}


async def test_context_is_marked_as_data(running, admin):
    asked = {"query": "exported", "user_id": "ann", "product_id": "acme"}
    text = (await admin.post("/v1/context", json=asked)).json()["text"]
    assert text.startswith("<user_activity>")
    assert "ann exported" in text
    assert (await admin.post("/v1/context", json={})).status_code == 422


async def test_turns_are_found(running, admin):
    turn = {
        "product_id": "acme",
        "session_id": "s1",
        "user_id": "ann",
        "question": "Where is gold?",
    }
    async with running.client(KEYS.ingest) as client:
        assert (await client.post("/v1/turns", json=turn)).json() == {"outcome": "accepted"}
    found = (await admin.post("/v1/search", json={"query": "gold", "mode": "text"})).json()
    assert found["hits"][0]["metadata"]["kind"] == "chat"


def signed(body):
    return {
        "x-connector-signature": "sha256="
        + hmac.new(WEBHOOK_SECRET.encode(), body, hashlib.sha256).hexdigest()
    }


async def test_webhooks_need_their_signature_or_an_ingest_key(running):
    body = json.dumps({"type": "summary", "session_id": "w1", "summary": "Wandered."}).encode()
    other = json.dumps({"type": "summary", "product_id": "other", "summary": "x"}).encode()
    path = "/v1/webhooks/acme"
    async with running.client() as sender:
        accepted = await sender.post(path, content=body, headers=signed(body))
        again = await sender.post(path, content=body, headers=signed(body))
        unsigned = await sender.post(path, content=body)
        wrong = await sender.post(path, content=body, headers=signed(b"else"))
        foreign = await sender.post(path, content=other, headers=signed(other))
        broken = await sender.post(path, content=b"[", headers=signed(b"["))
        new = b'{"type": "from the future"}'
        unknown = await sender.post(path, content=new, headers=signed(new))
    async with running.client(KEYS.ingest) as client:
        with_key = await client.post(path, content=body.replace(b"w1", b"w2"))
        wrong_both = await client.post(path, content=body, headers=signed(b"else"))
    async with running.client(token(user_id="ann")) as client:
        with_token = await client.post(path, content=body)
    assert (accepted.status_code, accepted.json()) == (200, {"outcome": "accepted"})
    assert again.json() == {"outcome": "duplicate"}
    assert unsigned.status_code == wrong.status_code == wrong_both.status_code == 401
    assert foreign.status_code == 422
    assert broken.status_code == 400
    assert unknown.json() == {"outcome": "unknown type"}
    assert with_key.json() == {"outcome": "accepted"}
    assert with_token.status_code == 403
    assert (await running.pipeline.session("w1", "acme")).events[0].description == "Wandered."


async def test_export_is_lines_of_json(running, admin):
    answer = await admin.post("/v1/export", json={"user_id": "bob"})
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    records = [json.loads(line) for line in answer.text.splitlines()]
    expected = [record async for record in running.pipeline.export(user_id="bob")]
    assert records == json.loads(json.dumps(expected))
    assert records
    assert (await admin.post("/v1/export", json={})).status_code == 422
    assert (await admin.post("/v1/export", json={"user_id": "nobody"})).text == ""
    assert json.loads(running.audit[0])["counts"] == {"records": len(records)}


async def test_forget_answers_with_the_receipt_once_it_is_deleted(running, admin):
    tried = (await admin.post("/v1/forget", json={"user_id": "bob", "dry_run": True})).json()
    assert tried["payloads"] > 0
    assert tried["number"] == 0
    assert (await admin.post("/v1/search", json={"query": "cancelled"})).json()["hits"]
    answer = await admin.post("/v1/forget", json={"user_id": "bob"})
    assert answer.status_code == 200
    assert answer.json()["payloads"] == tried["payloads"]
    assert answer.json()["deleted_at"] is not None
    later = await admin.get(f"/v1/forget/{answer.json()['number']}")
    assert later.json()["asked"] == answer.json()["asked"]
    assert (await admin.get("/v1/sessions", params={"user_id": "bob"})).json()["total"] == 0
    assert (await admin.post("/v1/forget", json={})).status_code == 422
    assert (await admin.get("/v1/forget/12345")).status_code == 404


async def test_dead_letters_are_listed_retried_and_discarded(serve, make_pipeline, tmp_path):
    def reject(payload):
        raise ValueError("not this one")

    pipeline = make_pipeline(journal=tmp_path / "journal.db", select=reject)
    async with serve(pipeline=pipeline) as running, running.client(KEYS.admin) as admin:
        for n in range(3):
            await pipeline.accept(make_actions("s1", str(n)))
        found = (await admin.get("/v1/dead-letters", params={"limit": 2})).json()
        assert found["total"] == 3
        first, second = found["dead_letters"]
        assert "not this one" in first["error"]
        assert first["payload"]["actions"][0]["title"] == "0"
        retried = await admin.post("/v1/dead-letters/retry", json={"ids": [first["id"]]})
        assert retried.json() == {"count": 1}
        discarded = await admin.post("/v1/dead-letters/discard", json={"ids": [second["id"], 99]})
        assert discarded.json() == {"count": 1}
        assert (await admin.post("/v1/dead-letters/discard", json={})).status_code == 422
        assert (await admin.post("/v1/dead-letters/discard", json={"all": True})).json()[
            "count"
        ] == 1


async def test_the_ledger_and_the_metrics_have_the_same_counts(running, admin):
    ledger = (await admin.get("/v1/ledger")).json()
    assert ledger["balanced"] is True
    assert ledger["received"] == running.pipeline.ledger.received == 10
    assert ledger["health"] == "ok"
    text = (await admin.get("/metrics")).text
    assert f"autoplay_rag_received_total {ledger['received']:.1f}" in text
    assert f"autoplay_rag_stored_total {ledger['stored']:.1f}" in text
    assert 'autoplay_rag_health{state="ok"} 1.0' in text
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert all(name.startswith("autoplay_rag_") for name in names)
    assert len(names) == len(set(names))


async def test_metrics_measure_searches_requests_and_clients(running, admin):
    await admin.post("/v1/search", json={"query": "exported"})
    await admin.post("/v1/search/sessions", json={"query": "exported"})
    stopped = AsyncConnectorClient("http://127.0.0.1:9/stream/acme", "token")
    running.pipeline.attach(stopped)
    text = (await admin.get("/metrics")).text
    found = {}
    for metric in text_string_to_metric_families(text):
        for sample in metric.samples:
            found[sample.name, *sample.labels.values()] = sample.value
    assert found["autoplay_rag_search_seconds_count", "hits"] == 1
    assert found["autoplay_rag_search_seconds_count", "sessions"] == 1
    for part in ("embed", "store", "text", "score"):
        assert found["autoplay_rag_search_part_seconds_count", part] == 2
        assert found["autoplay_rag_search_part_errors_total", part] == 0
    assert found["autoplay_rag_search_seconds_bucket", "hits", "+Inf"] == 1
    assert found["autoplay_rag_store_seconds_count", "upsert"] > 0
    assert found["autoplay_rag_embedder_seconds_count", "texts"] > 0
    assert found["autoplay_rag_lag_seconds_count",] == found["autoplay_rag_stored_total",] == 10
    assert found["autoplay_rag_lag_seconds_sum",] < 60
    assert found["autoplay_rag_client_state", "acme", "idle"] == 1


async def test_jobs_run_and_report(running, admin, tmp_path):
    started = await admin.post("/v1/jobs", json={"kind": "verify"})
    assert started.status_code == 202
    backup = (
        await admin.post(
            "/v1/jobs", json={"kind": "backup", "options": {"folder": str(tmp_path / "copy")}}
        )
    ).json()
    wrong = (
        await admin.post("/v1/jobs", json={"kind": "verify", "options": {"repear": True}})
    ).json()
    assert (await admin.post("/v1/jobs", json={"kind": "dance"})).status_code == 422
    ended = {}
    for one in (started.json()["id"], backup["id"], wrong["id"]):
        while (job := (await admin.get(f"/v1/jobs/{one}")).json())["ended_at"] is None:
            pass
        ended[one] = job
    first, second, third = ended.values()
    assert first["state"] == "done"
    assert first["report"]["clean"] is True
    assert second["state"] == "done"
    assert (tmp_path / "copy").is_dir()
    assert third["state"] == "failed"
    assert "repear" in third["error"]
    assert [job["id"] for job in (await admin.get("/v1/jobs")).json()["jobs"]] == list(ended)[::-1]


async def test_a_job_is_cancelled_and_shows_its_progress(serve):
    begun = asyncio.Event()

    async def count_forever(_, job):
        job.progress(3, 10)
        begun.set()
        await asyncio.Event().wait()

    async with (
        serve(job_kinds={"count": count_forever}) as running,
        running.client(KEYS.admin) as admin,
    ):
        job = (await admin.post("/v1/jobs", json={"kind": "count"})).json()
        waiting = (await admin.post("/v1/jobs", json={"kind": "count"})).json()
        await begun.wait()
        shown = (await admin.get(f"/v1/jobs/{job['id']}")).json()
        assert (shown["state"], shown["done"], shown["total"]) == ("running", 3, 10)
        for one in (waiting["id"], job["id"]):
            cancelled = (await admin.post(f"/v1/jobs/{one}/cancel")).json()
            assert cancelled["state"] == "cancelled"


async def test_health(serve, make_pipeline, embedder):
    pipeline = make_pipeline()
    async with (
        serve(pipeline=pipeline) as running,
        running.client() as probe,
        running.client(KEYS.read) as read,
    ):
        assert (await probe.get("/healthz")).json() == {"status": "ok"}
        assert (await probe.get("/readyz")).json() == {"status": "ok", "reasons": None}

        def fail(_):
            raise EmbedderUnavailableError("the model is asleep")

        embedder.script = fail
        await pipeline.accept(make_actions("s1", "x"))
        while (told := (await read.get("/readyz")).json())["status"] == "ok":
            pass
        assert told["status"] == "degraded"
        assert "the model is asleep" in told["reasons"][0]
        assert (await probe.get("/readyz")).json() == {"status": "degraded", "reasons": None}
        dense = await read.post("/v1/search", json={"query": "x", "mode": "dense"})
        assert dense.status_code == 503
        assert "asleep" not in dense.text
        embedder.script = lambda _: None
        await pipeline.drain()
        await pipeline.aclose()
        stopped = await probe.get("/readyz")
        assert (stopped.status_code, stopped.json()["status"]) == (503, "stopped")
        assert (await read.post("/v1/search", json={"query": "x"})).status_code == 503


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_connector_that_refuses_degrades_the_server_until_it_answers(running, status):
    refuses = True

    async def connector(request):
        if refuses:
            return Response("who are you?", status)
        return StreamingResponse(stream(), media_type="text/event-stream")

    async def stream():
        yield b": hello\n\n"
        await stopped.wait()

    stopped = asyncio.Event()
    server = ConnectorServer(Starlette(routes=[Route("/stream/acme", connector)]))
    url = f"http://127.0.0.1:{await server.listen('127.0.0.1', 0)}"
    async with running.client(KEYS.read) as read:
        client = AsyncConnectorClient(
            f"{url}/stream/acme?secret=1",
            "uk_live_secret",
            initial_backoff_s=0.01,
            max_backoff_s=0.01,
            retry_refusals=True,
        )
        running.pipeline.attach(client)
        reading = client.run_in_background()
        while (told := (await read.get("/readyz")).json())["status"] == "ok":
            pass
        assert told["status"] == "degraded"
        (reason,) = told["reasons"]
        assert reason.startswith(f"the source {url}/stream/acme refuses: ")
        assert str(status) in reason
        assert "secret" not in reason
        assert "who are you" not in reason
        assert running.pipeline.health.reasons == (reason,)
        refuses = False
        while (await read.get("/readyz")).json() != {"status": "ok", "reasons": []}:
            pass
        stopped.set()
        client.stop()
        await reading
    await server.aclose()


async def test_the_application_runs_the_pipeline_unless_it_runs_already(embedder):
    for running_already in (False, True):
        pipeline = IngestPipeline(MemoryStore(), embedder)
        app = create_app(pipeline, keys=Keys(admin=KEYS.admin))
        if running_already:
            await pipeline.start()
        async with app.router.lifespan_context(app):
            assert pipeline.is_running
        assert pipeline.is_running is running_already
        await pipeline.aclose()


async def test_the_document_of_the_api(running):
    async with running.client() as client:
        found = (await client.get("/openapi.json")).json()
    assert found["openapi"].startswith("3.1")
    assert "/v1/sessions/{session_id}" in found["paths"]
    search = found["paths"]["/v1/search"]["post"]
    assert set(search["responses"]) == {"200", "default"}
    assert search["security"] == [{"bearer": []}]
    async with running.client(KEYS.admin) as client:
        assert (await client.get("/docs")).status_code == 404


async def test_unknown_paths_and_methods_are_problems(admin):
    for method, path, status in (("GET", "/v2", 404), ("DELETE", "/v1/search", 405)):
        answer = await admin.request(method, path)
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert set(answer.json()) == {"type", "title", "status", "detail"}
    assert answer.headers["allow"] == "POST"

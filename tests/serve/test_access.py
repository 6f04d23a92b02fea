"""Who may use which route. A route that is not in the table fails the first test."""

import json

import httpx
import pytest
from serve_server import KEYS, SECRET_WORD, credentials, token

from autoplay_rag.serve.building import ROUTERS

OPEN = {"nobody", "admin", "read", "ingest", "user token", "session token"}
OWN = {"admin", "read", "user token", "session token"}
READ = {"admin", "read"}
INGEST = {"admin", "ingest"}
ADMIN = {"admin"}

# Method and path: who is let through, the path to ask, and the body.
TABLE = {
    ("POST", "/v1/search"): (OWN, "/v1/search", {"query": "export", "product_id": "acme"}),
    ("POST", "/v1/search/sessions"): (OWN, "/v1/search/sessions", {"query": "export"}),
    ("GET", "/v1/sessions"): (OWN, "/v1/sessions", None),
    ("GET", "/v1/sessions/{session_id}"): (OWN, "/v1/sessions/s1?product_id=acme", None),
    ("GET", "/v1/actions"): (READ, "/v1/actions", None),
    ("GET", "/v1/products"): (READ, "/v1/products?session_id=s1", None),
    ("GET", "/v1/live"): (OWN, "/v1/live?session_id=s1&product_id=acme", None),
    ("GET", "/v1/stream"): (OWN, "/v1/stream", None),
    ("POST", "/v1/context"): (OWN, "/v1/context", {"query": "export"}),
    ("POST", "/v1/turns"): (INGEST, "/v1/turns", {"product_id": "acme", "question": "why?"}),
    ("POST", "/v1/webhooks/{product_id}"): (
        INGEST,
        "/v1/webhooks/acme",
        {"type": "summary", "session_id": "s9", "summary": "Looked around."},
    ),
    ("POST", "/v1/export"): (ADMIN, "/v1/export", {"user_id": "bob"}),
    ("POST", "/v1/forget"): (ADMIN, "/v1/forget", {"user_id": "bob", "dry_run": True}),
    ("GET", "/v1/forget/{number}"): (ADMIN, "/v1/forget/99", None),
    ("GET", "/v1/dead-letters"): (ADMIN, "/v1/dead-letters", None),
    ("POST", "/v1/dead-letters/retry"): (ADMIN, "/v1/dead-letters/retry", {"all": True}),
    ("POST", "/v1/dead-letters/discard"): (ADMIN, "/v1/dead-letters/discard", {"ids": [1]}),
    ("GET", "/v1/ledger"): (READ, "/v1/ledger", None),
    ("GET", "/v1/status"): (READ, "/v1/status", None),
    ("POST", "/v1/jobs"): (ADMIN, "/v1/jobs", {"kind": "verify"}),
    ("GET", "/v1/jobs"): (ADMIN, "/v1/jobs", None),
    ("GET", "/v1/jobs/{id}"): (ADMIN, "/v1/jobs/none", None),
    ("POST", "/v1/jobs/{id}/cancel"): (ADMIN, "/v1/jobs/none/cancel", None),
    ("GET", "/healthz"): (OPEN, "/healthz", None),
    ("GET", "/readyz"): (OPEN, "/readyz", None),
    ("GET", "/metrics"): (READ, "/metrics", None),
    ("GET", "/"): (OWN, "/", None),
    ("GET", "/sessions"): (OWN, "/sessions", None),
    ("GET", "/sessions/{session_id}"): (OWN, "/sessions/s1?product_id=acme", None),
    ("GET", "/search"): (OWN, "/search", None),
    ("GET", "/people"): (OWN - {"session token"}, "/people", None),
    ("POST", "/people"): (ADMIN, "/people", {"user_id": "bob"}),
    ("GET", "/dead-letters"): (READ, "/dead-letters", None),
    ("POST", "/dead-letters"): (ADMIN, "/dead-letters", {"action": "retry", "id": "1"}),
    ("GET", "/settings"): (READ, "/settings", None),
    ("GET", "/events"): (OWN, "/events", None),
    ("GET", "/static/{name}"): (OPEN, "/static/inspector.css", None),
    ("POST", "/sign-out"): (OPEN, "/sign-out", None),
    ("POST", "/mcp"): (OWN, "/mcp", {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}),
}


def test_every_route_is_in_the_table():
    routes = {
        (method, route.path_format)
        for router in ROUTERS
        for route in router.routes
        for method in route.methods
    }
    # The sign-in form answers by the key in it; see `test_inspector_signing`.
    assert routes == set(TABLE) | {("POST", "/sign-in")}


FORMS = {"/people", "/dead-letters"}


async def status_of(client, method, path, body):
    sent = {"json": body}
    if path in FORMS and method == "POST":
        sent = {"data": body, "headers": {"origin": str(client.base_url).rstrip("/")}}
    async with client.stream(method, path, **sent) as answer:
        if not answer.headers.get("content-type", "").startswith("text/event-stream"):
            await answer.aread()
            if answer.status_code >= 400:
                assert answer.headers["content-type"] == "application/problem+json"
                assert answer.json()["status"] == answer.status_code
        return answer.status_code


async def test_who_may_use_which_route(running):
    wrong = []
    for name, credential in credentials().items():
        async with running.client(credential) as client:
            for (method, route), (allowed, path, body) in TABLE.items():
                found = await status_of(client, method, path, body)
                refused = 401 if credential is None else 403
                ok = found in (200, 202, 303, 404) if name in allowed else found == refused
                if not ok:
                    wrong.append((name, method, route, found))
    assert wrong == []


async def test_nothing_of_bob_reaches_anns_token(running):
    """Every route, with every way to ask for more than the own data."""
    async with running.client(token(user_id="ann")) as client:
        answers = [
            await client.request(method, path, json=body)
            for method, path, body in (
                ("POST", "/v1/search", {"query": f"{SECRET_WORD} bob", "k": 100}),
                ("POST", "/v1/search", {"query": f"{SECRET_WORD} bob", "mode": "text", "k": 100}),
                ("POST", "/v1/search", {"query": SECRET_WORD, "mode": "dense", "session_id": "s3"}),
                ("POST", "/v1/search/sessions", {"query": SECRET_WORD, "k": 100}),
                ("POST", "/v1/search/sessions", {"query": "paid", "session_id": "s3"}),
                ("GET", "/v1/sessions", None),
                ("GET", f"/v1/sessions?matching={SECRET_WORD}", None),
                ("GET", "/v1/sessions?session_id=s3", None),
                ("GET", "/v1/sessions/s3", None),
                ("GET", "/v1/sessions/s4", None),
                ("POST", "/v1/search", {"query": SECRET_WORD, "session_id": "s4"}),
                ("GET", "/v1/live", None),
                ("GET", "/v1/live?session_id=s3", None),
                ("GET", "/v1/live?session_id=s4", None),
                ("POST", "/v1/context", {"query": SECRET_WORD}),
                ("POST", "/v1/context", {"query": SECRET_WORD, "session_id": "s3"}),
            )
        ]
    assert [one.status_code for one in answers] == [200] * len(answers)
    for answer in answers:
        # The question itself is not repeated in any answer.
        assert SECRET_WORD not in answer.text
        assert "bob" not in answer.text
        assert "umbrella" not in answer.text


async def test_a_foreign_id_is_403_whether_it_exists_or_not(running):
    refused = []
    async with running.client(token(user_id="ann")) as client:
        for bound in ({"user_id": "bob"}, {"user_id": "nobody"}, {"product_id": "umbrella"}):
            refused += [
                await client.post(path, json={"query": "x", **bound})
                for path in ("/v1/search", "/v1/search/sessions", "/v1/context")
            ]
            refused += [
                await client.get(path, params=bound)
                for path in ("/v1/sessions", "/v1/sessions/s1", "/v1/live", "/v1/stream")
            ]
        foreign = await client.get("/v1/sessions/s2")
        unknown = await client.get("/v1/sessions/never-seen")
    assert {one.status_code for one in refused} == {403}
    assert foreign.status_code == unknown.status_code == 403
    assert foreign.json() == unknown.json()


async def test_a_session_token_sees_its_session_alone(running):
    async with running.client(token(session_id="s1")) as client:
        listed = (await client.get("/v1/sessions")).json()
        found = (await client.post("/v1/search", json={"query": SECRET_WORD, "k": 100})).json()
        context = (await client.post("/v1/context", json={"query": "paid"})).json()["text"]
        refused = [
            (await client.get("/v1/sessions/s2")).status_code,
            (await client.get("/v1/live?session_id=s2")).status_code,
            (await client.get("/v1/live?user_id=ann")).status_code,
            (await client.post("/v1/search", json={"query": "x", "session_id": "s3"})).status_code,
            (await client.post("/v1/context", json={"query": "x", "user_id": "bob"})).status_code,
        ]
        whole = (await client.get("/v1/sessions/s1")).json()
    assert [one["session_id"] for one in listed["sessions"]] == ["s1"]
    assert listed["total"] == 1
    assert {hit["session_id"] for hit in found["hits"]} == {"s1"}
    assert {hit["metadata"]["product_id"] for hit in found["hits"]} == {"acme"}
    assert "ann paid" not in context
    assert refused == [403] * 5
    assert "exported" in whole["text"]


async def test_the_own_part_of_a_shared_session(running):
    """Counts, times and people of a session that Bob used, too, are Ann's alone."""
    async with running.client(token(user_id="ann")) as client:
        own = (await client.get("/v1/sessions/s3")).json()
        listed = (await client.get("/v1/sessions")).json()
        found = (await client.post("/v1/search/sessions", json={"query": "paid", "k": 50})).json()
    assert own["users"] == ["ann"]
    assert own["user_id"] == "ann"
    assert own["ambiguous"] is False
    assert own["payloads"] == len(own["events"]) == 1
    assert (own["started_at"], own["ended_at"]) == (3000.0, 3000.0)
    assert "s3" not in {one["session_id"] for one in listed["sessions"]}
    (shared,) = [one for one in found["hits"] if one["session_id"] == "s3"]
    assert (shared["started_at"], shared["ended_at"]) == (3000.0, 3000.0)
    assert found["unembedded"] is None
    assert found["scope_known"] is None
    async with running.client(KEYS.read) as client:
        whole = (await client.get("/v1/sessions/s3")).json()
    assert whole["users"] == ["ann", "bob"]
    assert (whole["started_at"], whole["ended_at"], whole["payloads"]) == (3000.0, 5000.0, 3)


async def test_a_payload_of_two_people_is_read_in_parts(running):
    async with running.client(token(user_id="ann")) as client:
        own = (await client.get("/v1/sessions/s4")).json()
    assert [event["title"] for event in own["events"]] == ["ann looked"]
    assert (own["started_at"], own["ended_at"]) == (6000.0, 6000.0)
    assert SECRET_WORD not in str(own)


async def test_the_scores_of_a_token_do_not_depend_on_other_people(running):
    asked = {"query": "ann exported reports", "mode": "text", "k": 5}
    async with running.client(token(user_id="ann")) as client:
        before = (await client.post("/v1/search", json=asked)).json()["hits"]
    assert [hit["score"] for hit in before] == [1 / rank for rank in range(1, len(before) + 1)]
    assert {hit["text_score"] for hit in before} == {None}
    async with running.client(KEYS.read) as client:
        hits = (await client.post("/v1/search", json={**asked, "product_id": "acme"})).json()[
            "hits"
        ]
    assert hits[0]["text_score"] > 0


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/search", {"query": "x", "user_id": "ann"}),
        ("POST", "/v1/search/sessions", {"query": "x", "session_id": "s1"}),
        ("POST", "/v1/context", {"query": "x", "user_id": "ann", "session_id": "s3"}),
        ("GET", "/v1/sessions?user_id=ann", None),
        ("GET", "/v1/sessions/s1", None),
        ("GET", "/v1/live?user_id=ann", None),
        ("GET", "/v1/stream?user_id=ann", None),
        ("GET", "/v1/actions?user_id=ann", None),
        ("POST", "/v1/export", {"user_id": "ann"}),
        ("POST", "/v1/forget", {"user_id": "ann"}),
    ],
)
async def test_an_id_of_two_products_is_409_without_its_product(running, method, path, body):
    async with running.client(KEYS.admin) as client:
        answer = await client.request(method, path, json=body)
        assert answer.status_code == 409, answer.text
        assert "give product_id" in answer.json()["detail"]
        for name in ("acme", "umbrella"):
            assert name not in answer.text


async def test_the_audit_log_has_a_line_for_each_request_about_someone(running):
    async with running.client(KEYS.read) as client:
        await client.post(
            "/v1/search", json={"query": "secret question", "user_id": "bob", "product_id": "acme"}
        )
        await client.get("/v1/ledger")
    async with running.client(token(user_id="ann")) as client:
        await client.get("/v1/sessions?user_id=bob")
    first, second = map(json.loads, running.audit)
    assert first["who"] == "read"
    assert first["route"] == "POST /v1/search"
    assert first["scope"] == {"user_id": "bob", "product_id": "acme"}
    assert first["counts"]["hits"] > 0
    assert first["status"] == 200
    assert second["who"].startswith("token ")
    assert second["status"] == 403
    assert not any("secret question" in line or KEYS.read in line for line in running.audit)


async def test_an_exact_key_is_needed(running):
    keys = (KEYS.read[:-1], KEYS.read + "x", "x" * 5000, KEYS.read.upper())
    for wrong in (*(f"Bearer {key}" for key in keys), "Bearer", KEYS.read, f"Basic {KEYS.read}"):
        async with running.client(headers={"authorization": wrong}) as client:
            answer = await client.get("/v1/ledger")
        assert answer.status_code == 401
        assert "www-authenticate" in answer.headers
    async with httpx.AsyncClient(auth=("user", KEYS.read)) as client:
        assert (await client.get(f"{running.server.url}/v1/ledger")).status_code == 401

"""What the asked user did just now is pulled for the answer, and for nobody who may not see it."""

import asyncio
import json
import time

import pytest
from pipelines import make_actions
from serve_server import KEYS, token
from starlette.responses import PlainTextResponse

from autoplay_rag import ActionsPayload, AsyncConnectorClient, IngestPipeline, SlimAction
from autoplay_rag.serve import pulling
from autoplay_rag.sources import LiveActivitySource
from autoplay_rag.stores import MemoryStore


@pytest.fixture(autouse=True)
def limits(monkeypatch):
    """Limits that a busy machine keeps."""
    monkeypatch.setattr(pulling, "_SECONDS", 30.0)
    monkeypatch.setattr(pulling, "_FRESH_SECONDS", 600.0)
    monkeypatch.setattr(pulling, "_PAUSE_SECONDS", 600.0)
    return monkeypatch


@pytest.fixture
async def pulled(serve, server, make_pipeline, tmp_path):
    """A server whose pipeline can ask the pull endpoint of "acme". It watches nobody."""
    server.as_of = time.time()
    server.click("ann", "Export", server.as_of - 5)
    server.click("bob", "Bob's page", server.as_of - 5)
    pipeline = make_pipeline(journal=tmp_path / "journal.db")
    pipeline.attach(LiveActivitySource(server.url, "acme", "key", users=()))
    async with serve(pipeline=pipeline) as running:
        yield running


async def context(running, credential=KEYS.read, **asked):
    async with running.client(credential) as client:
        answer = await client.post("/v1/context", json=asked)
    return answer.status_code, answer.json().get("text", "")


async def tool(running, name, credential=KEYS.read, **arguments):
    asked = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": name, "arguments": arguments},
    }
    headers = {"accept": "application/json", "mcp-protocol-version": "2025-11-25"}
    async with running.client(credential, headers=headers) as client:
        result = (await client.post("/mcp", json=asked)).json()["result"]
    return result.get("isError", False), json.dumps(result)


@pytest.mark.parametrize("credential", [KEYS.read, token(user_id="ann")])
@pytest.mark.parametrize("way", ["context", "live", "recent_activity", "user_history"])
async def test_what_the_user_did_seconds_ago_is_shown(pulled, server, way, credential):
    asked = {"user_id": "ann"} if credential == KEYS.read else {}
    if way == "context":
        _, text = await context(pulled, credential, **(asked or {"user_id": "ann"}))
    elif way == "live":
        async with pulled.client(credential) as client:
            text = (await client.get("/v1/live", params={"user_id": "ann"})).text
    else:
        _, text = await tool(pulled, way, credential, **asked)
    assert "Export" in text
    assert "Bob" not in text
    assert [user for user, _ in server.requests] == ["ann"]
    # It is stored as well, and known when it is pulled again.
    assert [one.title async for one in pulled.pipeline.actions()] == ["Export"]


async def test_beside_a_stream_it_is_shown_before_the_stream_brings_it(pulled, server):
    """And each action is stored once, in the session that the stream names."""
    pipeline = pulled.pipeline
    pipeline.attach(AsyncConnectorClient("http://127.0.0.1:9/stream/acme"))
    now = server.as_of
    await pipeline.on_actions(batch("ps_1", now, {"Home": 60.0}))
    _, text = await context(pulled, user_id="ann")
    assert "Export" in text
    await pipeline.on_actions(batch("ps_1", now, {"Export": 5.0, "Save": 2.0}))
    stored = [(one.session_id, one.title) async for one in pipeline.actions()]
    assert sorted(stored) == [("ps_1", "Export"), ("ps_1", "Home"), ("ps_1", "Save")]


def batch(session, now, titles):
    """What the stream brings of Ann; by title, how many seconds ago it was."""
    actions = [
        SlimAction(
            title, f"User clicked {title}", "https://a.test/p", n, "click", now - ago, now - ago
        )
        for n, (title, ago) in enumerate(titles.items())
    ]
    return ActionsPayload("acme", session, "ann", actions=actions, forwarded_at=now)


async def test_the_search_of_a_context_finds_what_was_pulled(pulled):
    _, text = await context(pulled, query="Export", user_id="ann", seconds=1)
    assert "Earlier" in text
    assert "Export" in text


@pytest.fixture(params=["fails", "hangs"])
def broken(request, server, limits):
    """A pull endpoint that gives no answer."""
    if request.param == "hangs":
        limits.setattr(pulling, "_SECONDS", 0.1)
        server.script = lambda user, headers: server.hang()
    else:
        server.script = lambda user, headers: PlainTextResponse("no", status_code=503)
    return server


@pytest.mark.parametrize("way", ["context", "recent_activity", "user_history"])
async def test_a_failure_adds_nothing(pulled, broken, caplog, way):
    await pulled.pipeline.accept(make_actions("s1", "Known", user="ann", at=time.time() - 60))
    for _ in range(2):
        if way == "context":
            _, text = await context(pulled, user_id="ann")
        else:
            _, text = await tool(pulled, way, user_id="ann")
        assert "Known" in text
        assert "Export" not in text
    assert len(broken.requests) <= 1, "after a failure it pauses"
    assert caplog.text.count("answering without what a pull would add") == 1
    assert "ann" not in caplog.text


@pytest.mark.parametrize(
    ("bound", "asked", "status"),
    [
        ({"user_id": "bob"}, {"user_id": "ann"}, 403),
        ({"session_id": "s1"}, {"user_id": "ann"}, 403),
        ({"session_id": "s1"}, {"session_id": "s1"}, 200),
        ({"user_id": "ann", "product_id": "umbrella"}, {"user_id": "ann"}, 200),
        ({"user_id": "ann"}, {"user_id": "ann", "product_id": "umbrella"}, 403),
    ],
)
async def test_a_token_pulls_nobody_else(pulled, server, bound, asked, status):
    assert (await context(pulled, token(**bound), **asked))[0] == status
    async with pulled.client(token(**bound)) as client:
        await client.get("/v1/live", params=asked)
    for name in ("recent_activity", "user_history"):
        await tool(pulled, name, token(**bound), **asked)
    await tool(pulled, "user_history", token(**bound))
    if bound == {"user_id": "bob"}:  # the last one asks for its own
        assert {user for user, _ in server.requests} == {"bob"}
    elif bound == {"user_id": "ann"}:
        assert {user for user, _ in server.requests} == {"ann"}
    else:
        assert server.requests == []


async def test_somebody_of_another_product_is_not_pulled(pulled, server):
    other = make_actions("s9", "Elsewhere", user="ann", at=time.time() - 60)
    other.product_id = "umbrella"
    await pulled.pipeline.accept(other)
    _, text = await context(pulled, user_id="ann")
    assert "Elsewhere" in text
    _, text = await context(pulled, user_id="ann", product_id="umbrella")
    assert "Elsewhere" in text
    assert server.requests == []


async def test_requests_about_one_user_share_a_pull(pulled, server):
    answers = await asyncio.gather(*(context(pulled, user_id="ann") for _ in range(10)))
    assert all("Export" in text for _, text in answers)
    assert len(server.requests) == 1


async def test_a_user_is_pulled_again_after_a_while(pulled, server, limits):
    limits.setattr(pulling, "_FRESH_SECONDS", 0.0)
    await context(pulled, user_id="ann")
    server.click("ann", "Save", server.as_of - 1)
    _, text = await context(pulled, user_id="ann")
    assert "Save" in text
    assert len(server.requests) == 2


@pytest.mark.parametrize("how", ["redacted", "forgotten", "filtered"])
async def test_the_rules_of_the_pipeline_apply(serve, server, embedder, tmp_path, how):
    server.as_of = time.time()
    server.click("ann", "jane@example.com", server.as_of - 5)
    rules = {"redact": "pii"} if how == "redacted" else {}
    if how == "filtered":
        rules["select"] = lambda payload: False
    pipeline = IngestPipeline(MemoryStore(), embedder, journal=tmp_path / "journal.db", **rules)
    pipeline.attach(LiveActivitySource(server.url, "acme", "key", users=()))
    async with serve(pipeline=pipeline) as running:
        if how == "forgotten":
            await pipeline.forget(user_id="ann", block=True)
        _, text = await context(running, user_id="ann")
        listed = await tool(running, "user_history", user_id="ann")
    assert [user for user, _ in server.requests][:1] == ["ann"]
    assert "jane" not in text + listed[1]
    assert ("clicked" in text) == (how == "redacted")


async def test_without_a_source_nothing_changes(running):
    _, text = await context(running, user_id="ann", product_id="acme", seconds=1e8)
    assert "ann opened reports" in text

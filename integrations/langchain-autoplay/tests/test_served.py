"""Retriever, middleware and tools over the URL of a server, as over a pipeline."""

from __future__ import annotations

import asyncio
import copy
import re
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from autoplay_rag import ActionsPayload, IngestPipeline, ServeClient, SlimAction
from autoplay_rag.errors import ConfigurationError, ServerError
from autoplay_rag.serve import Keys, create_app
from autoplay_rag.serve.server import HttpServer
from autoplay_rag.stores import MemoryStore
from langchain.agents import create_agent
from langchain_core.messages import AIMessage

from langchain_autoplay import AutoplayRetriever, SessionContextMiddleware, autoplay_tools

KEY = "key-of-tests-of-tests"


@asynccontextmanager
async def served(pipeline: IngestPipeline) -> AsyncIterator[str]:
    """The URL of a server of a running pipeline."""
    server = HttpServer(create_app(pipeline, keys=Keys(read=KEY)), "127.0.0.1", 0)
    task = asyncio.create_task(server.run_until_stopped())
    try:
        await server.ready()
        yield server.url
    finally:
        server.stop()
        await task


@asynccontextmanager
async def answering(status: int) -> AsyncIterator[str]:
    """The URL of a server that answers everything with one status."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(f"HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n".encode())
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.fixture(params=["stopped", "stalled", "unavailable", "wrong key"])
async def unusable(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """The URL of a server that gives no answer."""
    if request.param in ("unavailable", "wrong key"):
        async with answering(503 if request.param == "unavailable" else 401) as url:
            yield url
        return
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        if request.param == "stalled":
            taken.listen(100)  # connections are accepted and never answered
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPLAY_RAG_KEY", KEY)


@pytest.fixture
async def pipeline(embeddings, tmp_path) -> AsyncIterator[IngestPipeline]:
    journal = tmp_path / "journal.db"
    async with IngestPipeline(
        MemoryStore(), embeddings, journal=journal, batch_window=0
    ) as running:
        for user in ("ann", "bob"):
            for number, what in enumerate(("typed SAVE20 into Promo code", "opened billing")):
                at = time.time() - 86_400 * (1 - number)
                action = SlimAction("", f"{user} {what}", "https://app.test/", 0, "click", at, at)
                session = f"s-{user}-{number}"
                await running.on_actions(ActionsPayload("acme", session, user, actions=[action]))
        await running.drain()
        yield running


@pytest.fixture(params=["url", "client"])
async def source(request, pipeline) -> AsyncIterator[str | ServeClient]:
    async with served(pipeline) as url:
        if request.param == "url":
            yield url
        else:
            async with ServeClient(url, KEY) as client:
                yield client


ANN = {"configurable": {"user_id": "ann"}}
CALLS = {
    "search_sessions": {"query": "promo code"},
    "read_session": {"session_id": "s-ann-0"},
    "recent_activity": {},
    "user_history": {},
}


def same(text: str) -> str:
    return re.sub(r"Now it is [^.]*\.", "", text)


async def test_the_retriever_finds_the_same(pipeline, source):
    here = AutoplayRetriever(pipeline, scope="user_id", k=2)
    there = AutoplayRetriever(source, scope="user_id", k=2)
    expected = await here.ainvoke("promo code", ANN)
    assert len(expected) == 2
    assert await there.ainvoke("promo code", ANN) == expected
    assert await copy.deepcopy(there).ainvoke("promo code", ANN) == expected
    assert await asyncio.to_thread(there.invoke, "promo code", ANN) == expected
    assert KEY not in repr(there)


async def test_tools_answer_the_same(pipeline, source):
    here = {tool.name: tool for tool in autoplay_tools(pipeline)}
    # On a loaded machine an answer may take more than a second.
    there = {tool.name: tool for tool in autoplay_tools(source, timeout=30)}
    for name, asked in CALLS.items():
        expected = same(await here[name].ainvoke(asked, ANN))
        assert "ann" in expected
        assert same(await there[name].ainvoke(asked, ANN)) == expected
        assert same(await asyncio.to_thread(there[name].invoke, asked, ANN)) == expected


@pytest.mark.parametrize("is_async", [True, False])
async def test_the_middleware_adds_the_same(pipeline, source, scripted, is_async):
    seen = []
    for one in (pipeline, source):
        model = scripted("Yes.")
        agent = create_agent(model, middleware=[SessionContextMiddleware(one, timeout=30)])
        asked = {"messages": [{"role": "user", "content": "Which promo code?"}]}
        if is_async:
            await agent.ainvoke(asked, context={"user_id": "ann"})
        else:
            await asyncio.to_thread(agent.invoke, asked, context={"user_id": "ann"})
        seen.append([same(message.text) for message in model.seen[0]])
    assert seen[0] == seen[1]
    assert "SAVE20" in seen[0][0]


@pytest.mark.parametrize("is_async", [True, False])
async def test_without_an_answer_the_middleware_adds_nothing(unusable, scripted, is_async, caplog):
    call = AIMessage("", tool_calls=[{"name": "user_history", "args": {}, "id": "1"}])
    model = scripted(call, "Yes.")
    agent = create_agent(
        model,
        tools=autoplay_tools(unusable, timeout=0.2),
        middleware=[SessionContextMiddleware(unusable, timeout=0.2)],
    )
    asked = {"messages": [{"role": "user", "content": "Which promo code?"}]}
    began = time.monotonic()
    if is_async:
        answer = await agent.ainvoke(asked, context={"user_id": "ann-of-tests"})
    else:
        answer = await asyncio.to_thread(agent.invoke, asked, context={"user_id": "ann-of-tests"})
    assert time.monotonic() - began < 20
    assert answer["messages"][-1].text == "Yes."
    assert [message.text for message in model.seen[0]] == ["Which promo code?"]
    assert "is not available at the moment" in model.seen[1][-1].text
    assert sum("not shown what the user did" in line for line in caplog.messages) == 1
    for secret in (KEY, "ann-of-tests"):
        assert secret not in caplog.text


@pytest.mark.parametrize("name", CALLS)
async def test_without_an_answer_a_tool_says_so(unusable, name):
    tool = {tool.name: tool for tool in autoplay_tools(unusable, timeout=0.2)}[name]
    for answer in (
        await tool.ainvoke(CALLS[name], ANN),
        await asyncio.to_thread(tool.invoke, CALLS[name], ANN),
    ):
        assert "not available at the moment" in answer
        assert "could not be looked up" in answer
        for nothing_found in ("Nothing", "No session", "no session", "anonymous"):
            assert nothing_found not in answer


async def test_without_an_answer_the_retriever_raises(unusable):
    async with ServeClient(unusable, KEY, timeout=0.2) as client:
        retriever = AutoplayRetriever(client, scope="user_id")
        with pytest.raises(ServerError):
            await retriever.ainvoke("promo code", ANN)
        with pytest.raises(ServerError):
            await asyncio.to_thread(retriever.invoke, "promo code", ANN)


async def test_the_default_timeout_is_one_second(scripted):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(100)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        agent = create_agent(scripted("Yes."), middleware=[SessionContextMiddleware(url)])
        began = time.monotonic()
        await agent.ainvoke(
            {"messages": [{"role": "user", "content": "Hm?"}]}, context={"user_id": "ann"}
        )
        assert 0.9 < time.monotonic() - began < 20


@pytest.mark.parametrize(
    "make",
    [
        lambda: AutoplayRetriever("nowhere", scope=None),
        lambda: SessionContextMiddleware("nowhere"),
        lambda: autoplay_tools("nowhere"),
        lambda: SessionContextMiddleware("http://a.test", timeout=0),
        lambda: autoplay_tools("http://a.test", timeout=-1),
    ],
)
def test_a_wrong_url_or_timeout_is_refused_at_once(make):
    with pytest.raises(ConfigurationError, match=r"http://|timeout"):
        make()

"""Retriever, memory block and tools over the URL of a server, as over a pipeline."""

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
from llama_index.core.llms import ChatMessage

from llama_index.readers.autoplay import (
    AutoplayRetriever,
    LlamaIndexEmbedder,
    SessionContextBlock,
    autoplay_tools,
)

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
async def pipeline(embed_model, tmp_path) -> AsyncIterator[IngestPipeline]:
    async with IngestPipeline(
        MemoryStore(),
        LlamaIndexEmbedder(embed_model),
        journal=tmp_path / "journal.db",
        batch_window=0,
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


CALLS = {
    "search_sessions": {"query": "promo code"},
    "read_session": {"session_id": "s-ann-0"},
    "recent_activity": {},
    "user_history": {},
}
QUESTION = [ChatMessage("Which promo code?", role="user")]


def same(text: str) -> str:
    return re.sub(r"Now it is [^.]*\.", "", text)


async def test_the_retriever_finds_the_same(pipeline, source):
    expected = await AutoplayRetriever(pipeline, user_id="ann", k=2).aretrieve("promo code")
    assert len(expected) == 2
    there = AutoplayRetriever(source, user_id="ann", k=2)
    assert await there.aretrieve("promo code") == expected
    assert await copy.deepcopy(there).aretrieve("promo code") == expected
    assert await asyncio.to_thread(there.retrieve, "promo code") == expected


async def test_tools_answer_the_same(pipeline, source):
    here = {one.metadata.name: one for one in autoplay_tools(pipeline, user_id="ann")}
    # On a loaded machine an answer may take more than a second.
    there = {one.metadata.name: one for one in autoplay_tools(source, user_id="ann", timeout=30)}
    for name, asked in CALLS.items():
        expected = same((await here[name].acall(**asked)).content)
        assert "ann" in expected
        assert same((await there[name].acall(**asked)).content) == expected
        assert same((await asyncio.to_thread(there[name].call, **asked)).content) == expected


async def test_the_block_says_the_same(pipeline, source):
    expected = same(await SessionContextBlock(pipeline, user_id="ann").aget(QUESTION))
    assert "SAVE20" in expected
    there = SessionContextBlock(source, user_id="ann", timeout=30)
    assert same(await there.aget(QUESTION)) == expected
    assert same(await copy.deepcopy(there).aget(QUESTION)) == expected
    found = await asyncio.to_thread(lambda: asyncio.run(there.aget(QUESTION)))
    assert same(found) == expected


async def test_without_an_answer_the_block_adds_nothing(unusable, caplog):
    block = SessionContextBlock(unusable, user_id="ann-of-tests", timeout=0.2)
    began = time.monotonic()
    assert await block.aget(QUESTION) == ""
    assert time.monotonic() - began < 20
    assert any("not shown what the user did" in line for line in caplog.messages)
    for secret in (KEY, "ann-of-tests"):
        assert secret not in caplog.text


@pytest.mark.parametrize("name", CALLS)
async def test_without_an_answer_a_tool_says_so(unusable, name):
    tools = autoplay_tools(unusable, user_id="ann", timeout=0.2)
    tool = {one.metadata.name: one for one in tools}[name]
    for answer in (
        await tool.acall(**CALLS[name]),
        await asyncio.to_thread(tool.call, **CALLS[name]),
    ):
        assert "not available at the moment" in answer.content
        for nothing_found in ("Nothing", "No session", "no session", "anonymous"):
            assert nothing_found not in answer.content


async def test_without_an_answer_the_retriever_raises(unusable):
    async with ServeClient(unusable, KEY, timeout=0.2) as client:
        with pytest.raises(ServerError):
            await AutoplayRetriever(client, user_id="ann").aretrieve("promo code")


async def test_the_default_timeout_is_one_second():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(100)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        began = time.monotonic()
        assert await SessionContextBlock(url, user_id="ann").aget(QUESTION) == ""
        assert 0.9 < time.monotonic() - began < 20


@pytest.mark.parametrize(
    "make",
    [
        lambda: AutoplayRetriever("nowhere", user_id=None),
        lambda: SessionContextBlock("nowhere", user_id="ann"),
        lambda: autoplay_tools("nowhere", user_id="ann"),
        lambda: SessionContextBlock("http://a.test", user_id="ann", timeout=0),
        lambda: autoplay_tools("http://a.test", user_id="ann", timeout=-1),
    ],
)
def test_a_wrong_url_or_timeout_is_refused_at_once(make):
    with pytest.raises(ConfigurationError, match=r"http://|timeout"):
        make()

"""What a user did just now is pulled, though nobody watched them before."""

from __future__ import annotations

import asyncio
import time

import pytest
from autoplay_rag import ActionsPayload, IngestPipeline, LiveSessions, SlimAction
from autoplay_rag.devserver import LocalConnector
from autoplay_rag.sources import LiveActivitySource
from autoplay_rag.stores import MemoryStore
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage

from langchain_autoplay import AutoplayLoader, SessionContextMiddleware, autoplay_tools

ASKED = {"messages": [HumanMessage("Where is it?")]}


@pytest.fixture
async def connector():
    at = time.time() - 3
    click = SlimAction("Export", "User clicked Export", "https://a.test/p", 0, "click", at, at)
    async with LocalConnector([], product_id="acme", token="key") as running:
        await running.send(ActionsPayload("acme", "ps_1", "ann", actions=[click]))
        yield running


@pytest.fixture
async def source(connector):
    async with LiveActivitySource(connector.pull_url, "acme", "key", users="asked") as made:
        yield made


@pytest.mark.parametrize("kind", ["pipeline", "live"])
async def test_the_middleware_shows_what_was_pulled(scripted, source, embeddings, kind):
    async with IngestPipeline(MemoryStore(), embeddings) as pipeline:
        pipeline.attach(source)
        given = pipeline if kind == "pipeline" else LiveSessions()
        model = scripted("There.")
        agent = create_agent(model, middleware=[SessionContextMiddleware(given, pull=source)])
        await agent.ainvoke(ASKED, context={"user_id": "ann"})
        assert "clicked Export" in model.seen[-1][0].text
        await agent.ainvoke(ASKED, context={"user_id": "nobody"})
        assert len(model.seen[-1]) == 1
        # What the attached source pulled can be searched, too.
        assert (await pipeline.search("export", mode="text"))[0].metadata["user_id"] == "ann"


async def test_the_middleware_works_in_synchronous_code(scripted, source):
    model = scripted("There.")
    agent = create_agent(model, middleware=[SessionContextMiddleware(LiveSessions(), pull=source)])
    await asyncio.to_thread(lambda: agent.invoke(ASKED, context={"user_id": "ann"}))
    assert "clicked Export" in model.seen[-1][0].text


async def test_nothing_is_added_when_the_pull_fails(scripted, connector, caplog):
    async with LiveActivitySource(connector.pull_url, "acme", "wrong", users=()) as refused:
        model = scripted("There.")
        middleware = SessionContextMiddleware(LiveSessions(), pull=refused)
        agent = create_agent(model, middleware=[middleware])
        await agent.ainvoke(ASKED, context={"user_id": "ann"})
    assert len(model.seen[-1]) == 1
    assert "a model is not shown what was pulled" in caplog.text


async def test_the_tool_shows_what_was_pulled(source, embeddings):
    async with IngestPipeline(MemoryStore(), embeddings) as pipeline:
        tools = {tool.name: tool for tool in autoplay_tools(pipeline, user_id="ann", pull=source)}
        assert "clicked Export" in await tools["recent_activity"].ainvoke({})


async def test_the_loader_takes_any_source(connector):
    async with LiveActivitySource(connector.pull_url, "acme", "key", users={"ann"}) as source:
        loader = AutoplayLoader.from_source(source, max_documents=1)
        (document,) = await loader.aload()
        assert document.metadata["user_id"] == "ann"
        with pytest.raises(TypeError, match="max_retries"):
            AutoplayLoader.from_source(source, max_retries=3)

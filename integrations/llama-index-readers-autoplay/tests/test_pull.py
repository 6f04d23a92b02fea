"""What a user did just now is pulled, though nobody watched them before."""

from __future__ import annotations

import asyncio
import copy
import time

import pytest
from autoplay_rag import ActionsPayload, IngestPipeline, LiveSessions, SlimAction
from autoplay_rag.devserver import LocalConnector
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.sources import LiveActivitySource
from autoplay_rag.stores import MemoryStore

from llama_index.readers.autoplay import (
    AutoplayReader,
    LlamaIndexEmbedder,
    SessionContextBlock,
    autoplay_tools,
)


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


async def test_the_block_shows_what_was_pulled(source, embed_model):
    async with IngestPipeline(MemoryStore(), LlamaIndexEmbedder(embed_model)) as pipeline:
        for given in (pipeline, LiveSessions()):
            block = SessionContextBlock(given, user_id="ann", pull=source)
            assert "clicked Export" in await block.aget()
            assert "clicked Export" in await copy.deepcopy(block).aget()
            assert "clicked Export" in await asyncio.to_thread(asyncio.run, block.aget())
            assert await SessionContextBlock(given, user_id="bob", pull=source).aget() == ""
            assert await SessionContextBlock(given, session_id="s", pull=source).aget() == ""


async def test_nothing_is_added_when_the_pull_fails(connector, caplog):
    async with LiveActivitySource(connector.pull_url, "acme", "wrong", users=()) as refused:
        block = SessionContextBlock(LiveSessions(), user_id="ann", pull=refused)
        assert await block.aget() == ""
    assert "a model is not shown what was pulled" in caplog.text


async def test_the_tool_shows_what_was_pulled(source, embed_model):
    async with IngestPipeline(MemoryStore(), LlamaIndexEmbedder(embed_model)) as pipeline:
        made = autoplay_tools(pipeline, user_id="ann", pull=source)
        tools = {tool.metadata.name: tool for tool in made}
        assert "clicked Export" in (await tools["recent_activity"].acall()).content


async def test_the_reader_takes_any_source(connector):
    async with LiveActivitySource(connector.pull_url, "acme", "key", users={"ann"}) as source:
        reader = AutoplayReader.from_source(source, max_documents=1)
        (document,) = await reader.aload_data()
        assert document.metadata["user_id"] == "ann"
        data = reader.to_dict()
        assert "key" not in str(data).replace("_keys", "")
        with pytest.raises(ConfigurationError, match="source"):
            AutoplayReader.from_dict(data)
        again = AutoplayReader.from_dict(data, source=source)
        assert again.is_remote
    with pytest.raises(ConfigurationError, match="only one of them"):
        AutoplayReader("https://a.test/stream/x", recording="x.jsonl")

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from autoplay_rag import ActionsPayload, IngestPipeline, SlimAction
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.stores import MemoryStore
from llama_index.core.agent.workflow import ReActAgent, ToolCallResult
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.llms import (
    CompletionResponse,
    CompletionResponseGen,
    CustomLLM,
    LLMMetadata,
)
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.tools import FunctionTool

from llama_index.readers.autoplay import LlamaIndexEmbedder, autoplay_tools

NAMES = ["search_sessions", "read_session", "recent_activity", "user_history"]
ARGUMENTS = {
    "search_sessions": {"query": "promo code"},
    "read_session": {"session_id": "s-ann"},
    "recent_activity": {},
    "user_history": {},
}


async def visit(pipeline, user: str | None, session: str, *whats: str, at: float) -> None:
    actions = [
        SlimAction("", f"User {what}", f"https://app.test/{n}", n, "click", at + 60 * n)
        for n, what in enumerate(whats)
    ]
    await pipeline.on_actions(ActionsPayload("acme", session, user, actions=actions))


@pytest.fixture
async def pipeline(embed_model, tmp_path):
    embedder = LlamaIndexEmbedder(embed_model)
    journal = tmp_path / "journal.db"
    async with IngestPipeline(MemoryStore(), embedder, journal=journal, batch_window=0) as running:
        for user in ("ann", "bob"):
            what = f"typed SAVE20-{user} into Promo code"
            await visit(running, user, f"s-{user}", "opened billing", what, at=1_772_525_000.0)
        await visit(running, None, "s-nobody", "opened the promo page", at=1_772_525_000.0)
        await visit(running, "ann", "s-ann-now", "clicked Settings", at=time.time())
        await running.drain()
        yield running


def tools_of(pipeline, **ids) -> dict[str, FunctionTool]:
    return {tool.metadata.name: tool for tool in autoplay_tools(pipeline, **ids)}


async def test_the_model_sees_four_tools_and_no_argument_for_a_user(pipeline):
    tools = tools_of(pipeline, user_id="ann")
    assert list(tools) == NAMES
    for name, tool in tools.items():
        function = tool.metadata.to_openai_tool()["function"]
        assert function["description"]
        arguments = function["parameters"]["properties"]
        assert not arguments.keys() & {"user_id", "product_id", "conversation_id", "ids"}
        assert ("session_id" in arguments) == (name == "read_session")
        assert all(each["description"] for each in arguments.values())


@pytest.mark.parametrize("name", NAMES)
async def test_each_answers_about_its_user_in_both_ways_whatever_the_model_writes(pipeline, name):
    tool = tools_of(pipeline, user_id="ann")[name]
    answered = (await tool.acall(**ARGUMENTS[name])).content
    forged = {"user_id": "bob", "ids": {"user_id": "bob"}, "product_id": "other"}
    for again in (
        await tool.acall(**ARGUMENTS[name], **forged),
        tool.call(**ARGUMENTS[name], **forged),
        await asyncio.to_thread(tool.call, **ARGUMENTS[name]),
    ):
        assert again.content == answered
    assert answered.startswith("<user_activity>\n")
    assert answered.endswith("\n</user_activity>")
    assert "session s-ann" in answered
    assert "UTC" in answered
    assert "bob" not in answered


async def test_read_session_refuses_what_is_not_the_users(pipeline):
    read = tools_of(pipeline, user_id="ann")["read_session"]
    unknown = (await read.acall(session_id="s-none")).content
    assert "no session with this id" in unknown
    for session in ("s-bob", "s-nobody"):
        assert (await read.acall(session_id=session)).content == unknown
        assert read.call(session_id=session).content == unknown


async def test_an_anonymous_visitor_has_one_session(pipeline):
    tools = tools_of(pipeline, session_id="s-nobody")
    found = (await tools["search_sessions"].acall(query="promo")).content
    assert "promo page" in found
    assert "SAVE20" not in found
    assert (
        "no session with this id" in (await tools["read_session"].acall(session_id="s-ann")).content
    )
    assert "anonymous" in (await tools["user_history"].acall()).content


async def test_who_is_not_named_is_refused_at_once(pipeline):
    for ids in ({}, {"product_id": "acme"}, {"user_id": ""}, {"user_id": "ann", "session_id": ""}):
        with pytest.raises(ConfigurationError, match="needs a user_id"):
            autoplay_tools(pipeline, **ids)


class Scripted(CustomLLM):
    """Calls a tool, and then answers."""

    _script: list[str] = PrivateAttr()

    def __init__(self, *script: str) -> None:
        super().__init__()
        self._script = list(script)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return CompletionResponse(text=self._script.pop(0))

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        yield self.complete(prompt)


async def test_an_agent_uses_them(pipeline):
    llm = Scripted(
        "Thought: I look.\nAction: search_sessions\n"
        'Action Input: {"query": "promo code", "user_id": "bob"}',
        "Thought: I can answer.\nAnswer: You typed SAVE20.",
    )
    agent = ReActAgent(tools=autoplay_tools(pipeline, user_id="ann"), llm=llm, streaming=False)
    run = agent.run("Which promo code did I use?")
    [result] = [e async for e in run.stream_events() if isinstance(e, ToolCallResult)]
    assert "You typed SAVE20." in str(await run)
    assert "SAVE20-ann" in result.tool_output.content
    assert "bob" not in result.tool_output.content

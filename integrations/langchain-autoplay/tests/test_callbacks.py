from __future__ import annotations

import asyncio
import copy
import logging
from typing import Any
from uuid import uuid4

import pytest
from autoplay_rag import ActionsPayload, IngestPipeline, LiveSessions, SlimAction
from autoplay_rag.stores import MemoryStore
from langchain.agents import create_agent
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig, RunnableLambda, RunnablePassthrough
from langchain_core.tools import tool

from langchain_autoplay import AutoplayCallbackHandler, SyncAutoplayCallbackHandler


class Noticing(LiveSessions):
    """Sets an event when a payload arrives."""

    def __init__(self) -> None:
        super().__init__()
        self.came = asyncio.Event()

    def add(self, payload) -> None:
        super().add(payload)
        self.came.set()


@pytest.fixture
async def pipeline(embeddings):
    live = Noticing()
    async with IngestPipeline(MemoryStore(), embeddings, batch_window=0, live=live) as running:
        yield running


def config(handler, **metadata):
    return {"callbacks": [handler], "metadata": {"session_id": "s1", **metadata}}


def said(pipeline) -> list[str]:
    session = pipeline.live.get(session_id="s1")
    return [event.text for event in session.events if event.kind == "chat"] if session else []


ANSWER = RunnableLambda(lambda question: f"You asked: {question}")
TURN = "asked: Where? — was answered: You asked: Where?"


async def test_it_is_what_langchain_takes(pipeline):
    assert isinstance(AutoplayCallbackHandler(pipeline), AsyncCallbackHandler)
    assert isinstance(SyncAutoplayCallbackHandler(pipeline), BaseCallbackHandler)


@pytest.mark.parametrize("make", [AutoplayCallbackHandler, SyncAutoplayCallbackHandler])
@pytest.mark.parametrize("how", ["async", "sync in a thread", "sync in the loop", "stream"])
async def test_a_run_becomes_a_turn_of_its_session(pipeline, make, how):
    handler = make(pipeline)
    if how == "async":
        await ANSWER.ainvoke("Where?", config(handler))
        assert said(pipeline) == [TURN] or make is SyncAutoplayCallbackHandler
    elif how == "stream":
        async for _ in (ANSWER | RunnableLambda(str)).astream("Where?", config(handler)):
            pass
    elif how == "sync in the loop":
        ANSWER.invoke("Where?", config(handler))
    else:
        await asyncio.to_thread(ANSWER.invoke, "Where?", config(handler))
    await asyncio.wait_for(pipeline.live.came.wait(), 10)
    assert said(pipeline) == [TURN]
    await pipeline.drain()
    [hit] = await pipeline.search("Where?", kind="chat")
    assert hit.session_id == "s1"
    assert hit.text == "User asked: Where?\nAssistant answered: You asked: Where?"


async def test_what_was_done_and_what_was_said_are_found_together(pipeline):
    click = SlimAction("Export", "User clicked Export")
    await pipeline.on_actions(ActionsPayload("acme", "s1", "u1", actions=[click]))
    await ANSWER.ainvoke("Where is my export?", config(AutoplayCallbackHandler(pipeline)))
    await pipeline.drain()
    hits = await pipeline.search("export", session_id="s1")
    assert {hit.metadata["kind"] for hit in hits} == {"actions", "chat"}
    [turn] = [hit for hit in hits if hit.metadata["kind"] == "chat"]
    assert (turn.metadata["product_id"], turn.metadata["user_id"]) == ("acme", "u1")


async def test_the_runs_metadata_say_whose_turn_it_is(pipeline):
    handler = AutoplayCallbackHandler(pipeline, clock=lambda: 1234.5)
    ids = {"user_id": "u7", "conversation_id": "c7", "product_id": "p7"}
    await ANSWER.ainvoke("Where?", config(handler, **ids))
    await pipeline.drain()
    [hit] = await pipeline.search("Where?")
    assert ids.items() <= hit.metadata.items()
    assert hit.metadata["forwarded_at"] == 1234.5


async def test_an_agents_run_is_one_turn_with_its_tools(pipeline, scripted, monkeypatch):
    @tool
    def look_up(thing: str) -> str:
        """Look something up."""
        return f"found {thing}"

    call = AIMessage("", tool_calls=[{"name": "look_up", "args": {"thing": "x"}, "id": "1"}])
    accepted = []
    accept = pipeline.accept
    monkeypatch.setattr(pipeline, "accept", lambda turn: accepted.append(turn) or accept(turn))
    for streamed in (False, True):
        agent = create_agent(scripted(call, call, "It is there."), tools=[look_up])
        asked = {"messages": [HumanMessage("Where?")]}
        run = _streamed(agent) if streamed else agent.ainvoke
        await run(asked, config(AutoplayCallbackHandler(pipeline)))
        turn = accepted.pop()
        assert (turn.question, turn.answer) == ("Where?", "It is there.")
        assert turn.tools == ["look_up", "look_up"]
        assert accepted == []


def _streamed(agent):
    async def run(*args):
        async for _ in agent.astream(*args):
            pass

    return run


async def test_a_chain_of_prompt_and_model_is_one_turn(pipeline, scripted):
    chain = ChatPromptTemplate.from_template("Be kind. {question}") | scripted("There.")
    await chain.ainvoke({"question": "Where?"}, config(AutoplayCallbackHandler(pipeline)))
    assert said(pipeline) == ["asked: Where? — was answered: There."]


async def test_a_model_alone_is_a_turn_too(pipeline, scripted):
    await scripted("There.").ainvoke("Where?", config(AutoplayCallbackHandler(pipeline)))
    assert said(pipeline) == ["asked: Where? — was answered: There."]


class Rewriting(BaseRetriever):
    """Lets a model rewrite the question, as `MultiQueryRetriever` does."""

    model: Any

    def _get_relevant_documents(self, query, *, run_manager):
        self.model.invoke(f"Rewrite: {query}", {"callbacks": run_manager.get_child()})
        return [Document("It is there.")]

    async def _aget_relevant_documents(self, query, *, run_manager):
        await self.model.ainvoke(f"Rewrite: {query}", {"callbacks": run_manager.get_child()})
        return [Document("It is there.")]


@pytest.mark.parametrize("make", [AutoplayCallbackHandler, SyncAutoplayCallbackHandler])
async def test_a_model_inside_a_retriever_or_a_tool_answers_nobody(pipeline, make, scripted):
    @tool
    async def look_up(thing: str, config: RunnableConfig) -> str:
        """Look something up."""
        return (await scripted("An inner answer.").ainvoke(thing, config)).text

    handler = make(pipeline)
    rewriting = Rewriting(model=scripted("Where is it?"))
    await rewriting.ainvoke("Where?", config(handler))
    await asyncio.to_thread(rewriting.invoke, "Where?", config(handler))
    await look_up.ainvoke({"thing": "x"}, config(handler))
    assert said(pipeline) == []
    prompt = ChatPromptTemplate.from_template("{found} {input}")
    chain = {"found": rewriting, "input": RunnablePassthrough()} | prompt | scripted("There.")
    await chain.ainvoke("Where?", config(handler))
    await asyncio.wait_for(pipeline.live.came.wait(), 10)
    assert said(pipeline) == ["asked: Where? — was answered: There."]


@pytest.mark.parametrize("make", [AutoplayCallbackHandler, SyncAutoplayCallbackHandler])
@pytest.mark.parametrize("how", ["async", "sync", "stream", "async stream", "batch"])
async def test_a_model_with_fallbacks_is_one_turn(pipeline, make, how, scripted):
    accepted = []
    pipeline.accept = lambda turn, accept=pipeline.accept: accepted.append(turn) or accept(turn)
    model = scripted("There.").with_fallbacks([scripted("Elsewhere.")])
    given = ("Where?", config(make(pipeline)))
    if how == "async":
        await model.ainvoke(*given)
    elif how == "async stream":
        async for _ in model.astream(*given):
            pass
    elif how == "batch":
        await model.abatch([given[0]], given[1])
    else:
        call = model.invoke if how == "sync" else lambda *given: list(model.stream(*given))
        await asyncio.to_thread(call, *given)
    await asyncio.wait_for(pipeline.live.came.wait(), 10)
    assert [(turn.question, turn.answer) for turn in accepted] == [("Where?", "There.")]


@pytest.mark.parametrize("make", [AutoplayCallbackHandler, SyncAutoplayCallbackHandler])
async def test_a_deep_copy_of_a_config_records_a_run_once(pipeline, make):
    given = config(make(pipeline))
    copied = copy.deepcopy(given)
    await ANSWER.with_config(copied).ainvoke("Where?", given)
    await asyncio.wait_for(pipeline.live.came.wait(), 10)
    assert said(pipeline) == [TURN]


async def test_documents_in_and_out_are_no_turn_and_no_error(pipeline, caplog):
    chain = RunnableLambda(lambda documents: documents)
    await chain.ainvoke([Document("x")], config(AutoplayCallbackHandler(pipeline)))
    assert said(pipeline) == []
    assert caplog.text == ""


async def test_ones_own_functions_find_question_and_answer(pipeline):
    handler = AutoplayCallbackHandler(
        pipeline, question=lambda i: i["deep"]["q"], answer=lambda o: o["deep"]["a"]
    )
    chain = RunnableLambda(lambda _: {"deep": {"a": "There."}})
    await chain.ainvoke({"deep": {"q": "Where?"}}, config(handler))
    assert said(pipeline) == ["asked: Where? — was answered: There."]


# -- what must not happen --------------------------------------------------------------------------


async def test_without_a_session_nothing_is_recorded_and_that_is_said_once(pipeline, caplog):
    handler = AutoplayCallbackHandler(pipeline)
    for _ in range(3):
        await ANSWER.ainvoke("Where?", {"callbacks": [handler]})
    assert pipeline.ledger.received == 0
    assert caplog.text.count("names no session") == 1


async def test_a_turn_is_not_added_to_another_users_session(pipeline, caplog):
    await pipeline.on_actions(ActionsPayload("acme", "s1", "u1", actions=[SlimAction("Export")]))
    await ANSWER.ainvoke("Where?", config(AutoplayCallbackHandler(pipeline), user_id="u2"))
    assert said(pipeline) == []
    assert "not that of its session" in caplog.text


async def test_a_run_id_given_to_two_people_gives_neither_the_others_answer(pipeline):
    handler = AutoplayCallbackHandler(pipeline)
    run_id = uuid4()
    both = asyncio.Barrier(2)

    async def answer(question: str) -> str:
        await both.wait()
        return f"You asked: {question}"

    def ask(question: str, name: str):
        ids = {**config(handler, session_id=f"s-{name}", user_id=name), "run_id": run_id}
        return RunnableLambda(answer).ainvoke(question, ids)

    await asyncio.gather(ask("Where?", "ann"), ask("Why?", "bob"))
    assert pipeline.live.get(session_id="s-ann") is None
    assert pipeline.live.get(session_id="s-bob") is None


async def test_a_chain_that_fails_fails_as_before_and_is_no_turn(pipeline):
    def fail(_: str) -> str:
        raise LookupError("no answer")

    with pytest.raises(LookupError):
        await RunnableLambda(fail).ainvoke("Where?", config(AutoplayCallbackHandler(pipeline)))
    assert said(pipeline) == []


@pytest.mark.parametrize("make", [AutoplayCallbackHandler, SyncAutoplayCallbackHandler])
async def test_nothing_that_fails_reaches_the_chain(pipeline, make, caplog):
    def fail(_: object) -> str:
        raise ValueError("secret")

    caplog.set_level(logging.DEBUG)
    for options in ({"question": fail}, {"answer": fail}, {"clock": lambda: fail(0)}):
        handler = make(pipeline, **options)
        assert await ANSWER.ainvoke("Where?", config(handler)) == "You asked: Where?"
        answered = await asyncio.to_thread(ANSWER.invoke, "Where?", config(handler))
        assert answered == "You asked: Where?"
    assert "a chat turn was not recorded: ValueError" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("make", [AutoplayCallbackHandler, SyncAutoplayCallbackHandler])
async def test_a_pipeline_that_has_ended_is_no_failure_of_the_chain(embeddings, make, caplog):
    pipeline = IngestPipeline(MemoryStore(), embeddings)
    handler = make(pipeline)
    assert await ANSWER.ainvoke("Where?", config(handler)) == "You asked: Where?"
    assert "PipelineClosedError" in caplog.text


# -- whose run it is -------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [AutoplayCallbackHandler, SyncAutoplayCallbackHandler])
@pytest.mark.parametrize("place", ["context", "configurable", "metadata"])
async def test_an_agents_run_names_its_ids_in_any_one_place(pipeline, make, place, scripted):
    agent = create_agent(scripted("There."), context_schema=dict)
    given = {"callbacks": [make(pipeline)]}
    ids = {"session_id": "s1", "user_id": "u1"}
    if place != "context":
        given[place] = ids
    context = ids if place == "context" else None
    await agent.ainvoke({"messages": [HumanMessage("Where?")]}, given, context=context)
    await asyncio.wait_for(pipeline.live.came.wait(), 10)
    assert said(pipeline) == ["asked: Where? — was answered: There."]
    assert pipeline.live.get(session_id="s1").user_id == "u1"


@pytest.mark.parametrize("make", [AutoplayCallbackHandler, SyncAutoplayCallbackHandler])
async def test_a_run_whose_places_disagree_is_not_recorded(pipeline, make, scripted, caplog):
    agent = create_agent(scripted("There."), context_schema=dict)
    given = {"callbacks": [make(pipeline)], "metadata": {"session_id": "s-secret"}}
    for context in ({"session_id": "s1"}, {"session_id": "s2"}):
        await agent.ainvoke({"messages": [HumanMessage("Where?")]}, given, context=context)
    assert pipeline.ledger.received == 0
    assert caplog.text.count("name different ids") == 1
    assert "secret" not in caplog.text

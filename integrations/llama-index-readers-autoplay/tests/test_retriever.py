from __future__ import annotations

import asyncio
import copy

import pytest
from autoplay_rag import ActionsPayload, Filter, IngestPipeline, SlimAction, SummaryPayload
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.stores import MemoryStore
from llama_index.core import VectorStoreIndex
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine
from llama_index.core.llms import MockLLM
from llama_index.core.memory import Memory
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever, QueryFusionRetriever
from llama_index.core.schema import MetadataMode
from sqlalchemy.ext.asyncio import create_async_engine

from llama_index.readers.autoplay import AutoplayRetriever, LlamaIndexEmbedder


async def visit(pipeline, session: str, user: str, *, at: float = 1_772_525_000.0) -> None:
    """A session of two chunks on two pages, and a summary."""
    for number, (page, what) in enumerate(
        [("start", "opened the start page"), ("billing", "typed SAVE20 into Promo code")]
    ):
        action = SlimAction(
            what, f"User {what}", f"https://app.test/{page}", number, "click", at + number * 60
        )
        await pipeline.on_actions(ActionsPayload("acme", session, user, actions=[action]))
        await pipeline.drain()
    await pipeline.on_summary(SummaryPayload("acme", session, "Looked for a discount."))
    await pipeline.drain()


@pytest.fixture
async def pipeline(embed_model):
    embedder = LlamaIndexEmbedder(embed_model)
    async with IngestPipeline(MemoryStore(), embedder, batch_window=0) as running:
        await visit(running, "s-old", "ann")
        await visit(running, "s-new", "ann", at=1_772_625_000.0)
        await visit(running, "s-bob", "bob")
        yield running


def sessions(found) -> set[str]:
    return {each.metadata["session_id"] for each in found}


async def test_it_is_a_retriever_for_one_user_in_both_ways(pipeline):
    retriever = AutoplayRetriever(pipeline, user_id="ann", collapse=False)
    assert isinstance(retriever, BaseRetriever)
    found = await retriever.aretrieve("promo code SAVE20")
    assert sessions(found) == {"s-old", "s-new"}
    for again in (retriever.retrieve, copy.deepcopy(retriever).retrieve):
        assert [each.node_id for each in again("promo code SAVE20")] == [f.node_id for f in found]
    threaded = await asyncio.to_thread(retriever.retrieve, "promo code SAVE20")
    assert sessions(threaded) == {"s-old", "s-new"}


async def test_a_session_says_when_and_where_and_what_matched(pipeline):
    [found] = await AutoplayRetriever(pipeline, user_id="bob").aretrieve("promo code SAVE20")
    assert found.node_id == "acme/s-bob"
    assert found.score == found.metadata["score"] > 0
    assert found.metadata["date"] == "2026-03-03T08:04:20+00:00"
    assert found.metadata["page"] == "https://app.test/billing"
    assert found.metadata["user_id"] == "bob"
    assert "SAVE20" in found.metadata["matched"]
    assert {"dense_score", "text_score"} <= found.metadata.keys()
    shown = found.node.get_content(MetadataMode.LLM)
    for part in ("date: 2026-03-03T08:04:20+00:00", "billing", "matched: ", "start page"):
        assert part in shown
    assert "score" not in shown
    assert found.node.get_content(MetadataMode.EMBED) == found.text


async def test_chunks_are_parts_of_sessions(pipeline):
    retriever = AutoplayRetriever(pipeline, user_id="bob", search="chunks")
    best, *others = await retriever.aretrieve("promo code SAVE20")
    assert best.node_id == best.metadata["chunk_id"]
    assert "start page" not in best.text
    assert "matched" not in best.node.get_content(MetadataMode.LLM)
    [summary] = [found for found in others if found.metadata["kind"] == "summary"]
    assert "page" not in summary.metadata, "what is not known is left out"


async def test_a_search_may_be_narrowed(pipeline):
    retriever = AutoplayRetriever(pipeline, user_id="ann", collapse=False)
    actions = {"kind": "actions"}
    for options, expected in [
        ({"since": "2026-03-04", **actions}, {"s-new"}),
        ({"until": 1_772_525_900, **actions}, {"s-old"}),
        ({"since": "1h", **actions}, set()),
    ]:
        made = AutoplayRetriever(pipeline, user_id="ann", collapse=False, **options)
        for narrow in (made, retriever.narrowed(**options), made.narrowed(since=0)):
            assert sessions(await narrow.aretrieve("promo code")) == expected
    assert len(await retriever.narrowed(k=1).aretrieve("promo code")) == 1
    assert len(await retriever.aretrieve("promo code")) == 2, "the first one is as it was"
    bobs = AutoplayRetriever(pipeline, user_id=None, filter=Filter(user_id="bob"))
    assert sessions(await bobs.aretrieve("promo code")) == {"s-bob"}


async def test_equal_texts_are_given_once_the_latest(pipeline):
    retriever = AutoplayRetriever(pipeline, user_id=None)
    [found] = await retriever.aretrieve("promo code")
    assert (found.metadata["session_id"], found.metadata["sessions"]) == ("s-new", 3)


def test_what_can_never_work_is_refused_at_once(embed_model):
    pipeline = IngestPipeline(MemoryStore(), LlamaIndexEmbedder(embed_model))
    with pytest.raises(TypeError, match="user_id"):
        AutoplayRetriever(pipeline)
    for wrong in (
        {"user_id": ""},
        {"k": 0},
        {"search": "both"},
        {"mode": "fast"},
        {"since": "long ago"},
        {"user_id": "ann", "filter": Filter(user_id="bob")},
        {"kind": "chat", "filter": Filter(kind="actions")},
    ):
        with pytest.raises(ConfigurationError):
            AutoplayRetriever(pipeline, **{"user_id": None, **wrong})
    only = AutoplayRetriever(pipeline, user_id=None, kind="chat")
    for wrong in ({"k": 0}, {"kind": "actions"}, {"until": "later"}):
        with pytest.raises(ConfigurationError):
            only.narrowed(**wrong)


async def test_a_query_engine_answers_from_it(pipeline):
    retriever = AutoplayRetriever(pipeline, user_id="bob")
    engine = RetrieverQueryEngine.from_args(retriever, llm=MockLLM())
    for answer in (
        await engine.aquery("Which promo code?"),
        await asyncio.to_thread(engine.query, "Which promo code?"),
    ):
        assert "SAVE20" in str(answer)
        assert "2026-03-03" in str(answer)
        assert sessions(answer.source_nodes) == {"s-bob"}


@pytest.fixture
async def memory():
    engine = create_async_engine("sqlite+aiosqlite:///:memory:")
    yield Memory.from_defaults(session_id="chat", async_engine=engine)
    await engine.dispose()


@pytest.mark.parametrize("kind", [ContextChatEngine, CondensePlusContextChatEngine])
async def test_a_chat_engine_answers_from_it(pipeline, memory, kind):
    retriever = AutoplayRetriever(pipeline, user_id="bob")
    engine = kind.from_defaults(retriever=retriever, llm=MockLLM(), memory=memory)
    answer = await engine.achat("Which promo code?")
    assert sessions(answer.source_nodes) == {"s-bob"}


async def test_beside_another_retriever(pipeline, embed_model):
    index = VectorStoreIndex([], embed_model=embed_model)
    fused = QueryFusionRetriever(
        [AutoplayRetriever(pipeline, user_id="bob"), index.as_retriever()],
        llm=MockLLM(),
        num_queries=1,
    )
    assert sessions(await fused.aretrieve("promo code")) == {"s-bob"}

from __future__ import annotations

import asyncio
import copy
from uuid import uuid4

import pytest
from autoplay_rag import ActionsPayload, Filter, IngestPipeline, SlimAction, SummaryPayload
from autoplay_rag.errors import ConfigurationError, PipelineClosedError
from autoplay_rag.stores import MemoryStore
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.prompts import PromptTemplate, format_document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.tools import create_retriever_tool
from langchain_tests.integration_tests import RetrieversIntegrationTests
from langgraph.graph import START, MessagesState, StateGraph
from pydantic import ValidationError

from langchain_autoplay import AutoplayRetriever

WHAT = ("Export", "Billing", "Team")


def clicked(what: str, user: str, product: str = "acme", at: float = 5.0) -> ActionsPayload:
    action = SlimAction(what, f"User clicked {what}", f"https://app.test/{what}", 0, "click", at)
    return ActionsPayload(product, f"s-{user}-{what}", user, actions=[action])


@pytest.fixture
async def pipeline(embeddings):
    async with IngestPipeline(MemoryStore(), embeddings, batch_window=0) as running:
        for user in ("ann", "bob"):
            for what in WHAT:
                await running.on_actions(clicked(what, user, f"of-{user}"))
        await running.drain()
        yield running


class TestStandard(RetrieversIntegrationTests):
    """LangChain's own suite. It covers calls inside a running loop too, because its tests are sync."""

    @pytest.fixture(autouse=True)
    def _running(self, pipeline):
        self.pipeline = pipeline

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return AutoplayRetriever

    @property
    def retriever_constructor_params(self) -> dict:
        return {"pipeline": self.pipeline, "scope": None}

    @property
    def retriever_query_example(self) -> str:
        return "who clicked Export?"


def whose(documents: list[Document]) -> set[str]:
    return {document.metadata["user_id"] for document in documents}


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, copy.copy, lambda retriever: retriever.model_copy(deep=True)]
)
async def test_a_copy_searches_the_same_pipeline(pipeline, copied):
    retriever = AutoplayRetriever(pipeline, scope="user_id", k=2, filter=Filter(kind="actions"))
    other = copied(retriever)
    assert other is not retriever
    assert (other.scope, other.k, other.filter) == ("user_id", 2, Filter(kind="actions"))
    config = {"configurable": {"user_id": "bob"}}
    assert await other.ainvoke("Export", config) == await retriever.ainvoke("Export", config)


@pytest.mark.parametrize(
    ("scope", "value"),
    [("user_id", "ann"), ("session_id", "s-ann-Export"), ("product_id", "of-ann")],
)
@pytest.mark.parametrize("place", ["configurable", "metadata"])
async def test_a_scope_limits_the_search(pipeline, scope, value, place):
    retriever = AutoplayRetriever(pipeline, scope=scope, k=10)
    config = {place: {scope: value}}
    found = await retriever.ainvoke("clicked Export", config)
    assert whose(found) == {"ann"}
    assert retriever.invoke("clicked Export", config) == found
    assert len(found) == (1 if scope == "session_id" else 3)


@pytest.mark.parametrize("config", [None, {}, {"configurable": {}}, {"metadata": {"user_id": ""}}])
async def test_a_missing_id_is_an_error_and_no_search(pipeline, config):
    retriever = AutoplayRetriever(pipeline, scope="user_id")
    with pytest.raises(ConfigurationError, match=r'"configurable": {"user_id": \.\.\.}'):
        await retriever.ainvoke("clicked Export", config)
    with pytest.raises(ConfigurationError, match="scope=None"):
        retriever.invoke("clicked Export", config)


def test_to_search_everyone_has_to_be_written_out(embeddings):
    pipeline = IngestPipeline(MemoryStore(), embeddings)
    with pytest.raises(TypeError, match="scope"):
        AutoplayRetriever(pipeline)
    with pytest.raises(ValidationError, match="scope"):
        AutoplayRetriever(pipeline, scope="everyone")
    with pytest.raises(ValidationError, match="k"):
        AutoplayRetriever(pipeline, scope=None, k=0)
    assert repr(AutoplayRetriever(pipeline, scope=None)) == "AutoplayRetriever(scope=None)"


async def test_without_a_scope_everyone_is_found(pipeline):
    retriever = AutoplayRetriever(pipeline, scope=None, k=10, collapse=False)
    found = await retriever.ainvoke("clicked Export")
    assert whose(found) == {"ann", "bob"}
    assert {document.id for document in found} == {
        f"of-{user}/s-{user}-{what}" for user in ("ann", "bob") for what in WHAT
    }
    assert found[0].metadata["score"] >= found[-1].metadata["score"]


async def test_ids_that_disagree_are_an_error_that_does_not_tell_them(pipeline):
    retriever = AutoplayRetriever(pipeline, scope="user_id")
    config = {"configurable": {"user_id": "ann"}, "metadata": {"user_id": "bob"}}
    with pytest.raises(ConfigurationError, match="name a different user_id") as caught:
        await retriever.ainvoke("clicked Export", config)
    assert not any(name in str(caught.value) for name in ("ann", "bob"))
    with pytest.raises(ConfigurationError, match="name a different user_id"):
        retriever.invoke("clicked Export", config)
    found = await AutoplayRetriever(pipeline, scope="product_id").ainvoke(
        "clicked Export", {**config, "metadata": {"user_id": "bob", "product_id": "of-ann"}}
    )
    assert whose(found) == {"ann"}


@pytest.mark.parametrize("sync", [True, False])
async def test_in_a_graph_it_takes_the_id_of_the_runs_context(pipeline, sync):
    retriever = AutoplayRetriever(pipeline, scope="user_id", k=10)
    found = []

    def node(state: MessagesState) -> dict:
        found.extend(retriever.invoke("clicked Export"))
        return {}

    async def async_node(state: MessagesState) -> dict:
        found.extend(await retriever.ainvoke("clicked Export"))
        return {}

    graph = StateGraph(MessagesState, context_schema=dict)
    graph.add_node("node", node if sync else async_node).add_edge(START, "node")
    ready = graph.compile()
    if sync:
        ready.invoke({"messages": []}, context={"user_id": "ann"})
    else:
        await ready.ainvoke({"messages": []}, context={"user_id": "ann"})
    assert whose(found) == {"ann"}


async def test_a_scope_of_several_names_needs_them_all(pipeline):
    retriever = AutoplayRetriever(pipeline, scope=("user_id", "product_id"), k=10)
    both = {"configurable": {"user_id": "ann", "product_id": "of-ann"}}
    assert whose(await retriever.ainvoke("clicked Export", both)) == {"ann"}
    apart = {"configurable": {"user_id": "ann"}, "metadata": {"product_id": "of-bob"}}
    assert await retriever.ainvoke("clicked Export", apart) == []
    for one in ({"user_id": "ann"}, {"product_id": "of-ann", "user_id": ""}):
        with pytest.raises(ConfigurationError, match="limited to one"):
            await retriever.ainvoke("clicked Export", {"configurable": one})
    with pytest.raises(ValidationError, match="scope"):
        AutoplayRetriever(pipeline, scope=())


async def test_a_filter_holds_in_every_call(pipeline):
    await pipeline.on_summary(SummaryPayload("of-ann", "s-ann-Export", "Exported at last."))
    await pipeline.drain()
    only = AutoplayRetriever(pipeline, scope=None, k=10, filter=Filter(kind="summary"))
    [found] = await only.ainvoke("clicked Export")
    assert found.metadata["kind"] == "summary"
    mine = AutoplayRetriever(pipeline, scope="user_id", k=10, filter=Filter(product_id="of-bob"))
    assert await mine.ainvoke("clicked Export", {"configurable": {"user_id": "ann"}}) == []
    assert mine.invoke("clicked Export", {"configurable": {"user_id": "ann"}}) == []
    with pytest.raises(ConfigurationError, match="both in the scope"):
        AutoplayRetriever(pipeline, scope="user_id", filter=Filter(user_id="ann"))


async def test_what_it_does_not_know_is_refused_not_passed_over(pipeline):
    with pytest.raises(ValidationError, match="kind"):
        AutoplayRetriever(pipeline, scope=None, kind="summary")
    retriever = AutoplayRetriever(pipeline, scope=None)
    with pytest.raises(TypeError, match="user_id"):
        await retriever.ainvoke("clicked Export", user_id="ann")
    for field in ("search", "mode"):
        with pytest.raises(ValidationError, match=field):
            AutoplayRetriever(pipeline, scope=None, **{field: "other"})
    with pytest.raises(ConfigurationError, match="k"):
        await retriever.ainvoke("clicked Export", k=0)


class Wrapping(BaseRetriever):
    """Passes on callbacks only, as LangChain's own wrapping retrievers do."""

    inner: BaseRetriever

    def _get_relevant_documents(self, query, *, run_manager):
        return self.inner.invoke(query, config={"callbacks": run_manager.get_child()})

    async def _aget_relevant_documents(self, query, *, run_manager):
        return await self.inner.ainvoke(query, config={"callbacks": run_manager.get_child()})


async def test_inside_another_retriever_it_takes_the_id_of_the_metadata(pipeline):
    inner = AutoplayRetriever(pipeline, scope="user_id", k=10)
    wrapping = Wrapping(inner=Wrapping(inner=inner))
    config = {"metadata": {"user_id": "ann"}}
    assert whose(await wrapping.ainvoke("clicked Export", config)) == {"ann"}
    assert whose(wrapping.invoke("clicked Export", config)) == {"ann"}
    with pytest.raises(ConfigurationError, match="limited to one user_id"):
        await wrapping.ainvoke("clicked Export")


async def test_ids_that_are_no_text_are_written_as_text(pipeline):
    user = uuid4()
    await pipeline.on_actions(clicked("Export", str(user)))
    await pipeline.drain()
    retriever = AutoplayRetriever(pipeline, scope="user_id")
    found = await retriever.ainvoke("Export", {"configurable": {"user_id": user}})
    assert whose(found) == {str(user)}


async def test_in_a_chain_the_id_is_passed_on(pipeline):
    retriever = AutoplayRetriever(pipeline, scope="user_id", k=1)
    chain = {"found": retriever, "question": RunnablePassthrough()} | RunnableLambda(
        lambda given: f"{given['question']} {given['found'][0].metadata['user_id']}"
    )
    config = {"configurable": {"user_id": "bob"}}
    assert await chain.ainvoke("Export?", config) == "Export? bob"
    assert await asyncio.to_thread(chain.invoke, "Export?", config) == "Export? bob"
    with pytest.raises(ConfigurationError, match="limited to one user_id"):
        await chain.ainvoke("Export?")


async def test_calls_at_once_do_not_mix_their_ids(pipeline):
    retriever = AutoplayRetriever(pipeline, scope="user_id", k=10)
    configs = [{"configurable": {"user_id": user}} for user in ("ann", "bob") * 10]
    found = await retriever.abatch(["clicked Export"] * 20, configs)
    assert [whose(documents) for documents in found] == [{"ann"}, {"bob"}] * 10


async def test_inside_a_running_loop_it_does_not_deadlock(pipeline):
    assert AutoplayRetriever(pipeline, scope=None).invoke("clicked Export")


async def test_as_a_tool_it_takes_the_id_of_the_run(pipeline):
    retriever = AutoplayRetriever(pipeline, scope="user_id", k=1)
    tool = create_retriever_tool(retriever, "activity", "What the user did.")
    text = await tool.ainvoke({"query": "clicked Export"}, {"configurable": {"user_id": "ann"}})
    assert "Export" in text
    with pytest.raises(ConfigurationError, match="limited to one user_id"):
        await tool.ainvoke({"query": "clicked Export"})


async def test_failures_are_seen_by_tracers_and_raised(pipeline):
    errors = []

    class Tracer(BaseCallbackHandler):
        def on_retriever_error(self, error, **kwargs):
            errors.append(error)

    retriever = AutoplayRetriever(pipeline, scope="user_id")
    with pytest.raises(ConfigurationError):
        await retriever.ainvoke("clicked Export", {"callbacks": [Tracer()]})
    assert [type(error) for error in errors] == [ConfigurationError]
    await pipeline.aclose()
    with pytest.raises(PipelineClosedError):
        await retriever.ainvoke("clicked Export", {"configurable": {"user_id": "ann"}})


# -- what a document is ----------------------------------------------------------------------------


async def visit(pipeline, session: str, user: str, *, at: float = 1_772_525_000.0) -> None:
    """A session of two chunks on three pages."""
    for number, (page, what) in enumerate(
        [("start", "opened the start page"), ("billing", "typed SAVE20 into Promo code")]
    ):
        action = SlimAction(
            what, f"User {what}", f"https://app.test/{page}", number, "click", at + number * 60
        )
        await pipeline.on_actions(ActionsPayload("acme", session, user, actions=[action]))
        await pipeline.drain()
    await pipeline.on_summary(SummaryPayload("acme", session, f"{user} looked for a discount."))
    await pipeline.drain()


async def test_a_session_says_when_and_where_and_what_matched(pipeline):
    await visit(pipeline, "s-promo", "eve")
    config = {"configurable": {"user_id": "eve"}}
    retriever = AutoplayRetriever(pipeline, scope="user_id")
    [found] = await retriever.ainvoke("promo code SAVE20", config)
    assert retriever.invoke("promo code SAVE20", config) == [found]
    metadata = found.metadata
    assert found.id == "acme/s-promo"
    assert (metadata["session_id"], metadata["user_id"]) == ("s-promo", "eve")
    assert metadata["date"] == "2026-03-03T08:04:20+00:00"
    assert metadata["page"] == "https://app.test/billing"
    assert "SAVE20" in metadata["matched"]
    assert metadata["score"] > 0
    assert metadata["text_score"] > 0
    assert isinstance(metadata["dense_score"], float)
    first, second, *rest = found.page_content.split("\n")
    assert first == "2026-03-03T08:04:20+00:00 https://app.test/billing"
    assert second.startswith("Matched: ")
    assert "SAVE20" in second
    assert any("start page" in line for line in rest), "the whole session follows"


async def test_chunks_are_parts_of_sessions(pipeline):
    await visit(pipeline, "s-promo", "eve")
    config = {"configurable": {"user_id": "eve"}}
    retriever = AutoplayRetriever(pipeline, scope="user_id", search="chunks")
    best, *others = await retriever.ainvoke("promo code SAVE20", config)
    assert best.id == best.metadata["chunk_id"]
    assert best.page_content.startswith("2026-03-03T08:04:20+00:00 https://app.test/billing\n")
    assert "start page" not in best.page_content
    assert {best.metadata["kind"], *(d.metadata["kind"] for d in others)} == {"actions", "summary"}
    [summary] = [document for document in others if document.metadata["kind"] == "summary"]
    assert summary.metadata["page"] is None
    assert retriever.invoke("promo code SAVE20", config) == [best, *others]


@pytest.mark.parametrize("search", ["sessions", "chunks"])
async def test_a_call_may_narrow_the_search(pipeline, search):
    await visit(pipeline, "s-old", "eve", at=1_772_525_000.0)
    await visit(pipeline, "s-new", "eve", at=1_772_625_000.0)
    retriever = AutoplayRetriever(pipeline, scope="user_id", search=search, collapse=False)
    config = {"configurable": {"user_id": "eve"}}

    async def sessions(**limits) -> set[str]:
        found = await retriever.ainvoke("promo code", config, **limits)
        assert [each.id for each in retriever.invoke("promo code", config, **limits)] == [
            each.id for each in found
        ]
        return {document.metadata["session_id"] for document in found}

    assert await sessions() == {"s-old", "s-new"}
    assert await sessions(since="2026-03-04", kind="actions") == {"s-new"}
    assert await sessions(until=1_772_525_900, kind="actions") == {"s-old"}
    assert await sessions(since="1h", kind="actions") == set()
    assert len(await retriever.ainvoke("promo code", config, k=1)) == 1
    by_kind = await retriever.ainvoke("promo code", config, kind="summary")
    assert {document.metadata["kind"] for document in by_kind} == {"summary"}
    with pytest.raises(ConfigurationError, match="since"):
        await retriever.ainvoke("promo code", config, since="long ago")
    only = AutoplayRetriever(
        pipeline, scope=None, search=search, filter=Filter(kind="actions", since=1_772_600_000)
    )
    for limits in ({"since": 0}, {"kind": "actions"}):  # the retriever's own filter still holds
        assert {d.metadata["session_id"] for d in only.invoke("promo code", **limits)} == {"s-new"}
    with pytest.raises(ConfigurationError, match="kind"):
        await only.ainvoke("promo code", kind="summary")


@pytest.mark.parametrize("search", ["sessions", "chunks"])
async def test_equal_texts_are_given_once_the_latest_with_how_many_there_are(pipeline, search):
    for number in range(8):
        payload = clicked("Pricing", f"u{number}", at=1_000.0 + number)
        await pipeline.on_actions(payload)
    await pipeline.drain()
    retriever = AutoplayRetriever(pipeline, scope=None, search=search, k=3)
    found = await retriever.ainvoke("clicked Pricing")
    assert len({document.page_content for document in found}) == 3
    assert (found[0].metadata["session_id"], found[0].metadata["sessions"]) == ("s-u7-Pricing", 8)
    everything = AutoplayRetriever(pipeline, scope=None, search=search, k=3, collapse=False)
    assert {d.metadata["page"] for d in everything.invoke("clicked Pricing")} == {
        "https://app.test/Pricing"
    }


@pytest.mark.parametrize("search", ["sessions", "chunks"])
async def test_each_mode_says_which_side_found_it(pipeline, search):
    found = {
        mode: (
            await AutoplayRetriever(pipeline, scope=None, search=search, mode=mode).ainvoke(
                "Export"
            )
        )[0].metadata
        for mode in ("dense", "text", "hybrid")
    }
    assert found["dense"]["text_score"] is None
    assert found["text"]["dense_score"] is None
    assert None not in (found["hybrid"]["dense_score"], found["hybrid"]["text_score"])


async def test_what_was_just_received_is_found_at_once(embeddings):
    async with IngestPipeline(MemoryStore(), embeddings, batch_window=60) as pipeline:
        await pipeline.on_actions(clicked("Freshly-4711", "zoe"))
        retriever = AutoplayRetriever(pipeline, scope="user_id")
        [found] = await retriever.ainvoke("Freshly-4711", {"configurable": {"user_id": "zoe"}})
        assert found.metadata["session_id"] == "s-zoe-Freshly-4711"
        assert found.metadata["dense_score"] is None


@pytest.mark.parametrize("search", ["sessions", "chunks"])
async def test_ones_own_function_may_order_what_was_found(pipeline, search):
    async def backwards(question, hits):
        return list(reversed(hits))

    options = {"scope": None, "search": search, "k": 10, "collapse": False}
    retriever = AutoplayRetriever(pipeline, rerank=backwards, **options)
    plain = AutoplayRetriever(pipeline, **options)
    found = [document.id for document in await retriever.ainvoke("clicked Export")]
    assert found == [document.id for document in plain.invoke("clicked Export")][::-1]
    assert [document.id for document in copy.deepcopy(retriever).invoke("clicked Export")] == found


async def test_a_prompt_may_name_what_every_document_has(pipeline):
    await pipeline.on_summary(SummaryPayload("acme", "s-nobody", "Somebody looked around."))
    await pipeline.drain()
    prompt = PromptTemplate.from_template("{date} {page} {user_id} {session_id} {page_content}")
    found = await AutoplayRetriever(pipeline, scope=None, k=10).ainvoke("Somebody looked around")
    assert all(format_document(document, prompt) for document in found)
    assert found[0].metadata["user_id"] is None

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
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.tools import create_retriever_tool
from langchain_tests.integration_tests import RetrieversIntegrationTests
from pydantic import ValidationError

from langchain_autoplay import AutoplayRetriever


def clicked(what: str, user: str, product: str = "acme") -> ActionsPayload:
    action = SlimAction(what, f"User clicked {what}", f"https://app.test/{what}", 0, "click", 5.0)
    return ActionsPayload(product, f"s-{user}-{what}", user, actions=[action])


@pytest.fixture
async def pipeline(embeddings):
    async with IngestPipeline(MemoryStore(), embeddings, batch_window=0) as running:
        for user in ("ann", "bob"):
            for what in ("Export", "Billing", "Team"):
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
    found = await AutoplayRetriever(pipeline, scope=None, k=10).ainvoke("clicked Export")
    assert whose(found) == {"ann", "bob"}
    assert found[0].id == found[0].metadata["chunk_id"]
    assert found[0].metadata["score"] >= found[-1].metadata["score"]


async def test_the_id_of_the_call_wins_over_metadata(pipeline):
    retriever = AutoplayRetriever(pipeline, scope="user_id")
    config = {"configurable": {"user_id": "ann"}, "metadata": {"user_id": "bob"}}
    assert whose(await retriever.ainvoke("clicked Export", config)) == {"ann"}


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
    with pytest.raises(TypeError, match="kind"):
        await retriever.ainvoke("clicked Export", kind="summary")
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

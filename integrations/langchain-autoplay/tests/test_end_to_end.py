"""From a connector's stream to an agent's answer, over real stores and real HTTP."""

from __future__ import annotations

import asyncio
import uuid

import chromadb
import pytest
from autoplay_rag import AsyncConnectorClient, IngestPipeline
from autoplay_rag.connector.recording import read_recording
from autoplay_rag.devserver import samples
from langchain.agents import create_agent
from langchain_chroma import Chroma
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.tools import create_retriever_tool
from langchain_core.vectorstores import InMemoryVectorStore

from langchain_autoplay import (
    AutoplayCallbackHandler,
    AutoplayLoader,
    AutoplayRetriever,
    LangChainStore,
    SessionContextMiddleware,
)

TOKEN = "uk_live_for_this_test"


@pytest.fixture(params=["memory", "chroma"])
def vectorstore(request, embeddings, tmp_path):
    if request.param == "memory":
        return InMemoryVectorStore(embeddings)
    client = chromadb.PersistentClient(str(tmp_path / "chroma"))
    return Chroma(f"c-{uuid.uuid4()}", embedding_function=embeddings, client=client)


@pytest.fixture
async def pipeline(local_connector, vectorstore):
    connector = local_connector(samples(), token=TOKEN)
    async with IngestPipeline(LangChainStore(vectorstore), batch_window=0) as running:
        client = AsyncConnectorClient(connector.url, TOKEN)
        count = sum(1 for _ in read_recording(samples()))
        ingesting = asyncio.create_task(running.ingest(client, max_seconds=30))
        while running.ledger.received < count and not ingesting.done():
            await asyncio.wait({ingesting}, timeout=0.01)
        client.stop()
        ledger = await ingesting
        assert ledger.received == ledger.stored == count
        yield running


@pytest.fixture
def user(pipeline) -> str:
    """A user who is active right now."""
    return next(session.user_id for session in pipeline.live.sessions() if session.user_id)


async def test_a_chain_answers_from_one_persons_sessions(pipeline, scripted, user):
    retriever = AutoplayRetriever(pipeline, scope="user_id", k=3)
    prompt = ChatPromptTemplate.from_template("{activity}\n\nQuestion: {question}")
    model = scripted("They opened a page.")

    def texts(documents) -> str:
        assert {document.metadata["user_id"] for document in documents} == {user}
        return "\n".join(document.page_content for document in documents)

    chain = (
        {"activity": retriever | texts, "question": RunnablePassthrough()}
        | prompt
        | model
        | StrOutputParser()
    )
    config = {"configurable": {"user_id": user}}
    assert await chain.ainvoke("What was opened?", config) == "They opened a page."
    [asked] = model.seen[0]
    assert asked.text.endswith("Question: What was opened?")
    assert len(asked.text) > 60


async def test_an_agent_knows_who_asks_searches_and_is_remembered(pipeline, scripted, user):
    session = pipeline.live.get(user_id=user)
    search = create_retriever_tool(
        AutoplayRetriever(pipeline, scope="user_id"), "activity", "What the user did."
    )
    call = AIMessage("", tool_calls=[{"name": "activity", "args": {"query": "page"}, "id": "1"}])
    model = scripted(call, "You were on the reports page.")
    agent = create_agent(
        model, tools=[search], middleware=[SessionContextMiddleware(pipeline.live)]
    )
    ids = {"user_id": user, "session_id": session.session_id}
    state = await agent.ainvoke(
        {"messages": [HumanMessage("Where was I?")]},
        {
            "configurable": {"user_id": user},
            "metadata": ids,
            "callbacks": [AutoplayCallbackHandler(pipeline)],
        },
        context=ids,
    )
    assert state["messages"][-1].text == "You were on the reports page."
    activity = session.last(seconds=600, events=1).events[0].text
    assert all(activity[:20] in messages[0].text for messages in model.seen)
    assert state["messages"][2].text, "the tool found something"

    await pipeline.drain()
    [turn] = await pipeline.search("Where was I?", 1, kind="chat", user_id=user)
    assert "You were on the reports page." in turn.text
    assert turn.session_id == session.session_id


async def test_loaded_documents_go_straight_into_the_store(local_connector, vectorstore):
    loader = AutoplayLoader(local_connector(samples()).url, group_by="session", idle_seconds=2)
    for _ in range(2):
        documents = await loader.aload()
        await vectorstore.aadd_documents(documents, ids=[document.id for document in documents])
    [found] = await vectorstore.asimilarity_search(documents[0].page_content, k=1)
    assert found.metadata["chunk_id"] == documents[0].id
    stored = LangChainStore(vectorstore)
    assert await stored.count() == len({document.id for document in documents})

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from autoplay_rag import ActionsPayload, AsyncConnectorClient, Filter, SlimAction
from autoplay_rag.devserver import samples
from autoplay_rag.errors import (
    AuthenticationError,
    ConfigurationError,
    MissingCapabilityError,
    PipelineClosedError,
    PipelineError,
)
from autoplay_rag.stores import StoreIdentity
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import TransformComponent
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters, SimpleVectorStore

from llama_index.readers.autoplay import AutoplayReader, stream_into
from llama_index.readers.autoplay.nodes import node_id

Target = IngestionPipeline | VectorStoreIndex


@pytest.fixture(params=["index", "index-in-memory", "pipeline", "pipeline-in-memory"])
def target(request: pytest.FixtureRequest, embed_model) -> Target:
    in_memory = request.param.endswith("in-memory")
    if request.param == "index-in-memory":
        return VectorStoreIndex([], embed_model=embed_model, transformations=[_splitter()])
    store = SimpleVectorStore() if in_memory else request.getfixturevalue("chroma")
    if request.param == "index":
        return VectorStoreIndex.from_vector_store(
            store, embed_model=embed_model, transformations=[_splitter()]
        )
    return IngestionPipeline(transformations=[_splitter(), embed_model], vector_store=store)


@pytest.fixture
def index(chroma, embed_model) -> VectorStoreIndex:
    return VectorStoreIndex.from_vector_store(chroma, embed_model=embed_model)


def _splitter() -> SentenceSplitter:
    return SentenceSplitter(chunk_size=64, chunk_overlap=0)


def stored(target: Target) -> dict[str, Any]:
    """Everything in a target's stores, by node id."""
    if isinstance(target, VectorStoreIndex):
        vector_store, docs = target.vector_store, target.docstore.docs
        indexed = dict(target.index_struct.nodes_dict)
    else:
        vector_store, docs, indexed = target.vector_store, {}, {}
    if isinstance(vector_store, SimpleVectorStore):
        data = vector_store.data
        return {
            key: (vector, data.metadata_dict[key], docs[key].text if docs else "", indexed.get(key))
            for key, vector in data.embedding_dict.items()
        }
    found = vector_store.client.get(include=["documents", "metadatas", "embeddings"])
    columns = zip(
        found["ids"], found["documents"], found["metadatas"], found["embeddings"], strict=True
    )
    return {key: (text, metadata, tuple(vector)) for key, text, metadata, vector in columns}


def texts(target: Target) -> list[str]:
    return sorted(text for text, *_ in stored(target).values())


async def ingest(target: Target, path, **options):
    async with stream_into(target, AutoplayReader.from_recording(path), **options) as live:
        await live.wait()
        return live.ledger


def visits(make_payload, count: int) -> list[Any]:
    return [
        make_payload(
            *(f"Opened page {n} item {item} of the product" for item in range(n % 4 + 1)),
            session_id=f"s{n % 97}",
            user_id=f"u{n % 31}",
        )
        if n % 10
        else make_payload(summary=f"Looked at item {n} for long.", session_id=f"s{n % 97}")
        for n in range(count)
    ]


@pytest.mark.parametrize("count", [200, pytest.param(2_000, marks=pytest.mark.slow)])
async def test_a_recording_ingested_twice_leaves_exactly_the_same_nodes(
    target: Target, record, make_payload, count
):
    path = record(visits(make_payload, count))
    ledger = await ingest(target, path)
    assert (ledger.received, ledger.stored) == (count, count)
    first = stored(target)
    assert len(first) > count / 4
    again = await ingest(target, path)
    assert again.stored == count
    assert stored(target) == first


async def test_with_a_journal_what_was_ingested_is_not_embedded_again(
    target: Target, record, make_payload, embed_model, tmp_path
):
    path = record(visits(make_payload, 100))
    await ingest(target, path, journal=tmp_path / "journal.db")
    first, embedded = stored(target), len(embed_model.texts)
    ledger = await ingest(target, path, journal=tmp_path / "journal.db")
    assert (ledger.received, ledger.stored, ledger.duplicate) == (200, 100, 100)
    assert stored(target) == first
    assert len(embed_model.texts) == embedded


async def test_a_changed_document_loses_all_its_old_nodes(target: Target, record, make_payload):
    path = record([make_payload("clicked"), make_payload("clicked", session_id="s2")])
    await ingest(
        target, path, render=lambda _: " ".join(f"Sentence number {n}." for n in range(40))
    )
    many = len(stored(target))
    await ingest(target, path, render=lambda _: "One sentence.")
    few = stored(target)
    assert (many > 4, len(few)) == (True, 2)
    if isinstance(target, VectorStoreIndex) and not target.vector_store.stores_text:
        assert set(target.index_struct.nodes_dict) == set(target.docstore.docs) == set(few)


async def test_an_index_that_lost_its_docstore_still_replaces(
    chroma, embed_model, record, make_payload
):
    path = record([make_payload("clicked", session_id=f"s{n}") for n in range(3)])
    for text in ("old", "new"):
        storage = StorageContext.from_defaults(vector_store=chroma)
        index = VectorStoreIndex(
            [], storage_context=storage, embed_model=embed_model, store_nodes_override=True
        )
        await ingest(index, path, render=lambda _, text=text: text)
        assert sorted(node.get_content() for node in index.docstore.docs.values()) == [text] * 3
    assert chroma.client.get()["documents"] == ["new"] * 3


async def test_while_embedding_fails_the_old_vectors_stay(
    index: VectorStoreIndex, record, make_payload, embed_model
):
    path = record([make_payload("clicked", session_id=f"s{n}") for n in range(5)])
    await ingest(index, path, render=lambda _: "old")
    embed_model.fail(2)
    reader = AutoplayReader.from_recording(path)
    async with stream_into(index, reader, render=lambda _: "new") as live:
        await embed_model.has_failed()
        assert live.health.state == "degraded"
        assert any("the service is down" in reason for reason in live.health.reasons)
        assert texts(index) == ["old"] * 5
        await live.drain()
        assert live.health.state == "ok"
        assert texts(index) == ["new"] * 5
        assert (live.ledger.stored, live.ledger.dead, live.ledger.pending) == (5, 0, 0)


async def test_what_is_refused_becomes_a_dead_letter_and_stops_nobody(
    target: Target, record, make_payload, embed_model
):
    embed_model.refuse("poison")
    words = ["fine", "poison", "good", "fair"]
    path = record([make_payload(f"clicked {word}", session_id="s1") for word in words])
    async with stream_into(target, AutoplayReader.from_recording(path)) as live:
        await live.wait()
        assert (live.ledger.stored, live.ledger.dead) == (3, 1)
        [letter] = await live.dead_letters.list()
        assert "ValueError" in letter.error
        embed_model.refuse("")
        assert await live.dead_letters.retry() == 1
        await live.drain()
        assert (live.ledger.stored, live.ledger.dead) == (4, 0)
    assert stored(target)


async def test_a_single_payload_that_is_refused_does_not_wait_for_ever(
    index: VectorStoreIndex, record, make_payload, embed_model
):
    embed_model.refuse("poison")
    path = record([make_payload("clicked poison")])
    async with stream_into(index, AutoplayReader.from_recording(path)) as live:
        await live.wait()
        assert (live.ledger.dead, live.ledger.pending) == (1, 0)


async def test_a_restart_in_the_middle_loses_and_doubles_nothing(
    target: Target, record, make_payload, embed_model, tmp_path
):
    path = record(visits(make_payload, 300))
    journal = tmp_path / "journal.db"
    embed_model.fail(50)
    live = await stream_into(
        target, AutoplayReader.from_recording(path), journal=journal, drain_timeout=0.1
    )
    await embed_model.has_failed()
    assert live.ledger.received == 300
    await live.aclose()
    assert stored(target) == {}
    embed_model.fail(0)
    ledger = await ingest(target, record([]), journal=journal)
    assert (ledger.stored, ledger.pending, ledger.duplicate) == (300, 0, 0)
    taken_up = stored(target)
    await ingest(target, path)
    assert stored(target) == taken_up


async def test_a_live_client(index: VectorStoreIndex, local_connector, make_payload, tmp_path):
    connector = local_connector([make_payload("Exported the report", user_id="u1")])
    client = AsyncConnectorClient(connector.url)
    stored_all = {1: asyncio.Event(), 2: asyncio.Event()}
    live = stream_into(
        index,
        client,
        journal=tmp_path / "journal.db",
        batch_window=0,
        on_progress=lambda ledger: stored_all[ledger.stored].set(),
    )
    assert not live.running
    async with live, asyncio.timeout(20):
        assert live.running
        await stored_all[1].wait()
        later = make_payload("Changed the password", session_id="s2", user_id="u2")
        await asyncio.to_thread(connector.send, later)
        await stored_all[2].wait()
        await live.drain()
        [hit] = await live.search("who changed the password", 1)
        assert hit.session_id == "s2"
        for limit in ({"filter": Filter(user_id="u1")}, {"user_id": "u1"}):
            [hit] = await live.search("password", 5, **limit)
            assert hit.session_id == "s1"
    assert client.state == "stopped"
    assert (live.running, live.health.state) == (False, "ok")


async def test_a_live_reader_with_its_limits_kinds_and_redaction(
    index: VectorStoreIndex, local_connector, make_payload
):
    def redact(payload: ActionsPayload) -> ActionsPayload:
        return ActionsPayload(
            payload.product_id,
            payload.session_id,
            actions=[SlimAction(description="Clicked something")],
        )

    connector = local_connector([make_payload("Clicked 4242"), make_payload(summary="Paid.")])
    reader = AutoplayReader(connector.url, idle_seconds=2, include=("actions",), redact=redact)
    live = await stream_into(index, reader)
    await live.wait()
    await live.drain()
    assert (live.ledger.received, live.ledger.stored, live.ledger.filtered) == (2, 1, 1)
    await live.aclose()
    assert texts(index) == ["Clicked something"]


async def test_what_ends_the_source_is_raised_where_it_is_awaited(
    index: VectorStoreIndex, local_connector, caplog
):
    connector = local_connector([], token="right")
    for source in (
        AutoplayReader(connector.url, "wrong"),
        AsyncConnectorClient(connector.url, "wrong"),
    ):
        async with stream_into(index, source) as live:
            assert live.running
            assert live.health.state == "ok"
            with pytest.raises(AuthenticationError):
                await live.wait()
            assert live.ledger.received == 0
            assert not live.running
            assert live.health.state == "failed"
            first = live.health.reasons[0]
            assert first.startswith("the stream has ended: AuthenticationError: 401")
            said = " ".join(live.health.reasons)
            assert "wrong" not in said.replace("missing, wrong, or", "")
    assert "uk_bad" not in caplog.text


async def test_a_pipelines_docstore_knows_what_is_stored_and_only_that(
    chroma, record, make_payload, embed_model
):
    docstore = SimpleDocumentStore()
    pipeline = IngestionPipeline(
        transformations=[_splitter(), embed_model],
        vector_store=chroma,
        docstore=docstore,
        docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
    )
    path = record([make_payload("clicked", session_id=f"s{n}") for n in range(3)])
    embed_model.fail(2)
    async with stream_into(pipeline, AutoplayReader.from_recording(path)) as live:
        await embed_model.has_failed()
        assert docstore.get_all_document_hashes() == {}
        await live.drain()
        assert live.ledger.stored == 3
    assert len(docstore.get_all_document_hashes()) == 3
    embedded = len(embed_model.texts)
    await ingest(pipeline, path)
    assert len(embed_model.texts) == embedded, "an unchanged document was embedded again"
    await ingest(pipeline, record([make_payload("clicked", session_id="s9")]))
    assert chroma.client.count() == 4, "documents of other sessions were deleted"


async def test_chunks_can_be_deleted_again(target: Target, record, make_payload):
    path = record([make_payload("clicked", session_id=f"s{n}") for n in range(3)])
    async with stream_into(target, AutoplayReader.from_recording(path)) as live:
        await live.wait()
        store = live.pipeline._store
        assert await store.count() == 3
        first = next(iter(stored(target)))
        await store.delete([doc for doc in _document_ids(target) if node_id(doc) == first])
        await store.delete(["unknown"])
        assert await store.count() == 2
        assert first not in stored(target)


async def test_metadata_of_all_nodes_changes_without_embedding_anew(
    target: Target, record, make_payload, embed_model
):
    words = " ".join(f"word{n}" for n in range(30))
    long = make_payload(*(f"Opened page {n} {words}" for n in range(4)), session_id="s1")
    path = record([long, make_payload("clicked", session_id="s2", user_id="u2")])
    async with stream_into(target, AutoplayReader.from_recording(path)) as live:
        await live.wait()
        before, embedded = stored(target), len(embed_model.texts)
        [other] = await live.search("clicked", 5, user_id="u2")
        assert await live.search("opened page", 5, user_id="u1") == []
        [changed] = _document_ids(target) - {other.id}
        store = live.pipeline._store
        await store.update_metadata(
            {
                changed: {"user_id": "u1", "session_id": None},
                other.id: {},
                "unknown": {"user_id": "u1"},
            }
        )
        # The store is asked itself: the pipeline's searches know whose a session is from the journal.
        [found] = await store.search("opened page", 5, Filter(user_id="u1"))
        assert found.id == changed
        assert "session_id" not in found.metadata
        assert len(embed_model.texts) == embedded, "something was embedded again"
    after = stored(target)
    assert after.keys() == before.keys()
    assert len(after) > 2
    assert {node for node in after if after[node] != before[node]} == {
        node for node in after if _owner(after[node]) == changed
    }
    for node in after:
        assert [part for part in after[node] if not isinstance(part, dict)] == [
            part for part in before[node] if not isinstance(part, dict)
        ]
    # Nothing of the removed keys remains, and the new key is not shown to a model.
    docs = target.docstore.docs.values() if isinstance(target, VectorStoreIndex) else []
    for node in [node for node in docs if node.ref_doc_id == changed]:
        assert "s1" not in node.to_json()
        assert "user_id" in node.excluded_llm_metadata_keys


async def test_a_pipelines_docstore_learns_changed_metadata(
    chroma, record, make_payload, embed_model
):
    docstore = SimpleDocumentStore()
    pipeline = IngestionPipeline(
        transformations=[_splitter(), embed_model], vector_store=chroma, docstore=docstore
    )
    path = record([make_payload("clicked", session_id="s1")])
    async with stream_into(pipeline, AutoplayReader.from_recording(path)) as live:
        await live.wait()
        [document_id] = docstore.get_all_document_hashes().values()
        await live.pipeline._store.update_metadata({document_id: {"user_id": "u1"}})
    [document] = docstore.docs.values()
    assert document.metadata["user_id"] == "u1"
    assert docstore.get_document_hash(document_id) == document.hash


async def test_a_document_that_the_vector_store_lost_is_stored_again(
    record, make_payload, embed_model
):
    docstore = SimpleDocumentStore()
    path = record([make_payload("clicked", session_id=f"s{n}") for n in range(3)])
    for _ in range(2):
        pipeline = IngestionPipeline(
            transformations=[_splitter(), embed_model],
            vector_store=SimpleVectorStore(),
            docstore=docstore,
        )
        await ingest(pipeline, path)
        assert len(stored(pipeline)) == 3


async def test_a_target_declares_what_its_vector_store_can_do(target: Target, embed_model):
    reader = AutoplayReader.from_recording(samples())
    store = stream_into(target, reader).pipeline._store
    in_memory = isinstance(target.vector_store, SimpleVectorStore)
    assert store.persistent is False
    assert store.capabilities == (
        {"delete", "update_metadata"} | (set() if in_memory else {"identity"})
    )
    for call in (lambda: store.get(["a"]), store.drop):
        with pytest.raises(MissingCapabilityError, match="TargetStore"):
            await call()
    with pytest.raises(MissingCapabilityError, match="'scan'"):
        store.scan()
    if in_memory:
        with pytest.raises(MissingCapabilityError, match="'identity'"):
            await store.identity()
    else:
        assert await store.identity() is None
        await store.save_identity(StoreIdentity("s1", "j1", 3))
        assert await store.identity() == StoreIdentity("s1", "j1", 3)


def _owner(parts: Any) -> str:
    return next(part["ref_doc_id"] for part in parts if isinstance(part, dict))


def _document_ids(target: Target) -> set[str]:
    return {
        part["ref_doc_id"]
        for parts in stored(target).values()
        for part in parts
        if isinstance(part, dict)
    }


async def test_other_transformations_than_splitters(chroma, record, make_payload, embed_model):
    threads = set()

    class Shout(TransformComponent):
        def __call__(self, nodes, **kwargs):
            threads.add(threading.get_ident())
            for node in nodes:
                node.set_content(node.get_content().upper())
            return nodes

    pipeline = IngestionPipeline(transformations=[Shout(), embed_model], vector_store=chroma)
    path = record([make_payload("clicked")])
    for _ in range(2):
        await ingest(pipeline, path)
    [text] = texts(pipeline)
    assert text.endswith("CLICKED")
    assert threading.get_ident() not in threads, "it held up the loop"


async def test_a_query_engine_is_limited_to_one_user(index, record, make_payload):
    path = record(
        [
            make_payload("Exported the report as PDF", session_id="s1", user_id="u1"),
            make_payload("Exported the report as CSV", session_id="s2", user_id="u2"),
        ]
    )
    await ingest(index, path)
    for key, value in (("user_id", "u2"), ("session_id", "s2")):
        engine = index.as_query_engine(
            llm=MockLLM(), filters=MetadataFilters(filters=[MetadataFilter(key=key, value=value)])
        )
        response = await engine.aquery("How did I export the report?")
        [node] = response.source_nodes
        assert "CSV" in node.text
        assert "CSV" in str(response)
        assert "PDF" not in str(response)
        assert node.node_id not in str(response)
        assert "user_id" not in str(response)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda index: (IngestionPipeline(transformations=[]), AutoplayReader.from_recording("x")),
         "no vector_store"),
        (lambda index: (IngestionPipeline(transformations=[_splitter()],
                                          vector_store=SimpleVectorStore()),
                        AutoplayReader.from_recording("x")),
         "give no embeddings: put an embedding model"),
        (lambda index: (object(), AutoplayReader.from_recording("x")),
         "an IngestionPipeline or a VectorStoreIndex, not object"),
        (lambda index: (index, object()), "not from object"),
        (lambda index: (index, AutoplayReader.from_recording("x", max_documents=1)),
         "max_documents .* limit it by max_seconds"),
        (lambda index: (index, AutoplayReader.from_recording("x", group_by="session")),
         "group_by .* batch_window"),
        (lambda index: (index, AutoplayReader.from_recording("x", session_idle_seconds=5)),
         "session_idle_seconds .* batch_window"),
        (lambda index: (index, AutoplayReader.from_recording("x", max_chars=40)),
         "max_chars .* a splitter"),
    ],
)  # fmt: skip
def test_what_can_never_work_is_refused_at_once(
    index: VectorStoreIndex, make: Callable[[Any], Any], message: str
):
    with pytest.raises(ConfigurationError, match=message):
        stream_into(*make(index))


async def test_started_twice_or_used_when_closed(index: VectorStoreIndex, record, make_payload):
    reader = AutoplayReader.from_recording(record([make_payload("clicked")]))
    live = stream_into(index, reader)
    await live.aclose()
    await live.start()
    with pytest.raises(PipelineError):
        await live.start()
    await live.aclose()
    await live.aclose()
    with pytest.raises(PipelineClosedError):
        await live.drain()


async def test_whoever_waits_learns_of_the_end(index: VectorStoreIndex, local_connector):
    for source in (AutoplayReader, AsyncConnectorClient):
        live = await stream_into(index, source(local_connector([]).url))
        waiting = asyncio.create_task(live.wait())
        given_up = asyncio.create_task(live.wait())
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait([given_up])
        assert not waiting.done()
        await live.aclose()
        async with asyncio.timeout(30):
            await waiting


async def test_a_client_that_is_running_already_leaves_nothing_open(
    index: VectorStoreIndex, local_connector, tmp_path
):
    client = AsyncConnectorClient(local_connector([]).url)
    async with client:
        client.run_in_background()
        live = stream_into(index, client, journal=tmp_path / "journal.db")
        with pytest.raises(RuntimeError, match="running already"):
            await live.start()
        with pytest.raises(PipelineClosedError):
            await live.drain()

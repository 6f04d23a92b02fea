"""`LangChainStore` over PGVector and PGVectorStore, on a real PostgreSQL with pgvector.

The tests need a database server, so pytest must not collect this file by its name.
`sh tools/test_postgres.sh` starts a server and runs the file.
"""

from __future__ import annotations

import uuid

import pgserver
import pytest
from autoplay_rag import Chunk, Filter, IngestPipeline
from autoplay_rag.connector.recording import read_recording
from autoplay_rag.devserver import samples
from autoplay_rag.errors import MissingCapabilityError
from langchain_core.documents import Document
from langchain_postgres import Column, PGEngine, PGVector, PGVectorStore
from langchain_postgres.vectorstores import DistanceStrategy

from langchain_autoplay import LangChainStore

SIZE = 64


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    server = pgserver.get_server(tmp_path_factory.mktemp("postgres"))
    yield server
    server.cleanup()


@pytest.fixture
def url(server):
    """Yield a separate database: PGVector's ids are unique over all collections."""
    name = f"test_{uuid.uuid4().hex}"
    server.psql(f"create database {name};")
    return server.get_uri(database=name).replace("postgresql://", "postgresql+psycopg://")


@pytest.fixture(params=["sync", "async", "sync euclidean", "sync inner product", "PGVectorStore"])
async def store(request, url, embeddings):
    if request.param == "PGVectorStore":
        engine = PGEngine.from_connection_string(url=url)
        await engine.ainit_vectorstore_table(
            "chunks", SIZE, id_column=Column("langchain_id", "TEXT", nullable=False)
        )
        yield LangChainStore(await PGVectorStore.create(engine, embeddings, "chunks"))
        await engine.close()
        return
    mode, _, distance = request.param.partition(" ")
    strategies = {
        "": DistanceStrategy.COSINE,
        "euclidean": DistanceStrategy.EUCLIDEAN,
        "inner product": DistanceStrategy.MAX_INNER_PRODUCT,
    }
    vectorstore = PGVector(
        embeddings,
        connection=url,
        async_mode=mode == "async",
        distance_strategy=strategies[distance],
    )
    yield LangChainStore(vectorstore)
    if mode == "async":
        await vectorstore._async_engine.dispose()
    else:
        vectorstore._engine.dispose()


def ids(hits):
    return [hit.id for hit in hits]


async def test_it_finds_filters_replaces_and_deletes(store):
    await store.add(
        [
            Chunk("a", "one two", {"user_id": "u1", "started_at": 1.0, "ended_at": 2.0}),
            Chunk("b", "one two three", {"user_id": "u2", "started_at": 5.0, "ended_at": 6.0}),
            Chunk("b-1", "seven", {"user_id": "u2", "started_at": 9.0, "ended_at": 9.0}),
        ]
    )
    hits = await store.search("one two three", 3, Filter())
    assert ids(hits) == ["b", "a", "b-1"]
    assert [hit.score for hit in hits] == pytest.approx([1, (2 / 3) ** 0.5, 0], abs=1e-3)
    assert hits[0].metadata == {"user_id": "u2", "started_at": 5.0, "ended_at": 6.0}
    assert ids(await store.search("one", 3, Filter(user_id="u1"))) == ["a"]
    assert ids(await store.search("one", 3, Filter(user_id="u2", since=6.0, until=8.0))) == ["b"]

    await store.add([Chunk("a", "nul \0 here", {"kind": "summary"})])
    assert ids(await store.search("one", 3, Filter(user_id="u1"))) == []
    [hit] = await store.search("nul here", 1, Filter(kind="summary"))
    assert (hit.text, hit.metadata) == ("nul \ufffd here", {"kind": "summary"})

    await store.delete(["a", "unknown"])
    assert ids(await store.search("one two three", 3, Filter())) == ["b", "b-1"]


async def test_a_pipeline_fills_it(store):
    payloads = list(read_recording(samples()))
    async with IngestPipeline(store, batch_window=0) as pipeline:
        for payload in payloads:
            await pipeline.accept(payload)
        await pipeline.drain()
        assert pipeline.ledger.stored == len(payloads)
        assert pipeline.ledger.retries == 0
        hits = await pipeline.search("opened the page", 3, user_id="u_002")
        assert len(hits) == 3
        assert {hit.metadata["user_id"] for hit in hits} == {"u_002"}
        if not getattr(store._kind.store, "async_mode", False):
            assert pipeline.search_sync("opened the page", 3, user_id="u_002") == hits


async def test_it_declares_what_it_can_do(store):
    assert store.persistent
    known = {"delete", "get", "scan", "update_metadata", "drop"}
    of_table = type(store._kind.store).__name__ == "PGVectorStore"
    assert store.capabilities == ({"delete", "get"} if of_table else known)


async def test_it_gets_scans_updates_and_drops_what_it_declares(store):
    chunks = [Chunk(f"c{n}", f"word{n}", {"kind": "chat", "started_at": n / 2}) for n in range(25)]
    await store.add(chunks)
    assert await store.get(["c3", "unknown", "c3"]) == [chunks[3]]
    assert await store.get(["unknown"]) == []
    if "scan" not in store.capabilities:
        with pytest.raises(MissingCapabilityError, match="PGVectorStore has no 'scan'"):
            store.scan()
        return
    assert await store.count() == 25
    pages = [page async for page in store.scan(10)]
    assert [len(page) for page in pages] == [10, 10, 5]
    assert sorted((c for page in pages for c in page), key=chunks.index) == chunks

    await store.update_metadata(
        {"c3": {"user_id": "u1", "kind": None}, "unknown": {"user_id": "u1"}}
    )
    [hit] = await store.search("word3", 5, Filter(user_id="u1"))
    assert (hit.id, hit.text, hit.metadata) == ("c3", "word3", {"user_id": "u1", "started_at": 1.5})
    assert hit.score == pytest.approx(1, abs=1e-3)
    assert await store.get(["c4"]) == [chunks[4]]

    await store._kind.add([Document("a manual", id="manual")])
    assert len([chunk async for page in store.scan() for chunk in page]) == 25
    await store.drop()
    assert await store.count() == 1
    await store.add(chunks[:2])
    assert await store.count() == 3

from __future__ import annotations

import asyncio

import pytest
from autoplay_rag import ActionsPayload, Chunk, Filter, IngestPipeline, SlimAction
from autoplay_rag.connector.recording import read_recording
from autoplay_rag.devserver import samples
from autoplay_rag.errors import (
    ConfigurationError,
    StoreError,
    StoreRejectedError,
    UnsupportedFilterError,
)
from autoplay_rag.stores import TextStore
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore

from langchain_autoplay import LangChainStore

ALL = Filter()


STORES = ["memory", "chroma", "chroma-cosine", "chroma-ip", "faiss", "faiss-ip"]


@pytest.fixture(params=STORES)
def store(request, new_vectorstore) -> LangChainStore:
    return LangChainStore(new_vectorstore(request.param))


def chunk(id: str, text: str, **metadata: str | float) -> Chunk:
    return Chunk(id, text, {"kind": "actions", **metadata})


def ids(hits) -> list[str]:
    return [hit.id for hit in hits]


# -- what every kind of store does ---------------------------------------------------------------


async def test_it_is_a_text_store(store):
    assert isinstance(store, TextStore)
    await store.start("")
    assert await store.search("anything", 3, ALL) == []
    assert await store.search("anything", 3, Filter(user_id="u1")) == []
    assert await store.count() == 0
    await store.aclose()


async def test_the_nearest_come_first_with_cosine_similarities(store):
    await store.add([chunk("b", "one two"), chunk("c", "five six"), chunk("a", "one two three")])
    hits = await store.search("one two three", 3, ALL)
    assert ids(hits) == ["a", "b", "c"]
    assert [hit.score for hit in hits] == pytest.approx([1, (2 / 3) ** 0.5, 0], abs=1e-4)


async def test_a_hit_has_all_that_was_stored(store):
    given = {"session_id": "s1", "kind": "summary", "started_at": 1.5, "action_count": 3}
    await store.add([Chunk("a", "Opened billing — ☃", given)])
    [hit] = await store.search("billing", 1, ALL)
    assert (hit.id, hit.text) == ("a", "Opened billing — ☃")
    assert hit.metadata == given


async def test_the_same_id_is_replaced_whole(store):
    await store.add(
        [chunk("a", "old words", user_id="u1", urls="x"), chunk("b", "other", user_id="u1")]
    )
    await store.add([chunk("a", "new words")])
    assert await store.count() == 2
    assert ids(await store.search("words", 5, Filter(user_id="u1"))) == ["b"]
    [hit] = await store.search("new words", 1, ALL)
    assert (hit.text, hit.metadata) == ("new words", {"kind": "actions"})


async def test_deleted_chunks_are_gone_and_unknown_ids_are_no_error(store):
    await store.add([chunk("a", "one"), chunk("b", "two"), chunk("c", "three")])
    await store.delete(["a", "unknown"])
    await store.delete(["a"])
    await store.delete([])
    assert sorted(ids(await store.search("one two three", 5, ALL))) == ["b", "c"]
    await store.add([chunk("a", "one")])
    assert ids(await store.search("one", 1, ALL)) == ["a"]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Filter(session_id="s1"), ["a", "b"]),
        (Filter(user_id="u2"), ["b", "c"]),
        (Filter(product_id="acme"), ["a", "b"]),
        (Filter(conversation_id="c9"), ["c"]),
        (Filter(kind="summary"), ["c"]),
        (Filter(session_id="s1", user_id="u2"), ["b"]),
        (Filter(since=15.0), ["b", "c"]),
        (Filter(until=15.0), ["a", "b"]),
        (Filter(since=15.0, until=25.0, user_id="u2"), ["b"]),
        (Filter(user_id="nobody"), []),
    ],
)
async def test_filters_hold(store, wanted, expected):
    await store.add(
        [
            Chunk(
                name,
                f"did things {name}",
                {
                    "session_id": session,
                    "user_id": user,
                    "kind": kind,
                    "started_at": started,
                    "ended_at": ended,
                    **more,
                },
            )
            for name, session, user, kind, started, ended, more in (
                ("a", "s1", "u1", "actions", 5.0, 10.0, {"product_id": "acme"}),
                ("b", "s1", "u2", "actions", 15.0, 20.0, {"product_id": "acme"}),
                ("c", "s2", "u2", "summary", 30.0, 40.0, {"conversation_id": "c9"}),
            )
        ]
    )
    assert sorted(ids(await store.search("did things", 5, wanted))) == expected


async def test_a_filter_finds_the_few_behind_the_many(store):
    many = [chunk(f"m{n}", f"export the report {n}", user_id="u1") for n in range(200)]
    await store.add([*many, chunk("mine", "something else", user_id="u2")])
    assert ids(await store.search("export the report", 3, Filter(user_id="u2"))) == ["mine"]


@pytest.mark.parametrize("kind", ["chroma", "chroma-cosine", "chroma-ip"])
async def test_chroma_finds_what_no_path_of_its_index_leads_to(new_vectorstore, kind, monkeypatch):
    vectorstore = new_vectorstore(kind)
    store = LangChainStore(vectorstore)
    await store.add([chunk("a", "one two", user_id="u2"), chunk("b", "five six", user_id="u2")])
    await store.add([chunk("c", "one two three", user_id="u1")])
    # Which documents the index misses is random; here it misses all.
    nothing = {name: [[]] for name in ("ids", "documents", "metadatas", "distances")}
    monkeypatch.setattr(type(vectorstore._collection), "query", lambda *_, **__: nothing)
    hits = await store.search("one two three", 3, Filter(user_id="u2"))
    assert ids(hits) == ["a", "b"]
    assert [hit.score for hit in hits] == pytest.approx([(2 / 3) ** 0.5, 0], abs=1e-4)
    assert ids(await store.search("one two three", 1, Filter(user_id="u2"))) == ["a"]
    assert await store.search("one two three", 1, Filter(user_id="u3")) == []


async def test_searches_and_writes_at_once_do_no_harm(store):
    async def write(number: int) -> None:
        for turn in range(5):
            await store.add([chunk(f"c{number}-{n}", f"word{n} turn{turn}") for n in range(10)])
            await store.delete([f"c{number}-{n}" for n in range(5)])

    async def search() -> None:
        for _ in range(30):
            await store.search("word3", 5, ALL)

    await asyncio.gather(write(1), write(2), search())
    assert await store.count() == 10


async def test_a_pipeline_fills_it_and_filters_it(store):
    payloads = list(read_recording(samples()))
    async with IngestPipeline(store, batch_window=0) as pipeline:
        for payload in payloads:
            await pipeline.accept(payload)
        await pipeline.accept(payloads[0])
        await pipeline.drain()
        assert pipeline.ledger.stored == len(payloads)
        assert pipeline.ledger.duplicate == 1
        assert await store.count() == pipeline.ledger.chunks
        user = next(payload.user_id for payload in payloads if payload.user_id)
        hits = await pipeline.search("opened the page", 5, user_id=user)
        assert len(hits) == 5
        assert {hit.metadata["user_id"] for hit in hits} == {user}
        assert pipeline.search_sync("opened the page", 5, user_id=user) == hits


# -- failures ------------------------------------------------------------------------------------


class Fragile(InMemoryVectorStore):
    """Fails on request."""

    failures: list[Exception]

    async def aadd_documents(self, documents, **kwargs):
        if self.failures:
            raise self.failures.pop()
        return await super().aadd_documents(documents, **kwargs)


async def test_an_outage_of_the_store_loses_nothing(embeddings):
    vectorstore = Fragile(embeddings)
    vectorstore.failures = [ConnectionError("down"), TimeoutError("slow")]
    click = SlimAction("Export", "User clicked Export")
    async with IngestPipeline(LangChainStore(vectorstore), batch_window=0) as pipeline:
        await pipeline.on_actions(ActionsPayload("acme", "s1", actions=[click]))
        await pipeline.drain()
        assert (pipeline.ledger.stored, pipeline.ledger.retries) == (1, 2)
    assert len(vectorstore.store) == 1


async def test_a_restart_goes_on_from_the_journal(embeddings, tmp_path):
    vectorstore = Fragile(embeddings)
    vectorstore.failures = [ConnectionError("down")] * 100
    click = SlimAction("Export", "User clicked Export")
    journal = tmp_path / "journal.db"
    store = LangChainStore(vectorstore)
    async with IngestPipeline(store, batch_window=0, journal=journal, drain_timeout=0) as first:
        await first.on_actions(ActionsPayload("acme", "s1", actions=[click]))
    assert not vectorstore.store
    vectorstore.failures.clear()
    async with IngestPipeline(store, batch_window=0, journal=journal) as second:
        await second.drain()
        assert second.ledger.stored == 1
    assert len(vectorstore.store) == 1


async def test_what_a_database_refuses_is_known_as_refused(embeddings):
    class DataError(Exception):
        pass

    vectorstore = Fragile(embeddings)
    vectorstore.failures = [DataError("value too long: secret text")]
    with pytest.raises(StoreRejectedError, match="DataError") as raised:
        await LangChainStore(vectorstore).add([chunk("a", "one")])
    assert "secret" not in str(raised.value)


async def test_text_that_a_database_cannot_hold_is_made_to_fit(embeddings):
    vectorstore = InMemoryVectorStore(embeddings)
    await LangChainStore(vectorstore).add([chunk("a", "one\0two")])
    assert vectorstore.store["a"]["text"] == "one\ufffdtwo"


# -- unknown stores ------------------------------------------------------------------------------


class Unknown(VectorStore):
    """Has its own form of filters."""

    def __init__(self, embeddings):
        self.inner = InMemoryVectorStore(embeddings)
        self.filters: list[object] = []

    def add_documents(self, documents, **kwargs):
        return self.inner.add_documents(documents, **kwargs)

    def similarity_search_with_score(self, query, k=4, filter=None, **kwargs):
        self.filters.append(filter)
        wanted = dict(filter or [])
        return self.inner.similarity_search_with_score(
            query, k=k, filter=lambda d: wanted.items() <= d.metadata.items()
        )

    def similarity_search(self, query, k=4, **kwargs):
        raise NotImplementedError

    @classmethod
    def from_texts(cls, *args, **kwargs):
        raise NotImplementedError


async def test_what_cannot_be_filtered_is_not_searched(embeddings):
    vectorstore = Unknown(embeddings)
    store = LangChainStore(vectorstore)
    await store.add([chunk("a", "one", user_id="u1")])
    with pytest.raises(UnsupportedFilterError, match=r"Unknown .* filter_builder"):
        await store.search("one", 1, Filter(user_id="u1"))
    assert vectorstore.filters == []
    assert ids(await store.search("one", 1, ALL)) == ["a"]
    with pytest.raises(StoreError, match="Unknown cannot count its documents"):
        await store.count()


async def test_a_filter_builder_says_how_to_filter(embeddings):
    vectorstore = Unknown(embeddings)
    store = LangChainStore(
        vectorstore, lambda f: [(key, value) for key, _, value in f.conditions()]
    )
    await store.add([chunk("a", "one", user_id="u1"), chunk("b", "one", user_id="u2")])
    assert ids(await store.search("one", 5, Filter(user_id="u2"))) == ["b"]
    assert vectorstore.filters == [[("user_id", "u2")]]


async def test_a_filter_builder_takes_the_place_of_a_known_one(embeddings):
    asked: list[Filter] = []
    store = LangChainStore(InMemoryVectorStore(embeddings), lambda f: asked.append(f) or None)
    await store.search("one", 1, Filter(user_id="u1"))
    assert asked == [Filter(user_id="u1")]


def test_a_subclass_counts_as_what_it_inherits_from(embeddings):
    class Mine(InMemoryVectorStore):
        pass

    assert repr(LangChainStore(Mine(embeddings))) == "<LangChainStore of Mine>"
    assert type(LangChainStore(Mine(embeddings))._kind).__name__ == "InMemory"


def test_what_is_no_vector_store_is_refused(embeddings):
    with pytest.raises(ConfigurationError, match="not a WordEmbeddings"):
        LangChainStore(embeddings)
    with pytest.raises(ConfigurationError, match="max_batch"):
        LangChainStore(InMemoryVectorStore(embeddings), max_batch=0)


async def test_a_faiss_without_embeddings_is_refused(embeddings, new_vectorstore):
    store = LangChainStore(new_vectorstore("faiss", embeddings.embed_query))
    with pytest.raises(StoreError, match="plain function"):
        await store.add([chunk("a", "one")])
    with pytest.raises(StoreError, match="plain function"):
        await store.search("one", 1, ALL)


# -- Embeddings as the pipeline's embedder -------------------------------------------------------


async def test_langchain_embeddings_are_an_embedder(embeddings):
    from autoplay_rag.stores import MemoryStore

    async with IngestPipeline(MemoryStore(), embeddings, batch_window=0) as pipeline:
        click = SlimAction("Export", "User clicked Export")
        await pipeline.on_actions(ActionsPayload("acme", "s1", actions=[click]))
        await pipeline.drain()
        [hit] = await pipeline.search("clicked export")
    assert hit.session_id == "s1"


async def test_documents_of_others_in_the_same_store_are_found_without_a_filter(embeddings):
    vectorstore = InMemoryVectorStore(embeddings)
    await vectorstore.aadd_documents([Document("a manual about exports", id="manual")])
    store = LangChainStore(vectorstore)
    [hit] = await store.search("exports", 1, ALL)
    assert (hit.id, hit.metadata) == ("manual", {})

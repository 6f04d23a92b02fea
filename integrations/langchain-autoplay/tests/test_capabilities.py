"""What `LangChainStore` can do beyond storing and searching, over real vector stores."""

from __future__ import annotations

import uuid

import chromadb
import pytest
from autoplay_rag import ActionsPayload, Chunk, Filter, IngestPipeline, SlimAction
from autoplay_rag.errors import MissingCapabilityError
from autoplay_rag.stores import StoreIdentity
from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore

from langchain_autoplay import LangChainStore

ALL = Filter()
FULL = {"delete", "get", "scan", "update_metadata", "drop"}
CAPABILITIES = {
    "memory": FULL,
    "chroma": FULL | {"identity"},
    "faiss": FULL,
    "faiss-hnsw": FULL - {"delete", "drop"},
}


@pytest.fixture(params=["memory", "chroma", "faiss"])
def vectorstore(request, new_vectorstore) -> VectorStore:
    return new_vectorstore(request.param)


@pytest.fixture
def store(vectorstore) -> LangChainStore:
    return LangChainStore(vectorstore)


def by_id(chunks: list[Chunk]) -> dict[str, Chunk]:
    return {chunk.id: chunk for chunk in chunks}


async def scanned(store: LangChainStore, page: int = 500) -> list[Chunk]:
    return [chunk async for chunks in store.scan(page) for chunk in chunks]


@pytest.mark.parametrize("name", CAPABILITIES)
def test_each_kind_declares_what_it_can_do(name, new_vectorstore):
    assert LangChainStore(new_vectorstore(name)).capabilities == CAPABILITIES[name]


async def test_what_was_stored_is_got_by_id(store):
    chunks = [
        Chunk("a", "Opened billing — ☃", {"user_id": "u1", "started_at": 1.5, "action_count": 3}),
        Chunk("b", "Saved", {"kind": "summary"}),
        Chunk("c", "Left", {}),
    ]
    await store.add(chunks)
    assert by_id(await store.get(["a", "c", "unknown", "a"])) == by_id([chunks[0], chunks[2]])
    assert await store.get(["unknown"]) == []
    assert await store.get([]) == []


async def test_a_scan_gives_every_chunk_once_in_pages_of_the_size_asked_for(store):
    chunks = [Chunk(f"c{n}", f"word{n}", {"user_id": f"u{n}", "kind": "chat"}) for n in range(25)]
    await store.add(chunks)
    pages = [page async for page in store.scan(10)]
    assert [len(page) for page in pages] == [10, 10, 5]
    assert by_id([chunk for page in pages for chunk in page]) == by_id(chunks)


async def test_any_number_of_ids_may_be_asked_for(store):
    chunks = [Chunk(f"c{n}", f"word{n}", {}) for n in range(1_200)]
    await store.add(chunks)
    asked = [f"c{n}" for n in range(60_000)]
    assert by_id(await store.get(asked)) == by_id(chunks)
    assert by_id(await scanned(store, 60_000)) == by_id(chunks)


async def test_a_scan_of_an_empty_store_gives_no_page(store):
    assert [page async for page in store.scan()] == []


async def test_a_scan_skips_nothing_when_chunks_are_deleted_meanwhile(store):
    await store.add([Chunk(f"c{n}", f"word{n}", {}) for n in range(30)])
    seen: set[str] = set()
    async for page in store.scan(10):
        if not seen:
            await store.delete([chunk.id for chunk in page])
        seen |= {chunk.id for chunk in page}
    assert seen == {f"c{n}" for n in range(30)}


async def test_metadata_changes_without_embedding_anew(store, embeddings, monkeypatch):
    await store.add(
        [
            Chunk("a", "one two", {"kind": "actions", "email": "a@b.example"}),
            Chunk("b", "one two", {"kind": "actions"}),
        ]
    )
    before = await store.search("one two", 1, ALL)
    with monkeypatch.context() as no_embedding:
        no_embedding.setattr(type(embeddings), "embed_query", None)
        no_embedding.setattr(type(embeddings), "embed_documents", None)
        await store.update_metadata(
            {"a": {"user_id": "u1", "email": None, "urls": None}, "unknown": {"user_id": "u1"}}
        )
        await store.update_metadata({"b": {}})
        await store.update_metadata({})
    assert by_id(await scanned(store)) == by_id(
        [
            Chunk("a", "one two", {"kind": "actions", "user_id": "u1"}),
            Chunk("b", "one two", {"kind": "actions"}),
        ]
    )
    [match] = await store.search("one two", 5, Filter(user_id="u1"))
    assert (match.id, match.text, match.score) == ("a", "one two", before[0].score)
    assert await store.count() == 2


async def test_documents_handed_out_do_not_change_with_the_metadata(embeddings):
    vectorstore = InMemoryVectorStore(embeddings)
    store = LangChainStore(vectorstore)
    await store.add([Chunk("a", "one", {})])
    [document] = vectorstore.get_by_ids(["a"])
    await store.update_metadata({"a": {"user_id": "u1"}})
    assert document.metadata == {"chunk_id": "a"}


async def test_documents_of_others_are_neither_scanned_nor_dropped(store, vectorstore):
    await store.add([Chunk("a", "one", {}), Chunk("b", "two", {})])
    await vectorstore.aadd_documents([Document("a manual", id="manual", metadata={"page": 1})])
    assert by_id(await scanned(store)).keys() == {"a", "b"}
    await store.drop()
    assert await scanned(store) == []
    assert await store.count() == 1
    assert [match.id for match in await store.search("manual", 5, ALL)] == ["manual"]


async def test_a_dropped_store_takes_chunks_again(store):
    await store.drop()
    await store.add([Chunk(f"c{n}", "one", {}) for n in range(600)])
    await store.drop()
    assert await store.count() == 0
    await store.add([Chunk("a", "two", {})])
    assert [match.id for match in await store.search("two", 5, ALL)] == ["a"]


# -- the identity --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "metadata", [None, {"mine": 1}, {"mine": 1, "hnsw:space": "cosine"}], ids=str
)
async def test_chroma_keeps_an_identity_beside_what_its_owner_noted(embeddings, metadata, tmp_path):
    def opened() -> tuple[LangChainStore, Chroma]:
        found = Chroma(
            "visits", embeddings, persist_directory=str(tmp_path), collection_metadata=metadata
        )
        return LangChainStore(found), found

    store, vectorstore = opened()
    await store.add([Chunk("a", "one", {})])
    assert await store.identity() is None
    await store.save_identity(StoreIdentity("s1", "j1"))
    await store.save_identity(StoreIdentity("s1", "j1", 7))
    assert await store.identity() == StoreIdentity("s1", "j1", 7)

    again, vectorstore = opened()
    assert await again.identity() == StoreIdentity("s1", "j1", 7)
    kept = vectorstore._client.get_collection("visits")
    assert (metadata or {}).items() <= kept.metadata.items()
    assert kept.configuration_json["hnsw"]["space"] == (
        "cosine" if metadata and "hnsw:space" in metadata else "l2"
    )
    assert len(await again.search("one", 5, ALL)) == await again.count() == 1

    await again.drop()
    assert await again.identity() is None
    assert await store.identity() is None
    kept = vectorstore._client.get_collection("visits")
    assert (kept.metadata or {}) == (metadata or {})


async def test_stores_without_metadata_of_their_own_have_no_identity(new_vectorstore):
    for name in ("memory", "faiss"):
        store = LangChainStore(new_vectorstore(name))
        with pytest.raises(MissingCapabilityError, match="identity") as raised:
            await store.identity()
        assert raised.value.capability == "identity"
        with pytest.raises(MissingCapabilityError, match="identity"):
            await store.save_identity(StoreIdentity("s1", "j1"))


# -- durability -----------------------------------------------------------------------------------


def test_what_lives_in_memory_is_not_persistent(new_vectorstore):
    for name in ("memory", "faiss", "chroma"):
        assert LangChainStore(new_vectorstore(name)).persistent is False


def test_what_lives_on_disk_or_is_unknown_is_persistent(embeddings, tmp_path):
    assert LangChainStore(Chroma("visits", embeddings, persist_directory=str(tmp_path))).persistent
    client = chromadb.PersistentClient(str(tmp_path / "other"))
    assert LangChainStore(Chroma("visits", embeddings, client=client)).persistent
    assert LangChainStore(UpsertsOnly(embeddings)).persistent


def test_a_user_may_say_that_a_store_is_persistent(embeddings):
    store = LangChainStore(InMemoryVectorStore(embeddings))
    store.persistent = True
    assert LangChainStore(InMemoryVectorStore(embeddings)).persistent is False
    assert store.persistent is True


# -- unknown stores ------------------------------------------------------------------------------


class UpsertsOnly(VectorStore):
    """Implements only what LangChain's base class requires."""

    def __init__(self, embeddings):
        self.inner = InMemoryVectorStore(embeddings)

    def add_documents(self, documents, **kwargs):
        return self.inner.add_documents(documents, **kwargs)

    def similarity_search_with_score(self, query, k=4, **kwargs):
        return self.inner.similarity_search_with_score(query, k=k, **kwargs)

    def similarity_search(self, query, k=4, **kwargs):
        return self.inner.similarity_search(query, k=k, **kwargs)

    @classmethod
    def from_texts(cls, *args, **kwargs):
        raise NotImplementedError


class Deletes(UpsertsOnly):
    def delete(self, ids=None, **kwargs):
        self.inner.delete(ids)


class DeletesAndGets(UpsertsOnly):
    """Has only the async methods."""

    async def adelete(self, ids=None, **kwargs):
        self.inner.delete(ids)

    async def aget_by_ids(self, ids, /):
        return self.inner.get_by_ids(ids)


@pytest.mark.parametrize(
    ("cls", "expected"),
    [(UpsertsOnly, set()), (Deletes, {"delete"}), (DeletesAndGets, {"delete", "get"})],
)
async def test_an_unknown_store_can_do_what_it_overrides(cls, expected, embeddings):
    store = LangChainStore(cls(embeddings))
    await store.add([Chunk("a", "one", {"kind": "chat"}), Chunk("b", "two", {})])
    assert store.capabilities == expected
    calls = {
        "delete": lambda: store.delete(["b"]),
        "get": lambda: store.get(["a", "b"]),
        "update_metadata": lambda: store.update_metadata({"a": {"user_id": "u1"}}),
        "drop": store.drop,
        "identity": store.identity,
    }
    for capability in calls.keys() - expected:
        with pytest.raises(MissingCapabilityError, match=rf"over {cls.__name__} .*'{capability}'"):
            await calls[capability]()
    with pytest.raises(MissingCapabilityError, match="'scan'"):
        store.scan()
    if "delete" in expected:
        await store.delete(["b"])
        assert [match.id for match in await store.search("one two", 5, ALL)] == ["a"]
    if "get" in expected:
        assert await store.get(["a", "b"]) == [Chunk("a", "one", {"kind": "chat"})]


async def test_a_faiss_that_cannot_remove_vectors_declares_no_delete(new_vectorstore):
    store = LangChainStore(new_vectorstore("faiss-hnsw"))
    await store.add([Chunk("a", "one", {}), Chunk("b", "two", {})])
    with pytest.raises(MissingCapabilityError, match="'delete'"):
        await store.delete(["a"])
    await store.update_metadata({"a": {"user_id": "u1"}})
    assert by_id(await scanned(store)) == by_id(
        [Chunk("a", "one", {"user_id": "u1"}), Chunk("b", "two", {})]
    )


async def test_a_store_that_cannot_delete_takes_a_pipelines_chunks(embeddings):
    vectorstore = UpsertsOnly(embeddings)
    async with IngestPipeline(LangChainStore(vectorstore), batch_window=0) as pipeline:
        for number in range(5):
            click = SlimAction("Export", f"User clicked Export {number}")
            await pipeline.on_actions(ActionsPayload("acme", str(uuid.uuid4()), actions=[click]))
        await pipeline.drain()
        assert (pipeline.ledger.stored, pipeline.ledger.pending) == (5, 0)
    assert len(vectorstore.inner.store) == 5


async def test_a_dropped_chroma_takes_the_vectors_of_another_model(embeddings, tmp_path):
    def opened(model) -> LangChainStore:
        return LangChainStore(Chroma("visits", model, persist_directory=str(tmp_path)))

    store = opened(embeddings)
    await store.add([Chunk("a", "one", {})])
    await store.drop()
    again = opened(DeterministicFakeEmbedding(size=8))
    await again.add([Chunk("a", "one", {})])
    assert await again.count() == 1

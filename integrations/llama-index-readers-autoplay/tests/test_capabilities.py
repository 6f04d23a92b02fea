"""What `LlamaIndexStore` can do beyond storing and searching, over real vector stores."""

from __future__ import annotations

import chromadb
import pytest
from autoplay_rag import Chunk, Filter
from autoplay_rag.errors import MissingCapabilityError, StoreMismatchError
from autoplay_rag.stores import StoreIdentity
from llama_index.core.bridge.pydantic import Field
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import BasePydanticVectorStore
from llama_index.vector_stores.chroma import ChromaVectorStore

from llama_index.readers.autoplay import LlamaIndexStore

EAST, NORTH = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]
ALL = Filter()
FULL = {"delete", "get", "scan", "update_metadata", "drop"}


@pytest.fixture
def store(vector_store: BasePydanticVectorStore) -> LlamaIndexStore:
    return LlamaIndexStore(vector_store)


def by_id(chunks: list[Chunk]) -> dict[str, Chunk]:
    return {chunk.id: chunk for chunk in chunks}


async def scanned(store: LlamaIndexStore, page: int = 500) -> list[Chunk]:
    return [chunk async for chunks in store.scan(page) for chunk in chunks]


async def fill(store: LlamaIndexStore, chunks: list[Chunk]) -> None:
    for start in range(0, len(chunks), store.max_batch):
        batch = chunks[start : start + store.max_batch]
        await store.upsert(batch, [EAST] * len(batch))


def chroma_on_disk(path, **options) -> ChromaVectorStore:
    collection = chromadb.PersistentClient(str(path)).get_or_create_collection("visits", **options)
    return ChromaVectorStore(chroma_collection=collection)


def test_each_kind_declares_what_it_can_do(chroma):
    assert LlamaIndexStore(SimpleVectorStore()).capabilities == FULL
    assert LlamaIndexStore(chroma).capabilities == FULL | {"identity"}


async def test_what_was_stored_is_got_by_id(store: LlamaIndexStore):
    chunks = [
        Chunk("a", "Opened billing — ☃", {"user_id": "u1", "started_at": 1.5, "action_count": 3}),
        Chunk("b", "Saved", {"kind": "summary"}),
        Chunk("c", "Left", {}),
    ]
    await fill(store, chunks)
    assert by_id(await store.get(["a", "c", "unknown", "a"])) == by_id([chunks[0], chunks[2]])
    assert len(await store.get(["a", "a"])) == 1
    assert await store.get(["unknown"]) == []
    assert await store.get([]) == []


async def test_a_scan_gives_every_chunk_once_in_pages_of_the_size_asked_for(store: LlamaIndexStore):
    chunks = [Chunk(f"c{n}", f"text {n}", {"user_id": f"u{n}", "kind": "chat"}) for n in range(25)]
    await fill(store, chunks)
    pages = [page async for page in store.scan(10)]
    assert [len(page) for page in pages] == [10, 10, 5]
    assert by_id([chunk for page in pages for chunk in page]) == by_id(chunks)


async def test_any_number_of_ids_may_be_asked_for(store):
    chunks = [Chunk(f"c{n}", f"word{n}", {}) for n in range(1_200)]
    await fill(store, chunks)
    asked = [f"c{n}" for n in range(60_000)]
    assert by_id(await store.get(asked)) == by_id(chunks)
    assert by_id(await scanned(store, 60_000)) == by_id(chunks)


async def test_a_scan_of_an_empty_store_gives_no_page(store: LlamaIndexStore):
    assert [page async for page in store.scan()] == []


async def test_a_scan_skips_nothing_when_chunks_are_deleted_meanwhile(store: LlamaIndexStore):
    await fill(store, [Chunk(f"c{n}", f"text {n}", {}) for n in range(30)])
    seen: set[str] = set()
    async for page in store.scan(10):
        if not seen:
            await store.delete([chunk.id for chunk in page])
        seen |= {chunk.id for chunk in page}
    assert seen == {f"c{n}" for n in range(30)}


async def test_metadata_changes_and_text_and_vector_stay(store: LlamaIndexStore):
    chunks = [
        Chunk("a", "one", {"kind": "actions", "email": "a@b.example"}),
        Chunk("b", "two", {"kind": "actions"}),
    ]
    await store.upsert(chunks, [EAST, NORTH])
    await store.update_metadata(
        {"a": {"user_id": "u1", "email": None, "urls": None}, "unknown": {"user_id": "u1"}}
    )
    await store.update_metadata({"b": {}})
    await store.update_metadata({})
    assert by_id(await scanned(store)) == by_id(
        [Chunk("a", "one", {"kind": "actions", "user_id": "u1"}), chunks[1]]
    )
    [match] = await store.query(EAST, 5, Filter(user_id="u1"))
    assert (match.id, match.text, match.metadata) == (
        "a",
        "one",
        {"kind": "actions", "user_id": "u1"},
    )
    assert match.score == pytest.approx(1, abs=1e-5)
    assert await store.count() == 2


async def test_nothing_of_removed_metadata_stays_in_chroma(chroma: ChromaVectorStore):
    store = LlamaIndexStore(chroma)
    await fill(store, [Chunk("a", "one", {"email": "a@b.example", "user_id": "u1"})])
    await store.update_metadata({"a": {"email": None}})
    assert "b.example" not in str(chroma.client.get(include=["metadatas", "documents"]))


async def test_nodes_of_others_are_neither_scanned_nor_dropped(
    store: LlamaIndexStore, vector_store: BasePydanticVectorStore
):
    await fill(store, [Chunk("a", "one", {}), Chunk("b", "two", {})])
    other = TextNode(
        text="a manual",
        embedding=NORTH,
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id="manual")},
    )
    vector_store.add([other])
    assert by_id(await scanned(store)).keys() == {"a", "b"}
    await store.drop()
    assert await scanned(store) == []
    assert await store.count() == 1


async def test_a_dropped_store_takes_vectors_of_another_dimension(store: LlamaIndexStore):
    await store.drop()
    await store.start("one")
    await fill(store, [Chunk(f"c{n}", "one", {}) for n in range(600)])
    await store.drop()
    assert await store.count() == 0
    await store.start("two")
    await store.upsert([Chunk("a", "two", {})], [[1.0, 0.0]])
    assert [match.id for match in await store.query([1.0, 0.0], 5, ALL)] == ["a"]


async def test_what_its_owner_set_up_outlives_a_drop(tmp_path):
    vector_store = chroma_on_disk(
        tmp_path, metadata={"mine": 1}, configuration={"hnsw": {"space": "cosine", "ef_search": 55}}
    )
    store = LlamaIndexStore(vector_store)
    await store.start("one")
    await fill(store, [Chunk("a", "one", {})])
    await store.save_identity(StoreIdentity("s1", "j1", 7))
    await store.drop()
    assert await store.identity() is None
    [collection] = chromadb.PersistentClient(str(tmp_path)).list_collections()
    assert collection.id == vector_store.client.id
    assert collection.metadata == {"mine": 1}
    space = collection.configuration_json["hnsw"]
    assert (space["space"], space["ef_search"]) == ("cosine", 55)


async def test_chroma_with_nodes_of_others_loses_its_identity_by_a_drop(chroma: ChromaVectorStore):
    store = LlamaIndexStore(chroma)
    chroma.add([TextNode(text="a manual", embedding=NORTH)])
    await store.save_identity(StoreIdentity("s1", "j1"))
    before = chroma.client.id
    await store.drop()
    assert await store.identity() is None
    assert (chroma.client.id, await store.count()) == (before, 1)


# -- identity and model --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "metadata", [None, {"mine": 1}, {"mine": 1, "hnsw:space": "cosine"}], ids=str
)
async def test_chroma_keeps_an_identity_beside_what_its_owner_noted(metadata, tmp_path):
    store = LlamaIndexStore(chroma_on_disk(tmp_path, metadata=metadata))
    await store.start("one")
    await fill(store, [Chunk("a", "one", {})])
    assert await store.identity() is None
    await store.save_identity(StoreIdentity("s1", "j1"))
    await store.save_identity(StoreIdentity("s1", "j1", 7))
    assert await store.identity() == StoreIdentity("s1", "j1", 7)

    again = chroma_on_disk(tmp_path)
    await LlamaIndexStore(again).start("one")
    assert await LlamaIndexStore(again).identity() == StoreIdentity("s1", "j1", 7)
    assert (metadata or {}).items() <= again.client.metadata.items()
    assert again.client.configuration_json["hnsw"]["space"] == (
        "cosine" if metadata and "hnsw:space" in metadata else "l2"
    )
    assert len(await store.query(EAST, 5, ALL)) == await store.count() == 1


async def test_chroma_refuses_vectors_of_another_model(chroma: ChromaVectorStore):
    store = LlamaIndexStore(chroma)
    await store.start("one")
    await store.start("two")  # allowed: nothing is stored yet
    await fill(store, [Chunk("a", "one", {})])
    await store.start("two")
    with pytest.raises(StoreMismatchError, match=r"'two', but 'one' was asked for"):
        await LlamaIndexStore(chroma).start("one")


async def test_stores_without_metadata_of_their_own_have_no_identity():
    store = LlamaIndexStore(SimpleVectorStore())
    with pytest.raises(MissingCapabilityError, match=r"SimpleVectorStore.* 'identity'") as raised:
        await store.identity()
    assert raised.value.capability == "identity"
    with pytest.raises(MissingCapabilityError, match="'identity'"):
        await store.save_identity(StoreIdentity("s1", "j1"))


# -- durability -----------------------------------------------------------------------------------


def test_what_lives_in_memory_is_not_persistent_unless_its_owner_says_so(store, tmp_path):
    assert store.persistent is False
    store.persistent = True
    assert store.persistent is True
    assert LlamaIndexStore(SimpleVectorStore()).persistent is False
    assert LlamaIndexStore(chroma_on_disk(tmp_path)).persistent is True
    assert LlamaIndexStore(Bare()).persistent is True


# -- unknown stores ------------------------------------------------------------------------------


class Bare(BasePydanticVectorStore):
    """Implements only what LlamaIndex's base class requires."""

    stores_text: bool = True
    kept: dict[str, TextNode] = Field(default_factory=dict)

    @property
    def client(self) -> None:
        return None

    def add(self, nodes, **kwargs):
        self.kept.update({node.node_id: node for node in nodes})
        return [node.node_id for node in nodes]

    def delete(self, ref_doc_id, **kwargs):
        for key in [key for key, node in self.kept.items() if node.ref_doc_id == ref_doc_id]:
            del self.kept[key]

    def query(self, query, **kwargs):
        raise NotImplementedError


class Gets(Bare):
    def get_nodes(self, node_ids=None, filters=None):
        return [node for key, node in self.kept.items() if not node_ids or key in node_ids]


class GetsAsync(Bare):
    async def aget_nodes(self, node_ids=None, filters=None):
        return [node for key, node in self.kept.items() if not node_ids or key in node_ids]


@pytest.mark.parametrize(("cls", "gets"), [(Bare, False), (Gets, True), (GetsAsync, True)])
async def test_an_unknown_store_can_do_what_it_implements(cls, gets):
    store = LlamaIndexStore(cls())
    await fill(store, [Chunk("a", "one", {"kind": "chat"}), Chunk("b", "two", {})])
    assert store.capabilities == ({"delete", "get"} if gets else {"delete"})
    await store.start("one")
    await store.start("two")
    for call in (
        lambda: store.update_metadata({"a": {"user_id": "u1"}}),
        store.drop,
        store.identity,
    ):
        with pytest.raises(MissingCapabilityError, match=rf"LlamaIndexStore\({cls.__name__}\)"):
            await call()
    with pytest.raises(MissingCapabilityError, match="'scan'"):
        store.scan()
    await store.delete(["b"])
    await store.delete([])
    if gets:
        assert await store.get(["a", "b"]) == [Chunk("a", "one", {"kind": "chat"})]
        assert await store.get([]) == []
    else:
        with pytest.raises(MissingCapabilityError, match="'get'"):
            await store.get(["a"])

from __future__ import annotations

import asyncio
import copy
import math
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from autoplay_rag import Chunk, Filter, IngestPipeline
from autoplay_rag.errors import StoreError, StoreRejectedError
from autoplay_rag.stores import Match
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import BasePydanticVectorStore

from llama_index.readers.autoplay import LlamaIndexEmbedder, LlamaIndexStore

EAST, NORTH, WEST = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]
ALL = Filter()


def chunk(id: str, text: str = "", **metadata: str | float) -> Chunk:
    return Chunk(id, text or f"text of {id}", metadata)


def ids(hits: list[Match]) -> list[str]:
    return [hit.id for hit in hits]


@pytest.fixture
def store(vector_store: BasePydanticVectorStore) -> LlamaIndexStore:
    return LlamaIndexStore(vector_store)


async def test_the_nearest_come_first_with_cosine_scores(store: LlamaIndexStore):
    vectors = [[0.0, 3.0, 0.0], [2.0, 0.0, 0.0], [5.0, 5.0, 0.0], [-1.0, 0.0, 0.0]]
    await store.upsert([chunk("north"), chunk("east"), chunk("both"), chunk("west")], vectors)
    hits = await store.query([10.0, 0.0, 0.0], 4, ALL)
    assert ids(hits) == ["east", "both", "north", "west"]
    assert [hit.score for hit in hits] == pytest.approx([1, math.sqrt(0.5), 0, -1], abs=1e-5)


@pytest.mark.parametrize("space", ["cosine", "ip", "l2"])
async def test_scores_are_cosines_however_chroma_compares(space: str):
    import chromadb
    from llama_index.vector_stores.chroma import ChromaVectorStore

    client = chromadb.EphemeralClient()
    collection = client.create_collection(
        f"space-{space}-{id(object())}", configuration={"hnsw": {"space": space}}
    )
    store = LlamaIndexStore(ChromaVectorStore(chroma_collection=collection))
    await store.upsert([chunk("both"), chunk("west")], [[5.0, 5.0, 0.0], WEST])
    hits = await store.query(EAST, 2, ALL)
    assert [hit.score for hit in hits] == pytest.approx([math.sqrt(0.5), -1], abs=1e-5)


async def test_a_deep_copy_is_the_same_store(store: LlamaIndexStore):
    assert copy.deepcopy({"store": store})["store"] is store


async def test_a_hit_has_all_that_was_stored(store: LlamaIndexStore):
    metadata = {"session_id": "s1", "kind": "actions", "started_at": 1.5, "action_count": 3}
    await store.upsert([Chunk("c1", "Opened billing — ☃", metadata)], [EAST])
    [hit] = await store.query(EAST, 1, ALL)
    assert (hit.id, hit.text) == ("c1", "Opened billing — ☃")
    assert hit.metadata == metadata


async def test_the_same_id_is_replaced_whole(store: LlamaIndexStore):
    await store.upsert(
        [chunk("a", "old", user_id="u1", urls="x"), chunk("b", "kept", user_id="u1")],
        [EAST, NORTH],
    )
    await store.upsert([chunk("a", "new", kind="summary"), chunk("c")], [WEST, WEST])
    [hit] = await store.query(WEST, 1, Filter(kind="summary"))
    assert (hit.text, hit.metadata) == ("new", {"kind": "summary"})
    assert ids(await store.query(EAST, 5, Filter(user_id="u1"))) == ["b"]
    assert await store.count() == 3


async def test_the_same_upsert_twice_changes_nothing(store: LlamaIndexStore):
    for _ in range(2):
        await store.upsert([chunk("a", user_id="u1"), chunk("b")], [EAST, NORTH])
    assert await store.count() == 2
    assert ids(await store.query(EAST, 5, ALL)) == ["a", "b"]


async def test_deleted_chunks_are_gone_and_unknown_ids_are_fine(store: LlamaIndexStore):
    await store.upsert([chunk("a"), chunk("b"), chunk("c")], [EAST, NORTH, WEST])
    await store.delete(["a", "unknown"])
    await store.delete(["unknown"])
    await store.delete([])
    assert ids(await store.query(EAST, 5, ALL)) == ["b", "c"]
    assert await store.count() == 2


async def test_an_empty_store_finds_nothing_and_takes_nothing(store: LlamaIndexStore):
    await store.upsert([], [])
    assert await store.count() == 0
    assert await store.query(EAST, 5, Filter(user_id="u1")) == []


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        (Filter(session_id="s1"), {"a", "b"}),
        (Filter(user_id="u1"), {"a"}),
        (Filter(product_id="p2"), {"c"}),
        (Filter(conversation_id="t1"), {"b"}),
        (Filter(kind="summary"), {"b"}),
        (Filter(session_id="s1", kind="actions"), {"a"}),
        (Filter(session_id="none"), set()),
        (Filter(since=20), {"b", "c"}),
        (Filter(until=15.0), {"a", "b"}),
        (Filter(since=15, until=15), {"b"}),
        (Filter(session_id="s1", since=15, kind="summary"), {"b"}),
    ],
    ids=lambda value: str(value) if isinstance(value, Filter) else "",
)
async def test_filters(store: LlamaIndexStore, filter: Filter, expected: set[str]):
    await store.upsert(
        [
            chunk("a", session_id="s1", user_id="u1", product_id="p1", kind="actions",
                  started_at=10.0, ended_at=12.0),
            chunk("b", session_id="s1", user_id="u2", product_id="p1", kind="summary",
                  conversation_id="t1", started_at=15.0, ended_at=20.0),
            chunk("c", session_id="s2", product_id="p2", kind="actions",
                  started_at=30.0, ended_at=30.0),
            chunk("bare"),
        ],
        [EAST, EAST, NORTH, EAST],
    )  # fmt: skip
    assert set(ids(await store.query(EAST, 10, filter))) == expected


@pytest.mark.parametrize("k", [0, -1])
async def test_k_below_one_is_refused(store: LlamaIndexStore, k: int):
    with pytest.raises(StoreRejectedError, match="k is"):
        await store.query(EAST, k, ALL)


@pytest.mark.parametrize("vector", [[math.nan, 0.0, 0.0], [], ["a"]])
async def test_what_is_no_vector_is_refused(store: LlamaIndexStore, vector: list[Any]):
    with pytest.raises(StoreRejectedError, match="the question"):
        await store.query(vector, 1, ALL)
    with pytest.raises(StoreRejectedError, match="'bad'"):
        await store.upsert([chunk("ok"), chunk("bad")], [EAST, vector])
    assert await store.count() == 0


async def test_chunks_of_one_long_payload_have_ids_that_every_store_takes(store: LlamaIndexStore):
    parts = [chunk("d41d8cd98f00b204e9800998ecf8427e"), chunk("d41d8cd98f00b204e9800998ecf8427e-1")]
    await store.upsert(parts, [EAST, NORTH])
    assert ids(await store.query(NORTH, 1, ALL)) == [parts[1].id]
    await store.delete([parts[1].id])
    assert await store.count() == 1


def test_several_event_loops_may_use_it(store: LlamaIndexStore):
    asyncio.run(store.upsert([chunk("a")], [EAST]))
    assert ids(asyncio.run(store.query(EAST, 1, ALL))) == ["a"]


async def test_calls_at_once_do_not_disturb_each_other(store: LlamaIndexStore):
    async def put(number: int) -> None:
        batch = [chunk(f"{number}-{i}", user_id=f"u{number}") for i in range(20)]
        await store.upsert(batch, [[1.0, number / 10, i / 100] for i in range(20)])
        assert len(await store.query(EAST, 100, Filter(user_id=f"u{number}"))) == 20
        await store.delete([c.id for c in batch[:5]])

    async with asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(put(number))
    assert await store.count() == 8 * 15


async def test_a_pipeline_writes_and_searches_through_it(
    store: LlamaIndexStore, embed_model, make_payload
):
    async with IngestPipeline(store, LlamaIndexEmbedder(embed_model)) as pipeline:
        await pipeline.on_actions(make_payload("exported a report", session_id="s1", user_id="u1"))
        await pipeline.on_actions(make_payload("exported a report", session_id="s2", user_id="u2"))
        await pipeline.on_actions(make_payload("changed the password", session_id="s3"))
        await pipeline.drain()
        hits = await pipeline.search("who exported a report", k=2)
        assert {hit.session_id for hit in hits} == {"s1", "s2"}
        [hit] = await pipeline.search("who exported a report", user_id="u2")
        assert hit.session_id == "s2"
        assert pipeline.ledger.stored == 3


async def test_texts_can_be_kept_in_a_docstore_of_ones_own():
    docstore = SimpleDocumentStore()
    vector_store = SimpleVectorStore()
    await LlamaIndexStore(vector_store, docstore).upsert([chunk("a")], [EAST])
    [hit] = await LlamaIndexStore(vector_store, docstore).query(EAST, 1, ALL)
    assert hit.text == "text of a"
    await LlamaIndexStore(vector_store, docstore).delete(["a"])
    assert docstore.docs == {}


class Recorder(SimpleVectorStore):
    """Records the thread of each method call."""

    def note(self, name: str) -> None:
        calls.append((name, threading.get_ident()))

    def add(self, nodes, **kwargs):
        self.note("add")
        return super().add(nodes, **kwargs)

    def query(self, query, **kwargs):
        self.note("query")
        return super().query(query, **kwargs)


calls: list[tuple[str, int]] = []


class Blocking(BasePydanticVectorStore):
    """A store with blocking methods only, and only the required ones."""

    stores_text: bool = False

    @property
    def client(self) -> None:
        return None

    def add(self, nodes, **kwargs):
        calls.append(("add", threading.get_ident()))
        kept.update({node.node_id: node for node in nodes})
        return [node.node_id for node in nodes]

    def delete(self, ref_doc_id, **kwargs):
        calls.append(("delete", threading.get_ident()))
        for key in [key for key, node in kept.items() if node.ref_doc_id == ref_doc_id]:
            del kept[key]

    def query(self, query, **kwargs):
        raise NotImplementedError


kept: dict[str, Any] = {}


class Asynchronous(Blocking):
    """Like `Blocking`, with an async method for adding."""

    async def async_add(self, nodes, **kwargs):
        return self.add(nodes, **kwargs)


@pytest.fixture(autouse=True)
def nothing_noted():
    calls.clear()
    kept.clear()


async def test_a_store_that_blocks_is_called_in_a_thread_and_deletes_whole_documents():
    store = LlamaIndexStore(Blocking())
    await store.upsert([chunk("a", "old")], [EAST])
    await store.upsert([chunk("a", "new")], [EAST])
    assert [node.text for node in kept.values()] == ["new"]
    await store.delete(["a"])
    assert kept == {}
    assert threading.get_ident() not in {thread for _, thread in calls}
    assert len({thread for _, thread in calls}) == 1


async def test_async_methods_of_a_stores_own_are_awaited_unless_told_otherwise():
    await LlamaIndexStore(Asynchronous()).upsert([chunk("a")], [EAST])
    assert ("add", threading.get_ident()) in calls
    calls.clear()
    await LlamaIndexStore(Asynchronous(), use_async=False).upsert([chunk("a")], [EAST])
    assert ("add", threading.get_ident()) not in calls
    calls.clear()
    await LlamaIndexStore(Blocking(), use_async=True).upsert([chunk("a")], [EAST])
    assert {thread for _, thread in calls} == {threading.get_ident()}


async def test_a_thread_lets_the_loop_run_while_a_store_reads_through_the_nodes(
    monkeypatch: pytest.MonkeyPatch,
):
    pauses: list[int] = []
    clock = SimpleNamespace(sleep=lambda seconds: pauses.append(threading.get_ident()))
    monkeypatch.setattr("llama_index.readers.autoplay.calls.time", clock)

    class InLots(Blocking):
        def add(self, nodes, **kwargs):
            first, rest = nodes[:30], nodes[30:]
            return [*super().add(first), *super().add(rest)]

    await LlamaIndexStore(InLots()).upsert([chunk(f"c{n}") for n in range(40)], [EAST] * 40)
    assert len(kept) == 40
    assert len(pauses) >= 5
    assert threading.get_ident() not in pauses


async def test_the_in_memory_store_is_changed_on_the_loop_alone():
    store = LlamaIndexStore(Recorder())
    await store.upsert([chunk(f"c{n}") for n in range(40)], [EAST] * 40)
    await store.query(EAST, 1, ALL)
    assert {thread for _, thread in calls} == {threading.get_ident()}
    assert [name for name, _ in calls].count("add") > 1  # the loop runs in between


async def test_a_count_that_a_store_cannot_give_raises():
    with pytest.raises(StoreError, match="Blocking cannot tell"):
        await LlamaIndexStore(Blocking()).count()


def test_its_repr_names_the_store():
    assert repr(LlamaIndexStore(SimpleVectorStore())) == "LlamaIndexStore(SimpleVectorStore)"

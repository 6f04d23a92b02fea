"""`ChromaStore` over a real Chroma: the contract, and what is its own.

Chroma itself is only ever imported in other processes: in the worker and in scripts.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
from store_contract import ALL, EAST, NORTH, StoreContract, chunk, ids

from autoplay_rag.errors import (
    MissingExtraError,
    StoreMismatchError,
    StoreRejectedError,
    StoreUnavailableError,
    UnsupportedFilterError,
)
from autoplay_rag.stores import ChromaStore, Chunk, Filter
from autoplay_rag.stores.chroma import where_of
from autoplay_rag.stores.chroma.shared import SharedWorker

NUMBERS = count()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder whose worker stays for all tests of this module: to start one takes seconds."""
    path = tmp_path_factory.mktemp("chroma").resolve()
    worker = SharedWorker.acquire(path)
    yield path
    asyncio.run(worker.release())


@pytest.fixture
def make_store(folder):
    """Makes stores with collections of their own."""
    return lambda: ChromaStore(folder, collection=f"test-{next(NUMBERS)}")


@pytest.fixture
async def store(make_store):
    store = make_store()
    await store.start("model-a")
    yield store
    await store.aclose()


class TestContract(StoreContract):
    pass


def with_chromadb(script: str, folder: Path) -> object:
    """What a script prints as JSON that uses plain chromadb on `folder`."""
    prelude = "import chromadb, json, sys; client = chromadb.PersistentClient(sys.argv[1])\n"
    done = subprocess.run(
        [sys.executable, "-c", prelude + script, str(folder)],
        stdout=subprocess.PIPE,
        check=True,
        env={"ANONYMIZED_TELEMETRY": "False"},
    )
    return json.loads(done.stdout or "null")


async def test_any_chroma_client_can_read_the_folder_afterwards(tmp_path):
    store = ChromaStore(tmp_path, collection="sessions")
    await store.start("model-a")
    await store.upsert(
        [Chunk("c1", "Opened billing", {"user_id": "u1"}), chunk("c2")], [EAST, NORTH]
    )
    await store.aclose()
    found = with_chromadb(
        """
collection = client.get_collection("sessions")
found = collection.get(include=["documents", "metadatas", "embeddings"])
found["embeddings"] = found["embeddings"].tolist()
hits = collection.query(query_embeddings=[[1, 0, 0]], n_results=2)
print(json.dumps([{k: found[k] for k in ("ids", "documents", "metadatas", "embeddings")}, hits["ids"]]))
""",
        tmp_path,
    )
    assert found == [
        {
            "ids": ["c1", "c2"],
            "documents": ["Opened billing", "text of c2"],
            "metadatas": [{"user_id": "u1"}, None],
            "embeddings": [EAST, NORTH],
        },
        [["c1", "c2"]],
    ]


async def test_it_opens_what_others_made_as_far_as_it_fits(tmp_path):
    with_chromadb(
        """
client.create_collection("unfit", embedding_function=None)
fit = client.create_collection("fit", configuration={"hnsw": {"space": "cosine"}})
fit.add(ids=["theirs", "bare"], embeddings=[[1, 0, 0], [0, 1, 0]], documents=["text", "more"],
        metadatas=[{"session_id": "s1"}, None])
old = client.create_collection("old", metadata={"hnsw:space": "cosine"})
old.add(ids=["no-text"], embeddings=[[1, 0, 0]])
""",
        tmp_path,
    )
    unfit = ChromaStore(tmp_path, collection="unfit")
    fit = ChromaStore(tmp_path, collection="fit")
    old = ChromaStore(tmp_path, collection="old")
    with pytest.raises(StoreMismatchError, match=r"'unfit'.*'l2'.*another collection name"):
        await unfit.start("model-a")
    await fit.start("model-a")
    with pytest.raises(StoreMismatchError, match=r"dimension 3, but one of 2"):
        await fit.upsert([chunk("a")], [[1.0, 0.0]])
    await fit.delete(["bare"])
    await fit.upsert([chunk("ours")], [NORTH])
    hits = await fit.query(EAST, 5, ALL)
    assert [(hit.id, hit.session_id) for hit in hits] == [("theirs", "s1"), ("ours", None)]
    await old.start("model-a")
    [hit] = await old.query(EAST, 5, ALL)
    assert (hit.id, hit.text, hit.metadata) == ("no-text", "", {})
    for store in (unfit, fit, old):
        await store.aclose()


async def test_what_was_stored_is_there_after_a_restart_and_still_of_its_model(tmp_path):
    store = ChromaStore(tmp_path / "made" / "if missing")
    await store.start("model-a")
    await store.upsert([chunk("a", user_id="u1")], [EAST])
    await store.aclose()
    again = ChromaStore(str(tmp_path / "made" / "if missing"))
    with pytest.raises(StoreMismatchError, match=r"1 vectors of the model 'model-a'.*'model-b'"):
        await again.start("model-b")
    await again.start("model-a")
    assert ids(await again.query(EAST, 5, Filter(user_id="u1"))) == ["a"]
    await again.aclose()


async def test_more_than_a_batch_is_split(store):
    many = [chunk(f"c{i}") for i in range(store.max_batch * 2 + 1)]
    await store.upsert(many, [[1.0, i / 100, 0.0] for i in range(len(many))])
    assert await store.count() == len(many)
    await store.delete([c.id for c in many[1:]])
    assert ids(await store.query(EAST, 5, ALL)) == ["c0"]


async def test_what_is_stored_already_is_not_written_again(store, folder):
    def written() -> int:
        return (folder / "chroma.sqlite3").stat().st_mtime_ns

    batch = [chunk("a", user_id="u1"), chunk("b"), chunk("c", number=1)]
    vectors = [[0.123, 4.567, 8.9], [1e-9, 2e-9, 3e-9], [1e9, -2e9, 3e9]]
    await store.upsert(batch, vectors)
    before = written()
    await store.upsert(batch[::-1], vectors[::-1])
    assert written() == before
    await store.upsert([chunk("a", user_id="u2"), *batch[1:]], vectors)
    assert written() > before
    [hit] = await store.query(vectors[0], 1, ALL)
    assert hit.metadata == {"user_id": "u2"}


@pytest.mark.parametrize("change", [{"k": 1.5}, {"k": "text"}, {"k": 2}, {"k": True}, {"j": 1}, {}])
async def test_a_metadata_value_may_change_its_type(store, change):
    await store.upsert([chunk("a", "text", k=1)], [EAST])
    await store.upsert([chunk("a", "text", **change)], [EAST])
    [hit] = await store.query(EAST, 1, ALL)
    assert hit.metadata == change
    assert [type(value) for value in hit.metadata.values()] == [type(v) for v in change.values()]


async def test_what_chroma_refuses_is_a_rejection(store):
    with pytest.raises(StoreRejectedError, match="Chroma refused it"):
        await store.upsert([chunk("ok"), Chunk("bad", "t", {"chroma:document": "x"})], [EAST, EAST])
    assert await store.count() == 0
    with pytest.raises(StoreRejectedError, match="lone surrogate"):
        await store.delete(["\ud800"])


async def test_a_collection_name_chroma_refuses(folder):
    store = ChromaStore(folder, collection="no spaces, please")
    with pytest.raises(StoreRejectedError, match=r"a-zA-Z0-9\._-"):
        await store.start("model-a")
    await store.aclose()


async def test_without_start_the_model_is_open(make_store):
    store = make_store()
    await store.upsert([chunk("a")], [EAST])
    await store.start("model-a")
    assert await store.count() == 1
    await store.aclose()


async def test_an_empty_collection_of_ours_is_made_anew_for_another_dimension_alone(store):
    await store.upsert([chunk("a")], [EAST])
    await store.delete(["a"])
    assert await store.query([1.0, 0.0], 5, ALL) == []
    await store.upsert([chunk("b")], [[1.0, 0.0]])
    assert ids(await store.query([1.0, 0.0], 5, ALL)) == ["b"]


async def test_a_path_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    store = ChromaStore(tmp_path / "file")
    with pytest.raises(StoreUnavailableError, match="cannot be started in"):
        await store.start("model-a")
    await store.aclose()


async def test_a_damaged_database(tmp_path):
    (tmp_path / "chroma.sqlite3").write_bytes(b"no database " * 1000)
    store = ChromaStore(tmp_path)
    with pytest.raises(StoreUnavailableError, match=r"could not open .* not a database"):
        await store.start("model-a")
    await store.aclose()


def test_where_has_and_only_for_two_or_more():
    assert where_of(Filter()) is None
    assert where_of(Filter(kind="chat")) == {"kind": {"$eq": "chat"}}
    assert where_of(Filter(kind="chat", since=1, until=2)) == {
        "$and": [{"kind": {"$eq": "chat"}}, {"ended_at": {"$gte": 1}}, {"started_at": {"$lte": 2}}]
    }


async def test_a_filter_it_cannot_translate_never_searches_unfiltered(store):
    class Odd(Filter):
        def conditions(self):
            return [("user_id", "!=", "u1")]

    await store.upsert([chunk("a", user_id="u1")], [EAST])
    with pytest.raises(UnsupportedFilterError, match="'user_id' by '!='"):
        await store.query(EAST, 5, Odd())
    with pytest.raises(UnsupportedFilterError, match="a list"):
        await store.query(EAST, 5, Filter(user_id=["u1"]))


@pytest.mark.parametrize("missing", ["chromadb", "numpy"])
def test_a_missing_package_is_named(monkeypatch, tmp_path, missing):
    monkeypatch.setattr(
        "autoplay_rag.stores.chroma.find_spec", lambda name: name != missing or None
    )
    with pytest.raises(MissingExtraError, match=r"pip install 'autoplay-rag\[chroma\]'"):
        ChromaStore(tmp_path)


def test_its_repr_names_folder_and_collection(tmp_path):
    assert repr(ChromaStore(tmp_path, "c1")) == f"<ChromaStore: collection 'c1' in {tmp_path}>"

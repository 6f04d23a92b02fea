"""`ChromaStore` over a real Chroma: the contract, and its own behaviour.

Chroma is only imported in other processes: in the worker and in scripts.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import stat
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import get_args

import pytest
from store_helpers import ALL, EAST, NORTH, chunk, ids

from autoplay_rag.errors import (
    ConfigurationError,
    MissingExtraError,
    StoreMismatchError,
    StoreRejectedError,
    StoreUnavailableError,
    UnsupportedFilterError,
)
from autoplay_rag.stores import Capability, ChromaStore, Chunk, Filter, StoreIdentity
from autoplay_rag.stores.chroma.shared import ChromaWorker
from autoplay_rag.stores.chroma.store import where_of
from autoplay_rag.testing import VectorStoreContract

NUMBERS = count()
IDENTITY = StoreIdentity("store-1", "journal-1", 7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with one worker for all tests of this module: starting one takes seconds."""
    path = tmp_path_factory.mktemp("chroma").resolve()
    worker = ChromaWorker.acquire(path)
    yield path
    asyncio.run(worker.release())


@pytest.fixture
def make_store(folder):
    """Make stores, each with its own collection."""
    return lambda: ChromaStore(folder, collection=f"test-{next(NUMBERS)}")


@pytest.fixture
async def store(make_store):
    store = make_store()
    await store.start("model-a")
    yield store
    await store.aclose()


class TestContract(VectorStoreContract):
    def reopened(self, store):
        return ChromaStore(store._folder, store._collection)

    def copied(self, store, folder):
        return ChromaStore(folder, store._collection)


def with_chromadb(script: str, folder: Path) -> object:
    """Run a script that uses plain chromadb on `folder`; return the JSON that it prints."""
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
    with pytest.raises(StoreMismatchError, match=r"dimension 3, but was given one of dimension 2"):
        await fit.upsert([chunk("a")], [[1.0, 0.0]])
    await fit.delete(["bare"])
    await fit.upsert([chunk("ours")], [NORTH])
    hits = await fit.query(EAST, 5, ALL)
    assert [(hit.id, hit.metadata) for hit in hits] == [
        ("theirs", {"session_id": "s1"}),
        ("ours", {}),
    ]
    await old.start("model-a")
    [hit] = await old.query(EAST, 5, ALL)
    assert (hit.id, hit.text, hit.metadata) == ("no-text", "", {})
    assert await old.get(["no-text"]) == [Chunk("no-text", "", {})]
    for store in (fit, old):
        assert await store.identity() is None
        await store.save_identity(IDENTITY)
        assert await store.identity() == IDENTITY
    for store in (unfit, fit, old):
        with pytest.raises(
            StoreMismatchError, match=r"not created by autoplay-rag, .* not deleted"
        ):
            await store.drop()
        await store.aclose()
    assert with_chromadb(
        """
old = client.get_collection("old")
print(json.dumps([old.metadata["hnsw:space"], old.configuration["hnsw"]["space"], old.count()]))
""",
        tmp_path,
    ) == ["cosine", "cosine", 1]


async def test_what_was_stored_is_there_after_a_restart_and_still_of_its_model(tmp_path):
    store = ChromaStore(tmp_path / "made" / "if missing")
    await store.start("model-a")
    await store.upsert([chunk("a", user_id="u1")], [EAST])
    await store.aclose()
    again = ChromaStore(str(tmp_path / "made" / "if missing"))
    with pytest.raises(StoreMismatchError) as refused:
        await again.start("model-b")
    assert str(refused.value) == (
        "the Chroma collection 'autoplay' holds 1 vectors of the model 'model-a', but 'model-b' was "
        "asked for; start once with IngestPipeline(rebuild=True) (command: --rebuild) to embed "
        "everything again with the new model, or use the old model, or another collection name"
    )
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
    with pytest.raises(StoreRejectedError, match="Chroma rejected the request"):
        await store.upsert([chunk("ok"), Chunk("bad", "t", {"chroma:document": "x"})], [EAST, EAST])
    assert await store.count() == 0
    with pytest.raises(StoreRejectedError, match="lone surrogate"):
        await store.delete(["\ud800"])


async def test_a_collection_name_chroma_refuses(folder):
    store = ChromaStore(folder, collection="no spaces, please")
    with pytest.raises(StoreRejectedError, match=r"a-zA-Z0-9\._-"):
        await store.start("model-a")
    await store.aclose()


async def test_without_start_the_model_is_open_and_the_first_start_names_it(make_store):
    store = make_store()
    await store.upsert([chunk("a")], [EAST])
    await store.start("model-a")
    assert await store.count() == 1
    with pytest.raises(StoreMismatchError, match=r"'model-a'.*'model-b'"):
        await store.start("model-b")
    await store.aclose()


async def test_an_empty_collection_of_ours_is_made_anew_for_another_dimension_alone(store):
    await store.upsert([chunk("a")], [EAST])
    await store.delete(["a"])
    assert await store.query([1.0, 0.0], 5, ALL) == []
    await store.save_identity(IDENTITY)
    await store.upsert([chunk("b")], [[1.0, 0.0]])
    assert ids(await store.query([1.0, 0.0], 5, ALL)) == ["b"]
    assert await store.identity() == IDENTITY


async def test_it_declares_every_capability(make_store):
    assert make_store().capabilities == set(get_args(Capability))


async def test_the_identity_stands_beside_the_model_and_the_index_stays_as_it_is(tmp_path):
    store = ChromaStore(tmp_path)
    await store.start("model-a")
    await store.upsert([chunk("a")], [EAST])
    await store.save_identity(IDENTITY)
    await store.aclose()
    script = """
collection = client.get_collection("autoplay")
print(json.dumps([collection.metadata, collection.configuration["hnsw"]["space"],
                  collection.configuration["hnsw"]["ef_search"], collection.count()]))
"""
    assert with_chromadb(script, tmp_path) == [
        {
            "autoplay_model": "model-a",
            "autoplay_store_id": "store-1",
            "autoplay_journal_id": "journal-1",
            "autoplay_batch": 7,
        },
        "cosine",
        400,
        1,
    ]


async def test_asking_for_the_identity_or_dropping_makes_no_collection(tmp_path):
    store = ChromaStore(tmp_path)
    assert await store.identity() is None
    await store.drop()
    await store.aclose()
    assert with_chromadb("print(json.dumps(len(client.list_collections())))", tmp_path) == 0


async def test_a_sibling_is_another_collection_of_the_same_worker(tmp_path):
    store = ChromaStore(tmp_path, "sessions", timeout=50)
    sibling = store.sibling("large")
    assert sibling == ChromaStore(tmp_path, "sessions-large")
    assert hash(sibling) == hash(store.sibling("large"))
    assert sibling != store
    assert sibling != "sessions-large"
    assert sibling._timeout == 50
    await store.start("model-a")
    await sibling.start("model-b")
    assert sibling._worker is store._worker
    await store.aclose()
    await sibling.upsert([chunk("a")], [EAST])
    await sibling.aclose()


@pytest.mark.slow
async def test_a_drop_takes_index_files_and_their_copy_with_it(tmp_path):
    store = ChromaStore(tmp_path, sync_threshold=1000)
    other = store.sibling("other")
    many = [chunk(f"c{i}") for i in range(1100)]
    vectors = [[1.0, i / 100, 0.0] for i in range(len(many))]
    for each in (store, other):
        await each.start("model-a")
        await each.upsert(many, vectors)
    before = {path.parent for path in tmp_path.rglob("header.bin")}
    assert len(before) == 4, "two indexes and their copies"
    await store.drop()
    assert len({path for path in before if path.exists()}) == 2
    assert await other.count() == len(many)
    await store.start("model-b")
    await store.upsert(many, [[y, x] for x, y, _ in vectors])
    assert await store.count() == len(many)
    assert ids(await other.query(vectors[5], 1, ALL)) == ["c5"]
    await store.aclose()
    await other.aclose()
    assert {path.parent for path in tmp_path.rglob("header.bin")} > {
        path for path in before if path.exists()
    }


async def test_a_scan_of_one_collection_passes_over_the_rows_of_another(make_store):
    one, two = make_store(), make_store()
    for number in range(4):
        for store in (one, two):
            batch = [chunk(f"{number}-{i}") for i in range(5)]
            await store.upsert(batch, [EAST] * 5)
    found = [ids(page) async for page in one.scan(7)]
    assert [len(page) for page in found] == [7, 7, 6]
    assert [found_id for page in found for found_id in page] == [
        f"{n}-{i}" for n in range(4) for i in range(5)
    ]
    assert [len(page) async for page in one.scan(10**9)] == [20]
    await one.aclose()
    await two.aclose()


async def test_a_page_of_less_than_one_chunk_is_refused(store):
    with pytest.raises(ConfigurationError, match="page must be at least 1"):
        await anext(store.scan(0))


async def test_a_scan_right_after_a_kill_has_all_that_was_stored(tmp_path):
    store = ChromaStore(tmp_path)
    await store.start("model-a")
    await store.upsert([chunk(f"c{i}") for i in range(200)], [EAST] * 200)
    store._worker._process._popen.kill()
    assert store._worker._process._popen.wait(20) != 0
    assert sorted([found async for page in store.scan(33) for found in ids(page)]) == sorted(
        f"c{i}" for i in range(200)
    )
    await store.aclose()


async def test_a_search_right_after_a_kill_has_all_that_was_stored(tmp_path):
    store = ChromaStore(tmp_path)
    await store.start("model-a")
    await store.upsert([chunk(f"c{i}", user_id=f"u{i % 2}") for i in range(200)], [EAST] * 200)
    for search in ("filtered", "unfiltered", "score"):
        store._worker._process._popen.kill()
        assert store._worker._process._popen.wait(20) != 0
        if search == "filtered":
            assert len(await store.query(EAST, 200, Filter(user_id="u1"))) == 100
        elif search == "unfiltered":
            assert len(await store.query(EAST, 200, ALL)) == 200
        else:
            assert len(await store.score(EAST, [f"c{i}" for i in range(300)])) == 200
    await store.aclose()


async def test_lists_that_others_stored_as_metadata_are_returned(tmp_path):
    with_chromadb(
        """
made = client.create_collection("theirs", configuration={"hnsw": {"space": "cosine"}})
made.add(ids=["a", "b"], embeddings=[[1, 0, 0], [0, 1, 0]], documents=["text", "more"],
         metadatas=[{"tags": ["x", "y"], "user_id": "u1"}, {"user_id": "u1", "paid": True}])
""",
        tmp_path,
    )
    store = ChromaStore(tmp_path, collection="theirs")
    await store.start("model-a")
    for wanted in (ALL, Filter(user_id="u1")):
        found = await store.query(EAST, 5, wanted)
        assert [(hit.id, hit.text, hit.metadata) for hit in found] == [
            ("a", "text", {"tags": ["x", "y"], "user_id": "u1"}),
            ("b", "more", {"user_id": "u1", "paid": True}),
        ]
    await store.aclose()


async def test_an_id_may_be_named_twice(store):
    await store.upsert([chunk("a"), chunk("b")], [EAST, NORTH])
    assert await store.score(EAST, ["a", "a"]) == pytest.approx({"a": 1})
    await store.delete(["a", "a"])
    assert ids(await store.query(EAST, 5, ALL)) == ["b"]


async def test_more_than_a_batch_is_scored(store):
    many = [chunk(f"c{i}") for i in range(store.max_batch + 1)]
    await store.upsert(many, [[1.0, i / 100, 0.0] for i in range(len(many))])
    scores = await store.score(EAST, [c.id for c in many])
    assert len(scores) == len(many)
    assert scores["c0"] == pytest.approx(1)
    assert scores["c100"] == pytest.approx(math.sqrt(0.5), abs=1e-5)


async def test_all_of_many_chunks_are_found(store):
    many = [chunk(f"c{i}", kind="chat") for i in range(store.max_batch * 3)]
    await store.upsert(many, [[1.0, i / 100, 0.0] for i in range(len(many))])
    for wanted in (ALL, Filter(kind="chat")):
        found = await store.query(EAST, len(many), wanted)
        assert ids(found) == ids(many)


async def test_metadata_that_is_so_already_is_not_written_again(store, folder):
    def written() -> int:
        return (folder / "chroma.sqlite3").stat().st_mtime_ns

    await store.upsert([chunk("a", user_id="u1", number=1), chunk("b")], [EAST, NORTH])
    before = written()
    await store.update_metadata({"a": {"user_id": "u1", "email": None}, "c": {"user_id": "u9"}})
    assert written() == before
    await store.update_metadata({"a": {"number": 1.0}})
    assert written() > before
    [found] = await store.get(["a"])
    assert type(found.metadata["number"]) is float


async def test_more_than_a_batch_is_updated_and_read(store):
    many = [chunk(f"c{i}") for i in range(store.max_batch + 1)]
    await store.upsert(many, [EAST] * len(many))
    await store.update_metadata({c.id: {"user_id": "u1"} for c in many})
    found = await store.get([c.id for c in many])
    assert len(found) == len(many)
    assert all(c.metadata == {"user_id": "u1"} for c in found)


@pytest.mark.slow
async def test_an_update_of_metadata_leaves_the_index_whole(tmp_path):
    """Chroma logs an update without a vector, and writes the index once per so many log entries."""
    store = ChromaStore(tmp_path, sync_threshold=1000)
    await store.start("model-a")
    many = [chunk(f"c{i}") for i in range(1100)]
    vectors = [[math.cos(i / 400), math.sin(i / 400), 0.5] for i in range(len(many))]
    await store.upsert(many, vectors)
    for name in ("u1", "u2"):
        await store.update_metadata({c.id: {"user_id": name} for c in many})
    for _ in range(2):
        for number in range(0, len(many), 100):
            [match] = await store.query(vectors[number], 1, ALL)
            assert (match.id, match.metadata) == (f"c{number}", {"user_id": "u2"})
            assert match.score == pytest.approx(1, abs=1e-5)
        await store.aclose()


@pytest.mark.parametrize("kind", ["query", "score"])
async def test_a_search_waits_for_a_small_part_of_a_batch(store, kind):
    async def search() -> list[str]:
        if kind == "score":
            return [*await store.score(EAST, ["c0"])]
        return [match.id for match in await store.query(EAST, 1, ALL)]

    many = [chunk(f"c{i}") for i in range(300)]
    await store.upsert(many[:1], [EAST])
    assert await search() == ["c0"]
    writing = asyncio.create_task(store.upsert(many, [EAST] * len(many)))
    counts = set()
    while not writing.done():
        await search()
        counts.add(await store.count())
    assert len(counts) > 5
    assert max(counts) == 300


async def test_a_chunks_metadata_never_holds_none(store):
    with pytest.raises(StoreRejectedError, match="'user_id' of chunk 'a' is a NoneType"):
        await store.upsert([Chunk("a", "text", {"user_id": None})], [EAST])
    await store.upsert([chunk("a", user_id="u1", email="e")], [EAST])
    await store.upsert([chunk("a", user_id="u1")], [EAST])
    await store.update_metadata({"a": {"kind": None}})
    assert await store.get(["a"]) == [chunk("a", user_id="u1")]
    assert (await store.query(EAST, 1, ALL))[0].metadata == {"user_id": "u1"}


async def test_a_folder_it_makes_is_for_its_owner_alone(tmp_path):
    store = ChromaStore(tmp_path / "parent" / "made")
    await store.start("model-a")
    await store.aclose()
    assert stat.S_IMODE((tmp_path / "parent" / "made").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "parent").stat().st_mode) == stat.S_IMODE(0o777 & ~umask())


async def test_the_mode_of_an_existing_folder_is_its_owners_choice(tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o755)
    store = ChromaStore(tmp_path / "shared")
    for _ in range(2):
        await store.start("model-a")
        await store.aclose()
    assert stat.S_IMODE((tmp_path / "shared").stat().st_mode) == 0o755


def umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found


async def test_a_path_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    store = ChromaStore(tmp_path / "file")
    with pytest.raises(StoreUnavailableError, match=r"worker of .* cannot be started"):
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
        "autoplay_rag.stores.chroma.store.find_spec", lambda name: name != missing or None
    )
    with pytest.raises(MissingExtraError, match=r"pip install 'autoplay-rag\[chroma\]'"):
        ChromaStore(tmp_path)


def test_its_repr_names_folder_and_collection(tmp_path):
    assert repr(ChromaStore(tmp_path, "c1")) == f"<ChromaStore: collection 'c1' in {tmp_path}>"

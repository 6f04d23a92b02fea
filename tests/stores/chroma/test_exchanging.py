"""Two collections are exchanged in one step: for other clients too, and whenever it is killed."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest
from store_helpers import ALL, EAST, NORTH, chunk, ids

from autoplay_rag.errors import StoreMismatchError, StoreUnavailableError
from autoplay_rag.stores import ChromaStore, StoreIdentity

IDENTITY = StoreIdentity("store-1", "journal-1", 7)


@pytest.fixture
async def store(tmp_path):
    store = ChromaStore(tmp_path / "chroma", "sessions", sync_threshold=1000)
    await store.start("model-a")
    yield store
    await store.aclose()


@pytest.fixture
async def other(store):
    other = store.sibling("new")
    await other.start("model-b")
    yield other
    await other.aclose()


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


def names(folder: Path) -> dict[str, str]:
    with closing(sqlite3.connect(folder / "chroma.sqlite3")) as connection:
        return dict(connection.execute("SELECT name, id FROM collections"))


async def test_every_client_sees_the_exchange(store, other, tmp_path):
    many = [chunk(f"a{i}") for i in range(1200)]  # an index is written after 1000
    vectors = [[1.0, i / 1000, 0.0] for i in range(len(many))]
    await store.upsert(many, vectors)
    await other.upsert([chunk("b")], [NORTH])
    second = ChromaStore(
        tmp_path / "chroma", "sessions", sync_threshold=1000
    )  # as a search in the same process has
    await second.start("model-a")
    await store.exchange("new")
    with pytest.raises(StoreMismatchError, match=r"'model-b'.*'model-a'"):
        await second.query(EAST, 1, ALL)
    await store.start("model-b")
    await store.upsert([chunk("c")], [[-1.0, 0.0, 0.0]])
    for each in (store, other, second):
        await each.aclose()
    found = with_chromadb(
        """
found = []
for name in ("sessions", "sessions-new"):
    collection = client.get_collection(name)
    hits = collection.query(query_embeddings=[[1, 0.7, 0]], n_results=1)["ids"][0]
    found.append([collection.count(), hits, collection.metadata["autoplay_model"]])
print(json.dumps([sorted(c.name for c in client.list_collections()), *found]))
""",
        tmp_path / "chroma",
    )
    assert found == [
        ["sessions", "sessions-new"],
        [2, ["b"], "model-b"],
        [1200, ["a700"], "model-a"],
    ]


@pytest.mark.parametrize("own", ["sessions", "sessions-new"])
async def test_a_collection_of_somebody_else_keeps_its_name(tmp_path, own):
    (theirs,) = {"sessions", "sessions-new"} - {own}
    with_chromadb(
        f"client.create_collection({theirs!r}, configuration={{'hnsw': {{'space': 'cosine'}}}})",
        tmp_path,
    )
    ours = ChromaStore(tmp_path, own)
    await ours.start("model-a")
    before = names(tmp_path)
    store = ChromaStore(tmp_path, "sessions")
    with pytest.raises(StoreMismatchError, match=f"{theirs}' was not created .* not renamed"):
        await store.exchange("new")
    assert names(tmp_path) == before
    await ours.aclose()
    await store.aclose()


EXCHANGING = """
import sys
from pathlib import Path
from autoplay_rag.stores.chroma.names import exchange_names
folder, one, other = sys.argv[1:]
print("started", flush=True)
while True:
    exchange_names(Path(folder), one, other)
"""


def kill_while_exchanging(folder: Path, named: dict[str, str], seconds: float) -> None:
    command = [sys.executable, "-c", EXCHANGING, str(folder), *named.values()]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"started\n"
        time.sleep(seconds)
        process.kill()


async def test_a_kill_at_any_time_leaves_both_names(store, other, tmp_path):
    await store.upsert([chunk("a")], [EAST])
    await other.upsert([chunk("b")], [NORTH])
    await store.aclose()
    await other.aclose()
    folder = tmp_path / "chroma"
    before = names(folder)
    for number in range(8):
        kill_while_exchanging(folder, before, random.Random(number).uniform(0.0, 0.1))
        after = names(folder)
        assert after.keys() == before.keys()
        assert set(after.values()) == set(before.values())
    exchanged = names(folder) != before
    await store.start("model-b" if exchanged else "model-a")
    assert ids(await store.query(EAST, 5, ALL)) == (["b"] if exchanged else ["a"])


@pytest.mark.slow
async def test_a_worker_killed_during_an_exchange_loses_nothing(store, other):
    await store.upsert([chunk("a")], [EAST])
    await other.upsert([chunk("b")], [NORTH])
    await store.save_identity(IDENTITY)
    outcomes = set()
    for number in range(20):
        had = await store.identity()
        exchanging = asyncio.create_task(store.exchange("new"))
        await asyncio.sleep(random.Random(number).uniform(0.0, 0.01))
        worker = store._worker._process._popen
        worker.kill()
        worker.wait()
        with suppress(StoreUnavailableError):
            await exchanging
        exchanged = await store.identity() != had
        outcomes.add(exchanged)
        first, second = ("model-a", "a"), ("model-b", "b")
        mine, theirs = (first, second) if await store.identity() == IDENTITY else (second, first)
        for each, (model, expected) in ((store, mine), (other, theirs)):
            await each.start(model)
            assert ids(await each.query(EAST, 5, ALL)) == [expected]
    assert outcomes == {True, False}, "no kill came before, or none after the commit"

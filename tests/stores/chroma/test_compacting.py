"""A collection of mostly deleted chunks is written anew, while others use it, and whenever it is killed.

These tests need a few thousand chunks, because Chroma writes an index seldom.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest

from autoplay_rag.errors import StoreUnavailableError
from autoplay_rag.stores import ChromaStore, Chunk, Filter, StoreIdentity
from autoplay_rag.stores.chroma.index import IndexHeader

IDENTITY = StoreIdentity("store-1", "journal-1", 7)
SIZE = 8
BATCH = 500
WRITTEN = 1000
"""Chroma writes the index once per so many changes."""


def vector(number: int) -> list[float]:
    return random.Random(number).choices((-1.0, -0.5, 0.25, 0.5, 1.0), k=SIZE)


def made(numbers: range, text: str = "text") -> list[Chunk]:
    return [Chunk(f"c{n}", f"{text} {n}", {"session_id": f"s{n % 7}", "n": n}) for n in numbers]


async def upsert(store: ChromaStore, numbers: range, text: str = "text") -> None:
    await store.upsert(made(numbers, text), [vector(number) for number in numbers])


async def contents(store: ChromaStore) -> dict[str, Chunk]:
    return {chunk.id: chunk async for page in store.scan() for chunk in page}


async def assert_searchable(store: ChromaStore, numbers: range) -> None:
    for number in random.Random(1).sample(numbers, 20):
        found = await store.query(vector(number), 5, Filter())
        assert found[0].score == pytest.approx(1, abs=1e-5)
        scores = await store.score(vector(number), [f"c{number}"])
        assert scores == pytest.approx({f"c{number}": 1}, abs=1e-5)


def indexes(folder: Path) -> dict[str, int]:
    return {
        path.parent.name: IndexHeader.read(path.parent).places
        for path in folder.glob("*/header.bin")
    }


def rows(folder: Path) -> dict[str, int]:
    tables = (
        "collections", "segments", "embeddings", "embedding_metadata", "embedding_fulltext_search"
    )  # fmt: skip
    with closing(sqlite3.connect(folder / "chroma.sqlite3")) as connection:
        return {
            table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in tables
        }


@pytest.fixture
async def store(tmp_path):
    store = ChromaStore(tmp_path, sync_threshold=WRITTEN)
    await store.start("model-a")
    yield store
    await store.aclose()


async def test_a_collection_of_mostly_deleted_chunks_is_written_anew(store, tmp_path):
    await upsert(store, range(3000))
    await store.save_identity(IDENTITY)
    assert not await store.compact(), "nothing is deleted"
    await store.delete([f"c{n}" for n in range(1600)])
    before = await contents(store)
    old = indexes(tmp_path)
    assert await store.compact()
    assert not await store.compact()
    assert await contents(store) == before
    assert await store.identity() == IDENTITY
    assert await store.is_own()
    await assert_searchable(store, range(1600, 3000))
    new = indexes(tmp_path)
    assert list(old.values()) == [3000]
    assert list(new.values()) == [1400 // 1000 * 1000] or list(new.values()) == [1400]
    assert not old.keys() & new.keys()
    copies = {path.name for path in (tmp_path / "autoplay-rag.mirror").iterdir()}
    assert copies == new.keys()
    found = rows(tmp_path)
    assert (found["collections"], found["segments"]) == (1, 2)
    assert found["embeddings"] == found["embedding_fulltext_search"] == 1400
    await store.aclose()
    again = ChromaStore(tmp_path, sync_threshold=WRITTEN)
    await again.start("model-a")
    assert await contents(again) == before
    await assert_searchable(again, range(1600, 3000))
    await again.aclose()


async def test_writes_during_the_rewrite_are_not_lost(store):
    await upsert(store, range(2000))
    await store.delete([f"c{n}" for n in range(1100)])
    compacting = asyncio.create_task(store.compact())
    number, meanwhile = 0, 0
    while number < 3 or not compacting.done():
        number += 1
        await upsert(store, range(5000 + number, 5001 + number))
        await upsert(store, range(1100 + 2 * number, 1101 + 2 * number), "changed")
        await store.delete([f"c{1101 + 2 * number}"])
        await store.update_metadata({f"c{1900 - number}": {"user_id": f"u{number}", "n": None}})
        await store.save_identity(StoreIdentity("store-1", "journal-1", number))
        assert (await store.query(vector(1999), 1, Filter()))[0].score == pytest.approx(1, abs=1e-5)
        meanwhile += not compacting.done()
    assert await compacting
    assert meanwhile
    expected = {chunk.id: chunk for chunk in made(range(1100, 2000))}
    for i in range(1, number + 1):
        for chunk in (
            *made(range(5000 + i, 5001 + i)),
            *made(range(1100 + 2 * i, 1101 + 2 * i), "changed"),
        ):
            expected[chunk.id] = chunk
        expected.pop(f"c{1101 + 2 * i}", None)
        if (old := expected.get(f"c{1900 - i}")) is not None:
            metadata = {**old.metadata, "user_id": f"u{i}"}
            del metadata["n"]
            expected[old.id] = Chunk(old.id, old.text, metadata)
    assert await contents(store) == expected
    assert await store.identity() == StoreIdentity("store-1", "journal-1", number)


async def mostly_deleted(store: ChromaStore) -> dict[str, Chunk]:
    """Store chunks and delete most of them. Returns what is left."""
    await upsert(store, range(1000, 2000))
    await store.delete([f"c{n}" for n in range(1000, 1600)])
    return {chunk.id: chunk for chunk in made(range(1600, 2000))}


async def begun(store: ChromaStore) -> asyncio.Task[bool]:
    """Start a rewrite; returns once it has copied something."""
    folder = store._folder
    compacting = asyncio.create_task(store.compact())
    while rows(folder)["collections"] < 2:
        assert not compacting.done()
        await store.identity()  # its turn is after the next step
    return compacting


def kill(store: ChromaStore) -> None:
    worker = store._worker._process._popen
    worker.kill()
    worker.wait()


async def test_a_scan_that_is_under_way_is_finished_first(store):
    expected = await mostly_deleted(store)
    seen: list[str] = []
    compacting = None
    async for page in store.scan(50):
        if compacting is None:
            compacting = await begun(store)
        seen += [chunk.id for chunk in page]
        await store.update_metadata({seen[0]: {"user_id": "u1"}})
    assert sorted(seen) == sorted(expected)
    async with asyncio.timeout(60):
        assert await compacting
    assert (await contents(store)).keys() == expected.keys()


@pytest.mark.slow
async def test_a_cancelled_rewrite_is_continued(store, tmp_path):
    expected = await mostly_deleted(store)
    compacting = await begun(store)
    compacting.cancel()
    await asyncio.wait([compacting])
    await upsert(store, range(1700, 1701), "changed")
    await store.delete(["c1800"])
    expected |= {chunk.id: chunk for chunk in made(range(1700, 1701), "changed")}
    del expected["c1800"]
    assert await contents(store) == expected
    assert await store.compact()
    assert await contents(store) == expected
    assert rows(tmp_path)["collections"] == 1


@pytest.mark.parametrize("end", ["drop", "exchange", "another dimension"])
async def test_a_collection_that_is_gone_ends_its_rewrite(store, tmp_path, end):
    await mostly_deleted(store)
    compacting = await begun(store)
    if end == "drop":
        await store.drop()
        await store.start("model-a")
    elif end == "exchange":
        await store.exchange("other")
    else:
        await store.delete([f"c{n}" for n in range(1600, 2000)])
        await store.upsert(made(range(5)), [[1.0, float(n)] for n in range(5)])
    async with asyncio.timeout(60):
        await compacting
    held = {"drop": 0, "exchange": 0, "another dimension": 5}[end]
    assert await store.count() == held
    if end == "exchange":
        assert await store.sibling("other").compact()
        assert await store.sibling("other").count() == 400
        await store.sibling("other").aclose()
    assert rows(tmp_path)["collections"] == (2 if end == "exchange" else 1)
    await store.compact()
    assert len(list(tmp_path.glob("*/header.bin"))) <= 2


@pytest.mark.slow
async def test_erasing_and_copying_go_on_beside_a_rewrite(store, tmp_path_factory):
    expected = await mostly_deleted(store)
    compacting = await begun(store)
    folder = tmp_path_factory.mktemp("copy")
    await store.copy_to(folder)
    assert await store.erase()
    assert await compacting
    assert await contents(store) == expected
    copy = ChromaStore(folder)
    await copy.start("model-a")
    assert await contents(copy) == expected
    assert rows(folder)["collections"] == 1, "the copy of the unfinished rewrite is deleted"
    await copy.aclose()


async def test_somebody_elses_collection_is_not_written_anew(store, tmp_path):
    await mostly_deleted(store)
    with closing(sqlite3.connect(tmp_path / "chroma.sqlite3")) as connection, connection:
        connection.execute("DELETE FROM collection_metadata")
    await store.aclose()
    old = indexes(tmp_path)
    assert not await store.compact()
    assert indexes(tmp_path) == old


async def test_without_a_collection_nothing_is_created(tmp_path):
    store = ChromaStore(tmp_path, sync_threshold=WRITTEN)
    assert not await store.compact()
    await store.aclose()
    assert rows(tmp_path)["collections"] == 0


async def test_what_a_kill_leaves_is_deleted_at_the_next_start_of_any_collection(store, tmp_path):
    expected = await mostly_deleted(store)
    await store.save_identity(IDENTITY)
    compacting = await begun(store)
    compacting.cancel()
    await asyncio.wait([compacting])
    kill(store)
    assert rows(tmp_path)["collections"] == 2
    other = ChromaStore(tmp_path, "other")
    await other.start("model-b")
    assert rows(tmp_path)["collections"] == 2, "the old one and the other"
    assert len(list(tmp_path.glob("*/header.bin"))) == 1
    assert await contents(store) == expected
    assert await store.identity() == IDENTITY
    await other.aclose()


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_killed_at_any_moment_it_is_the_old_or_the_new_and_whole(store, tmp_path):
    expected = await mostly_deleted(store)
    await store.save_identity(IDENTITY)
    began = time.perf_counter()
    assert await store.compact()
    took = time.perf_counter() - began
    outcomes: set[bool] = set()
    replaced = True
    for number in range(10):
        if replaced:
            await upsert(store, range(9000, 9000 + 2 * BATCH))
            await store.delete([f"c{9000 + n}" for n in range(2 * BATCH)])
        before = indexes(tmp_path).keys()
        compacting = asyncio.create_task(store.compact())
        await asyncio.sleep(random.Random(number).uniform(0.0, 1.5 * took))
        with suppress(StoreUnavailableError):
            await upsert(store, range(3000 + number, 3001 + number))
            expected |= {chunk.id: chunk for chunk in made(range(3000 + number, 3001 + number))}
            await store.delete([f"c{1600 + number}"])
            expected.pop(f"c{1600 + number}")
        kill(store)
        with suppress(StoreUnavailableError):
            await compacting
        await store.start("model-a")
        assert await contents(store) == expected
        assert await store.identity() == IDENTITY
        assert await store.is_own()
        found = rows(tmp_path)
        assert (found["collections"], found["segments"]) == (1, 2)
        assert found["embeddings"] == found["embedding_fulltext_search"] == len(expected)
        replaced = indexes(tmp_path).keys() != before
        outcomes.add(replaced)
    assert outcomes == {True, False}


async def test_a_large_collection_is_dropped_in_steps(store, tmp_path):
    await upsert(store, range(1200))
    other = store.sibling("other")
    await other.start("model-a")
    await upsert(other, range(10))
    dropping = asyncio.create_task(store.drop())
    counts = []
    while not dropping.done():
        assert await other.count() == 10
        counts.append(rows(tmp_path)["embeddings"])
    await dropping
    assert len(set(counts)) > 2, "others are answered in between"
    assert rows(tmp_path)["embeddings"] == rows(tmp_path)["embedding_fulltext_search"] == 10
    assert list(indexes(tmp_path).values()) == [0], "that of the other"
    await other.aclose()


async def test_a_drop_that_is_interrupted_is_complete_for_all_who_ask(store, tmp_path):
    await upsert(store, range(1200))
    await store.save_identity(IDENTITY)
    dropping = asyncio.create_task(store.drop())
    await asyncio.sleep(0)
    await store.count()  # its turn is after the first step
    dropping.cancel()
    await asyncio.wait([dropping])
    assert rows(tmp_path)["embeddings"] > 0
    kill(store)
    assert await store.identity() is None
    assert await store.count() == 0
    await store.start("model-b")
    assert rows(tmp_path)["embeddings"] == rows(tmp_path)["embedding_metadata"] == 0
    assert not list(tmp_path.glob("*/header.bin"))

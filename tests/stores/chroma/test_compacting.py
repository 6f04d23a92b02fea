"""A collection of mostly deleted chunks is written anew, while others use it, and whenever it is killed.

Chroma writes an index once per thousand changes, so these tests need a few thousand chunks.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from autoplay_rag.stores import ChromaStore, Chunk, Filter, StoreIdentity
from autoplay_rag.stores.chroma.index import IndexHeader

IDENTITY = StoreIdentity("store-1", "journal-1", 7)
SIZE = 8
BATCH = 500


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
    store = ChromaStore(tmp_path)
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
    again = ChromaStore(tmp_path)
    await again.start("model-a")
    assert await contents(again) == before
    await assert_searchable(again, range(1600, 3000))
    await again.aclose()


async def test_writes_during_the_rewrite_are_not_lost(store):
    await upsert(store, range(2000))
    await store.delete([f"c{n}" for n in range(1100)])
    compacting = asyncio.create_task(store.compact())
    number, written = 0, 0
    while not compacting.done():
        number += 1
        await upsert(store, range(5000 + number, 5001 + number))
        await upsert(store, range(1100 + 2 * number, 1101 + 2 * number), "changed")
        await store.delete([f"c{1101 + 2 * number}"])
        await store.update_metadata({f"c{1900 - number}": {"user_id": f"u{number}", "n": None}})
        await store.save_identity(StoreIdentity("store-1", "journal-1", number))
        assert (await store.query(vector(1999), 1, Filter()))[0].score == pytest.approx(1, abs=1e-5)
        written += 1
    assert await compacting
    assert written >= 3
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

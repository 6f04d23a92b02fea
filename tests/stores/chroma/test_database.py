"""What is read of Chroma's tables without Chroma."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from autoplay_rag.stores import ChromaStore, Chunk, Filter
from autoplay_rag.stores.chroma.database import Database


async def stored(folder, count, name="sessions"):
    """Store chunks, close the folder, and return the id of the collection."""
    store = ChromaStore(folder, name)
    await store.start("model-a")
    await store.upsert(
        [Chunk(f"{name}{n}", f"text {n}", {}) for n in range(count)],
        [[float(n), 1.0, 2.0] for n in range(count)],
    )
    await store.aclose()
    with closing(sqlite3.connect(folder / "chroma.sqlite3")) as database:
        query = "SELECT id FROM collections WHERE name = ?"
        return database.execute(query, (name,)).fetchone()[0]


async def test_each_collection_is_counted_alone(tmp_path):
    some, others = await stored(tmp_path, 3), await stored(tmp_path, 5, "others")
    database = Database(tmp_path)
    assert database.readable
    assert (database.count(some), database.dimension(some)) == (3, 3)
    assert (database.count(others), database.dimension(others)) == (5, 3)
    database.close()


async def test_an_empty_collection_has_no_dimension(tmp_path):
    store = ChromaStore(tmp_path)
    await store.start("model-a")
    await store.aclose()
    database = Database(tmp_path)
    ((collection,),) = database.select("SELECT id FROM collections")
    assert database.dimension(collection) is None
    assert database.is_current(collection)
    database.close()


@pytest.mark.parametrize("applied", [True, False], ids=["as it was left", "with a log to apply"])
async def test_a_log_that_is_not_applied_is_seen(tmp_path, applied):
    """As after a kill: Chroma writes its log first. A start makes Chroma apply it."""
    collection = await stored(tmp_path, 20)
    if not applied:
        with closing(sqlite3.connect(tmp_path / "chroma.sqlite3")) as file, file:
            ((part,),) = file.execute("SELECT id FROM segments WHERE scope = 'METADATA'")
            file.execute("UPDATE max_seq_id SET seq_id = 12 WHERE segment_id = ?", (part,))
            file.execute("DELETE FROM embedding_metadata WHERE id > 12")
            file.execute("DELETE FROM embeddings WHERE id > 12")
    database = Database(tmp_path)
    assert database.is_current(collection) is applied
    assert database.count(collection) == (20 if applied else 12)
    store = ChromaStore(tmp_path, "sessions")
    await store.start("model-a")
    assert database.is_current(collection)
    database.close()
    assert {chunk.id for chunk in await store.get(["sessions0", "sessions19"])} == {
        "sessions0",
        "sessions19",
    }
    (hit,) = await store.query([19.0, 1.0, 2.0], 1, Filter())
    assert hit.text == "text 19"
    await store.aclose()

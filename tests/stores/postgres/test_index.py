"""The vector index: when it is built, by whom, and what searches find with it."""

from __future__ import annotations

import asyncio
import logging
import math
import random

import pytest
from store_helpers import ALL, EAST, chunk, ids

from autoplay_rag.errors import ConfigurationError
from autoplay_rag.stores import Filter
from autoplay_rag.stores.postgres import contents, indexing

COUNT, DIMENSION = 3000, 24


def vectors(count=COUNT, seed=1):
    source = random.Random(seed)
    return [[source.gauss(0, 1) for _ in range(DIMENSION)] for _ in range(count)]


def chunks(count=COUNT):
    """A third of the chunks is of the kind "chat"; each user has ten."""
    return [
        chunk(f"c{n:04}", kind="chat" if n % 3 == 0 else "actions", user_id=f"u{n // 10}")
        for n in range(count)
    ]


def nearest(question, passing, k):
    def similarity(vector):
        return sum(a * b for a, b in zip(vector, question, strict=True)) / math.hypot(*vector)

    ranked = sorted(passing, key=lambda item: -similarity(item[1]))
    return {name for name, _ in ranked[:k]}


@pytest.fixture
def quick(monkeypatch):
    """Build small indexes, soon."""
    monkeypatch.setattr(indexing, "_LEAST_ROWS", 200)
    monkeypatch.setattr(indexing, "_CALM_SECONDS", 0.05)
    monkeypatch.setattr(indexing, "_POLL_SECONDS", 0.02)


@pytest.fixture
async def store(make_pg_store):
    store = make_pg_store()
    await store.start("model-a")
    yield store
    await store.aclose()


def state(postgres, store, number=1):
    """Whether the index is complete; None if there is none."""
    rows = postgres.run(
        "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)",
        f"{store._schema}.store_vector_{number}_hnsw",
    )
    return rows[0][0] if rows else None


async def until_built(postgres, store, number=1):
    async with asyncio.timeout(40):
        while not state(postgres, store, number):  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.05)


async def test_it_is_built_once_writing_has_calmed_down(store, postgres, quick):
    await store.upsert(chunks(199), vectors(199))
    await asyncio.sleep(0)
    assert state(postgres, store) is None
    await store.upsert([chunk("last")], vectors(1))
    await until_built(postgres, store)
    await store.upsert([chunk("more")], vectors(1))
    assert await store.count() == 201


async def test_a_backfill_does_not_wait_for_it(store, postgres, quick, monkeypatch):
    monkeypatch.setattr(indexing, "_CALM_ROWS", 50)
    monkeypatch.setattr(indexing, "_CALM_SECONDS", 1.5)
    for _ in range(4):
        await store.upsert(chunks(300), vectors(300))
    assert state(postgres, store) is None
    await until_built(postgres, store)


async def test_the_server_completes_it_after_the_store_is_closed(make_pg_store, postgres, quick):
    store = make_pg_store()
    await store.start("model-a")
    await store.upsert(chunks(), vectors())
    await store.aclose()
    await until_built(postgres, store)


async def test_no_index_is_built_unless_asked_for(make_pg_store, postgres, quick):
    store = make_pg_store(index="none")
    await store.start("model-a")
    assert not await store.build_index()  # nothing is stored yet
    await store.upsert(chunks(300), vectors(300))
    await store.aclose()
    assert state(postgres, store) is None
    assert await store.build_index()
    assert state(postgres, store)
    assert await store.build_index()
    await store.drop_index()
    assert state(postgres, store) is None
    await store.aclose()


async def test_an_incomplete_index_is_built_anew(store, postgres):
    await store.upsert(chunks(300), vectors(300))
    await store.build_index()
    postgres.run(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = to_regclass(%s)",
        f"{store._schema}.store_vector_1_hnsw",
    )
    assert not state(postgres, store)
    assert len(await store.query(vectors(1)[0], 10, ALL)) == 10
    await store.build_index()
    assert state(postgres, store)


async def test_two_processes_that_build_it_at_once(make_pg_store, store, postgres, quick):
    await store.upsert(chunks(), vectors())
    other = make_pg_store(schema=store._schema)
    assert await asyncio.gather(store.build_index(), other.build_index()) == [True, True]
    await until_built(postgres, store)
    await other.aclose()


async def test_a_cancelled_build_is_completed_by_the_server(store, postgres, quick):
    await store.upsert(chunks(), vectors())
    building = asyncio.create_task(store.build_index())
    async with asyncio.timeout(30):
        while state(postgres, store) is None:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0)
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    await until_built(postgres, store)


async def test_a_build_that_fails_is_reported_and_costs_nothing(store, quick, caplog, monkeypatch):
    async def fail(*_, **__):
        raise ConfigurationError("no space")

    monkeypatch.setattr(indexing.IndexBuilder, "_build", fail)
    caplog.set_level(logging.WARNING)
    await store.upsert(chunks(300), vectors(300))
    async with asyncio.timeout(30):
        while "the vector index of 'chunks' was not built: " not in caplog.text:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.02)
    assert "no space" in caplog.text
    assert await store.count() == 300


async def test_vectors_that_cannot_be_indexed(store, quick, caplog):
    await store.upsert([chunk(f"c{n}") for n in range(200)], [[1.0] * 4001] * 200)
    with pytest.raises(ConfigurationError, match="4001 dimensions"):
        await store.build_index()
    await store.aclose()
    assert caplog.text == ""


async def test_an_emptied_store_with_an_index_takes_another_dimension(store, postgres):
    await store.upsert(chunks(300), vectors(300))
    await store.build_index()
    await store.delete([one.id for one in chunks(300)])
    await store.upsert([chunk("a")], [EAST])
    assert state(postgres, store) is None
    assert ids(await store.query(EAST, 5, ALL)) == ["a"]


async def test_the_index_goes_along_in_an_exchange(store, postgres):
    await store.upsert(chunks(300), vectors(300))
    await store.build_index()
    other = store.sibling("other")
    await other.start("model-b")
    await store.exchange("other")
    await other.start("model-a")
    found, _ = await other._opened().link.run(other._opened().contents.whole)
    assert found is not None
    assert found.indexed
    await other.aclose()


FILTERS = [
    (ALL, lambda n: True),
    (Filter(kind="chat"), lambda n: n % 3 == 0),
    (Filter(user_id="u7"), lambda n: n // 10 == 7),
    (Filter(kind="chat", user_id="u7"), lambda n: n // 10 == 7 and n % 3 == 0),
    (Filter(kind="summary"), lambda n: False),
]


@pytest.fixture
async def filled(store, postgres):
    for start in range(0, COUNT, 1000):
        part = slice(start, start + 1000)
        await store.upsert(chunks()[part], vectors()[part])
    await store.build_index()
    postgres.run(f"ANALYZE {store._schema}.store_chunk_1, {store._schema}.store_vector_1")
    return store


async def test_searches_with_the_index_find_the_nearest(filled, monkeypatch):
    monkeypatch.setattr(contents, "_LEAST_FEW", 100)
    stored = dict(zip([one.id for one in chunks()], vectors(), strict=True))
    for wanted_filter, passes in FILTERS:
        passing = [(name, vector) for name, vector in stored.items() if passes(int(name[1:]))]
        for k in (5, 40, 600):
            right = wanted = 0
            for question in vectors(3, seed=2):
                found = await filled.query(question, k, wanted_filter)
                assert len({match.id for match in found}) == len(found) == min(k, len(passing))
                scores = [match.score for match in found]
                assert scores == sorted(scores, reverse=True)
                assert {match.id for match in found} <= {name for name, _ in passing}
                right += len(nearest(question, passing, k) & {match.id for match in found})
                wanted += min(k, len(passing))
            # Half precision may exchange neighbours at the end; the index may miss some.
            assert right >= 0.95 * wanted, (wanted_filter, k)


async def test_the_index_is_used_where_it_pays(filled, postgres):
    scans = (
        "SELECT idx_scan FROM pg_stat_user_indexes WHERE schemaname = %s "
        "AND indexrelname = 'store_vector_1_hnsw'"
    )
    question = vectors(1, seed=3)[0]
    await filled.query(question, 10, Filter(user_id="u7"))
    await filled.query(question, 600, ALL)
    await filled.aclose()  # a connection that ends reports its statistics
    assert postgres.run(scans, filled._schema) == [(0,)]
    await filled.query(question, 10, ALL)
    await filled.aclose()
    async with asyncio.timeout(30):
        while postgres.run(scans, filled._schema) != [(1,)]:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.05)


async def test_what_was_filled_gets_its_index_after_an_exchange(store, postgres, quick):
    """As `pipeline.reembed` does: the copy is closed after it took the name of the store."""
    copy = store.sibling("copy")
    await copy.start("model-b")
    await copy.upsert(chunks(300), vectors(300))
    await store.exchange("copy")
    await copy.aclose()
    await until_built(postgres, store, number=2)


async def test_a_dropped_table_is_no_reason_for_a_warning(make_pg_store, quick, caplog):
    caplog.set_level(logging.WARNING)
    store = make_pg_store()
    await store.start("model-a")
    await store.upsert(chunks(300), vectors(300))
    await store.drop()
    await store.aclose()
    assert caplog.text == ""

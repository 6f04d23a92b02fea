"""A pipeline whose store is PostgreSQL: one person forgotten, damage repaired, servers that stop.

The journal is a file, or in PostgreSQL too, alone or beside a topic.
"""

from __future__ import annotations

import asyncio
import random
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from pairs import held_by, ingest, lines_of, pipeline_of, visits

from autoplay_rag.errors import StoreMismatchError, StoreUnavailableError
from autoplay_rag.ingest import retries
from autoplay_rag.kafka.address import TopicAddress
from autoplay_rag.kafka.admin import TopicAdmin
from autoplay_rag.kafka.settings import ClientSettings

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(params=["file", "postgres", "topic"])
async def journal(request, tmp_path, postgres):
    if request.param == "topic":
        broker, topic = map(request.getfixturevalue, ("broker", "topic"))
        await TopicAdmin(TopicAddress(broker.bootstrap, topic), ClientSettings({}, {})).create(1)
        return {"journal": broker.address(topic), "catalog": postgres.dsn}
    return {"journal": tmp_path / "journal.db" if request.param == "file" else postgres.dsn}


@pytest.fixture
def store(make_pg_store):
    return make_pg_store()


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    pause = retries.Pause
    monkeypatch.setattr(retries, "Pause", lambda: pause(0.02, 0.2))


async def test_from_a_payload_to_a_search_and_again_after_a_restart(journal, store):
    ledger = await ingest(store, journal, *range(20))
    assert ledger.stored == 20
    async with pipeline_of(store, journal) as pipeline:
        (hit,) = await pipeline.search("click 7\nsave 7", k=1)
        assert hit.session_id == "s7"
        assert hit.dense_score == pytest.approx(1, abs=1e-3)
        (hit,) = await pipeline.search("click 7", k=1, mode="dense", session_id="s8")
        assert hit.session_id == "s8"
        for payload in visits(*range(25)):
            await pipeline.on_actions(payload)
        await pipeline.drain()
        assert pipeline.ledger.duplicate == 20
        assert (await pipeline.verify()).clean
    assert await held_by(store) == lines_of(*range(25))


async def test_another_store_and_another_model_are_noticed(journal, store, make_pg_store):
    await ingest(store, journal, *range(10))
    with pytest.raises(StoreMismatchError, match="none of the 10 chunks"):
        await ingest(make_pg_store(schema=store._schema, table="other"), journal)
    with pytest.raises(StoreMismatchError, match="model-a"):
        await ingest(store, journal, model="model-b")
    await ingest(store, journal, model="model-b", dimension=12, rebuild=True)
    assert await held_by(store, "model-b") == lines_of(*range(10))


async def test_a_deleted_table_is_filled_again(journal, store, postgres):
    await ingest(store, journal, *range(10))
    tables = postgres.run(
        "SELECT tablename FROM pg_tables WHERE schemaname = %s AND tablename LIKE 'store_%%'",
        store._schema,
    )
    assert len(tables) == 4
    for (table,) in tables:
        postgres.run(f"DROP TABLE {store._schema}.{table}")
    with pytest.raises(StoreMismatchError, match="none of the 10 chunks"):
        await ingest(store, journal)
    await ingest(store, journal, rebuild=True)
    assert await held_by(store) == lines_of(*range(10))


async def test_nothing_of_a_forgotten_person_is_in_the_tables(
    make_pipeline, make_actions, journal, store, postgres
):
    async with make_pipeline(store, **journal) as pipeline:
        for number in range(20):
            for user in ("ann", "bob"):
                title = f"{user}private {number}"
                await pipeline.on_actions(make_actions(f"{user}{number}", title, user=user))
        await pipeline.drain()
        receipt = await pipeline.forget(user_id="ann")
        assert receipt.deleted
        assert await pipeline.search("annprivate 3", user_id="ann") == []
        assert await store.count() == 20
    rows = str(postgres.run(f"SELECT * FROM {store._schema}.store_chunk_1"))
    assert "ann" not in rows
    assert rows.count("bobprivate") == 20
    assert postgres.run(f"SELECT count(*) FROM {store._schema}.store_vector_1") == [(20,)]
    for (table,) in postgres.run(
        "SELECT tablename FROM pg_tables WHERE schemaname = %s", store._schema
    ):
        rows = str(postgres.run(f"SELECT * FROM {store._schema}.{table}"))
        assert "annprivate" not in rows
        assert "'ann'" not in rows


async def test_damage_is_found_and_repaired(journal, store, postgres):
    await ingest(store, journal, *range(12))
    table = f"{store._schema}.store_chunk_1"
    ids = sorted(one for (one,) in postgres.run(f"SELECT id FROM {table}"))
    postgres.run(f"DELETE FROM {table} WHERE id = %s", ids[0])
    postgres.run(f"UPDATE {table} SET text = text || '!' WHERE id = %s", ids[1])
    postgres.run(f"UPDATE {table} SET metadata = metadata - 'session_id' WHERE id = %s", ids[2])
    async with pipeline_of(store, journal) as pipeline:
        report = await pipeline.verify(repair=True)
        assert (report.missing, report.stale, report.extra) == (1, 2, 0)
        await pipeline.drain()
        assert (await pipeline.verify()).clean
    assert await held_by(store) == lines_of(*range(12))


@pytest.mark.slow
async def test_a_server_that_stops_and_starts_during_ingest_loses_nothing(
    own_postgres, journal, make_pg_store
):
    """A fast shutdown ends all connections, also in the middle of a transaction."""
    store = make_pg_store(dsn=own_postgres.dsn)
    restarting = threading.Event()

    def restart():
        chance = random.Random(1)
        for _ in range(3):
            restarting.wait(chance.uniform(0.2, 0.6))
            own_postgres.stop()
            own_postgres.start()

    async with pipeline_of(store, journal, max_attempts=1) as pipeline:
        restarts = asyncio.create_task(asyncio.to_thread(restart))
        sent = 0
        while not restarts.done() or sent < 60:
            for payload in visits(*range(sent, sent + 20)):
                await pipeline.on_actions(payload)
            sent += 20
            await asyncio.sleep(0.05)
        await restarts
        await pipeline.drain()
        assert pipeline.ledger.dead == 0
        assert pipeline.ledger.stored == sent
        assert pipeline.health.state == "ok"
        assert (await pipeline.verify()).clean
    assert await held_by(store) == lines_of(*range(sent))


async def test_a_server_that_is_down_is_an_outage_and_searches_by_words_go_on(
    own_postgres, journal, make_pg_store, eventually
):
    store = make_pg_store(dsn=own_postgres.dsn)
    async with pipeline_of(store, journal, max_attempts=1) as pipeline:
        await pipeline.on_actions(visits(1)[0])
        await pipeline.drain()
        own_postgres.stop()
        try:
            await pipeline.on_actions(visits(2)[0])
            await eventually(lambda: pipeline.health.state != "ok")
            assert "PostgreSQL" in str(pipeline.health.reasons)
            found = await pipeline.search("click 2", k=1)
            assert [hit.session_id for hit in found] == ["s2"]
            assert "PostgreSQL" in str(found.problem)
        finally:
            own_postgres.start()
        await pipeline.drain()
        assert pipeline.ledger.stored == 2
        assert (await pipeline.search("click 2", k=1)).problem is None
    assert await held_by(store) == lines_of(1, 2)


async def test_a_server_that_is_down_at_the_start_is_named(own_postgres, journal, make_pg_store):
    store = make_pg_store(dsn=own_postgres.dsn)
    own_postgres.stop()
    try:
        with pytest.raises(StoreUnavailableError, match="postgres on "):
            await ingest(store, journal, 1)
    finally:
        own_postgres.start()


@pytest.fixture(scope="module")
def own_postgres():
    """A server that no other test uses: these tests stop it."""
    from postgres import PostgresServer

    server = PostgresServer()
    yield server
    server.close()

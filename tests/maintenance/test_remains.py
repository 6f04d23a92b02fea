"""What the receipt of `forget` says of PostgreSQL, as journal and as store."""

from __future__ import annotations

import asyncio

import pytest

from autoplay_rag.stores import MemoryStore

pytestmark = pytest.mark.timeout(120)


async def forgotten(pipeline, make_actions):
    async with pipeline:
        for user in ("ann", "bob"):
            await pipeline.on_actions(make_actions(f"s-{user}", f"t-{user}", user=user))
        await pipeline.drain()
        receipt = await pipeline.forget(user_id="ann")
        async with asyncio.timeout(60):
            while not receipt.erased:
                await asyncio.sleep(0.05)
                receipt = await pipeline.receipt(receipt.number)
        return receipt


@pytest.fixture
def pipeline_on(make_pipeline, make_pg_store, postgres, tmp_path):
    """Make a pipeline whose journal and store are in PostgreSQL, or not."""

    def make(*, journal: bool, store: bool):
        kept = make_pg_store() if store else MemoryStore()
        return make_pipeline(kept, journal=postgres.dsn if journal else tmp_path / "j.db")

    return make


@pytest.mark.parametrize("journal", [False, True])
@pytest.mark.parametrize("store", [False, True])
async def test_what_remains(store, journal, pipeline_on, make_actions):
    receipt = await forgotten(pipeline_on(store=store, journal=journal), make_actions)
    said = " ".join(receipt.remaining)
    of_postgres = [one for one in receipt.remaining if one.startswith("PostgreSQL (")]
    # Once, also if both are in the same database.
    assert len(of_postgres) == (3 if store or journal else 0)
    for what in ("write-ahead log", "replicas", "base backups", "VACUUM FULL"):
        assert (what in said) == (store or journal)
    assert "may keep remains" not in said


async def test_the_space_of_deleted_rows_is_freed(
    make_pipeline, make_actions, make_pg_store, postgres
):
    store = make_pg_store()
    await forgotten(make_pipeline(store, journal=postgres.dsn), make_actions)
    wanted = {"payload", "chunk", "passage", "store_chunk_1", "store_vector_1"}
    async with asyncio.timeout(30):
        while True:
            rows = postgres.run(
                "SELECT relname FROM pg_stat_user_tables WHERE schemaname = %s AND vacuum_count > 0",
                store.schema,
            )
            if wanted <= {name for (name,) in rows}:
                return
            await asyncio.sleep(0.1)

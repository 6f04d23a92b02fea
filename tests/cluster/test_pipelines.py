"""Several pipelines on one journal in PostgreSQL, in one process."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager

import pytest

from autoplay_rag.ingest import partitions as partitions_module
from autoplay_rag.ingest import retries

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    pause = retries.Pause
    monkeypatch.setattr(retries, "Pause", lambda: pause(0.02, 0.2))
    monkeypatch.setattr(partitions_module, "_POLL_SECONDS", 0.2)


@pytest.fixture
def replica(make_pipeline, make_pg_store, postgres, scripted_embedder):
    """Make pipelines that share one journal and one store."""
    schema = make_pg_store()._schema

    def make(**options):
        store = make_pg_store(schema=schema)
        given = {"embedder": scripted_embedder(), **options}
        return make_pipeline(store, journal=postgres.dsn, **given)

    make.schema = schema
    return make


def partitions_of(pipeline) -> frozenset[int]:
    return pipeline._run._partitions.loaded


@asynccontextmanager
async def sharing(*pipelines):
    """Run pipelines until each has its share."""
    for pipeline in pipelines:
        await pipeline.start()
    try:
        async with asyncio.timeout(60):
            while sorted(map(len, map(partitions_of, pipelines))) != sorted(  # noqa: ASYNC110
                64 // len(pipelines) + (rank < 64 % len(pipelines))
                for rank in range(len(pipelines))
            ):
                await asyncio.sleep(0.02)
        yield
    finally:
        for pipeline in pipelines:
            await pipeline.aclose()


async def stored_lines(pipeline) -> Counter:
    chunks = [chunk async for page in pipeline._run._store.scan(500) for chunk in page]
    return Counter(line for chunk in chunks for line in chunk.text.split("\n"))


async def test_one_pipeline_has_everything(replica, make_actions):
    async with sharing(one := replica()):
        for number in range(20):
            await one.on_actions(make_actions(f"s{number % 4}", f"t{number}", at=1000.0 + number))
        await one.drain()
        assert one.ledger.stored == 20
        assert one.watermark == 20
        assert await stored_lines(one) == Counter(f"t{number}" for number in range(20))
        (hit,) = await one.search("t7", k=1)
        assert hit.session_id == "s3"


async def test_each_accepts_for_all_and_stores_its_own(replica, make_actions):
    async with sharing(one := replica(), two := replica()):
        assert not partitions_of(one) & partitions_of(two)
        for number in range(60):
            pipeline = (one, two)[number % 2]
            await pipeline.on_actions(
                make_actions(f"s{number % 10}", f"t{number}", at=1000.0 + number)
            )
        await two.drain()
        await one.drain()
        assert await stored_lines(one) == Counter(f"t{number}" for number in range(60))
        assert one.ledger.stored == two.ledger.stored == 60
        assert one.ledger.balanced
        assert one.watermark == 60
        texts = [len(one._run._embedder.requests), len(two._run._embedder.requests)]
        assert min(texts) > 0
        # Sent again to the other one: known.
        await one.on_actions(make_actions("s1", "t1", at=1001.0))
        await one.drain()
        assert one.ledger.duplicate == 1

"""Several pipelines on one journal in PostgreSQL, in one process."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import asynccontextmanager

import pytest

from autoplay_rag.errors import ConfigurationError
from autoplay_rag.ingest import partitions as partitions_module
from autoplay_rag.ingest import retries
from autoplay_rag.payloads import SummaryPayload
from autoplay_rag.stores import Chunk

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
    return pipeline._run._replica.partitions.loaded


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
        texts = [len(one._run.model.embedder.requests), len(two._run.model.embedder.requests)]
        assert min(texts) > 0
        # Sent again to the other one: known.
        await one.on_actions(make_actions("s1", "t1", at=1001.0))
        await one.drain()
        assert one.ledger.duplicate == 1


async def test_what_replaces_the_store_needs_to_be_alone(replica, scripted_embedder):
    async with sharing(one := replica()):
        with pytest.raises(ConfigurationError, match="rebuild=True needs that no other process"):
            await replica(rebuild=True).start()
        other = replica()
        await other.start()
        try:
            with pytest.raises(ConfigurationError, match="reembed needs"):
                await one.reembed(scripted_embedder())
        finally:
            await other.aclose()


async def test_the_owner_deletes_what_another_one_forgets(replica, make_actions):
    async with sharing(one := replica(), two := replica()):
        for number in range(40):
            user = ("ann", "bob")[number % 2]
            await one.on_actions(
                make_actions(f"s{number}", f"t{number}", at=1000.0 + number, user=user)
            )
        await one.drain()
        receipt = await two.forget(user_id="ann")
        assert receipt.deleted
        assert await stored_lines(one) == Counter(f"t{number}" for number in range(1, 40, 2))
        assert (await one.verify()).clean


async def test_what_another_one_forgets_while_it_is_planned_is_never_stored(
    replica, make_actions, monkeypatch
):
    planned, go = asyncio.Queue(), asyncio.Event()

    def hold(pipeline):
        record = pipeline._run._journal.record_plans

        async def held(plans, sessions):
            planned.put_nowait(pipeline)
            await go.wait()
            return await record(plans, sessions)

        monkeypatch.setattr(pipeline._run._journal, "record_plans", held)

    async with sharing(one := replica(batch_window=0.05), two := replica(batch_window=0.05)):
        hold(one)
        hold(two)
        await asyncio.gather(
            one.accept(make_actions("s", "early", at=1000.0)),
            one.accept(make_actions("s", "late", at=2000.0)),
        )
        async with asyncio.timeout(20):
            owner = await planned.get()
        receipt = await (two if owner is one else one).forget(session_id="s", until=1500.0)
        assert receipt.deleted
        go.set()
        await owner.drain()
        assert await stored_lines(one) == Counter(["late"])
        assert owner._run.model.embedder.requests == [["late"]]
        assert (await one.verify()).clean


async def test_drain_waits_for_what_a_killed_process_was_to_delete(
    replica, make_actions, make_pg_store, scripted_embedder, postgres
):
    """The killed process has all partitions until its lease ends, and has left a deletion."""
    async with sharing(one := replica()):
        await one.on_actions(make_actions("s1", "t1"))
        await one.drain()
    embedder, store = scripted_embedder(), make_pg_store(schema=replica.schema)
    await store.start(embedder.model)
    await store.upsert([Chunk("left", "left", {})], [embedder.vector("left")])
    await store.aclose()
    schema = replica.schema
    postgres.run(
        f"SET search_path TO {schema}; "
        "INSERT INTO deletion (chunk, reason, at) VALUES ('left', 'dead', 1); "
        "INSERT INTO worker (id, name, takes, started, expires) VALUES ('killed', 'killed', true, "
        "clock_timestamp(), clock_timestamp() + interval '2 s'); "
        "UPDATE partition SET owner = 'killed', epoch = epoch + 1"
    )
    async with replica() as two:
        assert await stored_lines(two) == Counter(["t1", "left"])
        await two.drain()
        assert await stored_lines(two) == Counter(["t1"])
    assert postgres.run(f"SELECT count(*) FROM {schema}.deletion") == [(0,)]


async def test_a_late_user_id_reaches_the_chunks_of_any_owner(replica, make_actions):
    async with sharing(one := replica(), two := replica()):
        for number in range(20):
            await one.on_actions(make_actions(f"s{number}", f"t{number}", at=1000.0))
        await two.drain()
        for number in range(20):
            await two.on_actions(make_actions(f"s{number}", f"u{number}", at=2000.0, user="ann"))
        await one.drain()
        found = [chunk async for page in one._run._store.scan(500) for chunk in page]
        assert len(found) == 40
        assert {chunk.metadata.get("user_id") for chunk in found} == {"ann"}


async def test_a_summary_retires_actions_that_an_earlier_owner_stored(replica, make_actions):
    async with sharing(first := replica()):
        for number in range(10):
            await first.on_actions(make_actions(f"s{number}", f"a{number}", f"b{number}"))
        await first.drain()
    options = {"summaries": "replace"}
    async with sharing(second := replica(**options), third := replica(**options)):
        for number in range(10):
            await third.on_summary(
                SummaryPayload("acme", f"s{number}", f"sum{number}", 2, forwarded_at=time.time())
            )
        await third.drain()
        async with asyncio.timeout(30):
            while await stored_lines(third) != Counter(f"sum{n}" for n in range(10)):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert (await second.verify()).clean


async def test_a_retried_letter_goes_to_its_owner(replica, make_actions, scripted_embedder):
    def refuse(texts):
        if any("poison" in text for text in texts):
            raise ValueError("poison")

    embedders = [scripted_embedder(), scripted_embedder()]
    for embedder in embedders:
        embedder.script = refuse
    first, second = (replica(embedder=embedder, max_attempts=1) for embedder in embedders)
    async with sharing(first, second):
        for number in range(10):
            await first.on_actions(make_actions(f"s{number}", f"poison{number}"))
            await second.on_actions(make_actions(f"s{number}", f"t{number}", at=3000.0))
        await second.drain()
        assert second.ledger.dead == 10
        for embedder in embedders:
            embedder.script = lambda texts: None
        assert await first.dead_letters.retry() == 10
        await first.drain()
        assert first.ledger.stored == 20
        assert first.ledger.balanced


async def test_a_pipeline_that_leaves_does_not_wait_for_others(replica, make_actions):
    first, second = replica(batch_window=1000.0), replica(batch_window=1000.0)
    async with sharing(first, second):
        for number in range(20):
            await first.on_actions(make_actions(f"s{number}", f"t{number}"))
        async with asyncio.timeout(30):
            await first.aclose()
            await second.drain()
        assert await stored_lines(second) == Counter(f"t{number}" for number in range(20))


async def test_work_runs_in_one_pipeline_and_moves_on(replica):
    running: list[str] = []
    changed = asyncio.Event()

    def work(name):
        async def read():
            running.append(name)
            changed.set()
            try:
                await asyncio.Event().wait()
            finally:
                running.remove(name)

        return read

    async with sharing(first := replica(), second := replica()):
        tasks = [asyncio.create_task(first.run_alone("stream", work("first")))]
        async with asyncio.timeout(30):
            await changed.wait()
        tasks.append(asyncio.create_task(second.run_alone("stream", work("second"))))
        changed.clear()
        assert running == ["first"]
        tasks[0].cancel()
        async with asyncio.timeout(30):
            await changed.wait()
        assert running == ["second"]
        tasks[1].cancel()
        await asyncio.wait(tasks)


async def test_a_journal_of_one_process_runs_work_at_once(make_pipeline):
    async def work():
        return "done"

    async with make_pipeline() as pipeline:
        assert await pipeline.run_alone("stream", work) == "done"


async def test_draining_a_session_reaches_its_owner(replica, make_actions):
    async with sharing(first := replica(batch_window=1000.0), replica(batch_window=1000.0)):
        for number in range(8):
            await first.on_actions(make_actions(f"s{number}", f"t{number}"))
        for number in range(8):
            await first.drain(timeout=30, session_id=f"s{number}")
        assert first.ledger.stored == 8

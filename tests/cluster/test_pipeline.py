"""A pipeline whose journal and store are both in PostgreSQL."""

from __future__ import annotations

import asyncio
import logging

import pytest
from pipelines import ScriptedEmbedder, titles
from postgres import PostgresServer

from autoplay_rag import IngestPipeline, JournalReader, follow_journal
from autoplay_rag.errors import ConfigurationError, EmbedderRejectedError
from autoplay_rag.ingest import retries
from autoplay_rag.ingest.store_copy import copy_store
from autoplay_rag.payloads import SummaryPayload
from autoplay_rag.stores import MemoryStore

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    pause = retries.Pause
    monkeypatch.setattr(retries, "Pause", lambda: pause(0.02, 0.2))


@pytest.fixture
def pipeline_of(postgres, make_pg_store):
    """Make pipelines on the same schema, as after a restart."""
    schema = make_pg_store().schema

    def make(**options):
        given = {"batch_window": 0.0, "render": titles, **options}
        embedder = given.pop("embedder", None) or ScriptedEmbedder()
        return IngestPipeline(make_pg_store(schema=schema), embedder, journal=postgres.dsn, **given)

    return make


async def test_what_was_not_stored_is_stored_after_a_restart(pipeline_of, make_actions):
    embedder = ScriptedEmbedder()

    def refuse(texts):
        raise ConnectionError

    embedder.script = refuse
    async with pipeline_of(embedder=embedder, drain_timeout=0.0) as pipeline:
        for number in range(10):
            await pipeline.on_actions(make_actions(f"s{number % 3}", f"click {number}"))
    async with pipeline_of() as pipeline:
        await pipeline.drain()
        assert pipeline.ledger.stored == pipeline.ledger.received == 10
        (hit,) = await pipeline.search("click 7", k=1)
        assert "click 7" in hit.text
        assert (await pipeline.verify()).clean


async def test_a_dead_letter_is_retried_and_discarded(pipeline_of, make_actions):
    embedder = ScriptedEmbedder()

    def refuse(texts):
        if any("bad" in text for text in texts):
            raise EmbedderRejectedError("no")

    embedder.script = refuse
    async with pipeline_of(embedder=embedder, max_attempts=1) as pipeline:
        for session, title in (("a", "good"), ("b", "bad 1"), ("c", "bad 2"), ("d", "fine")):
            await pipeline.on_actions(make_actions(session, title))
        await pipeline.drain()
        letters = await pipeline.dead_letters.list()
        assert [letter.session_id for letter in letters] == ["b", "c"]
        embedder.script = lambda texts: None
        assert await pipeline.dead_letters.retry([letters[0].id]) == 1
        assert await pipeline.dead_letters.discard([letters[1].id]) == 1
        await pipeline.drain()
        ledger = pipeline.ledger
        assert (ledger.stored, ledger.dead, ledger.discarded) == (3, 0, 1)
        assert ledger.balanced


async def test_a_summary_replaces_actions_and_they_stay_findable(pipeline_of, make_actions):
    async with pipeline_of(summaries="replace") as pipeline:
        await pipeline.on_actions(make_actions("a", "export", at=1000.0))
        await pipeline.drain()
        await pipeline.on_summary(SummaryPayload("acme", "a", "Exported a report.", 1, 2000.0))
        await pipeline.drain()
        found = await pipeline.search("export", k=5)
        assert {hit.metadata["kind"] for hit in found} == {"actions", "summary"}
        assert await pipeline._store.count() == 1
        assert pipeline.ledger.stored == 2


async def test_another_person_and_a_late_one(pipeline_of, make_actions):
    async with pipeline_of() as pipeline:
        await pipeline.on_actions(make_actions("a", "early"))
        await pipeline.drain()
        await pipeline.on_actions(make_actions("a", "later", at=2000.0, user="ann"))
        await pipeline.drain()
        # Stored before the person was known, and hers now.
        found = await pipeline.search("early", user_id="ann", k=5)
        assert "early" in {hit.text for hit in found}
        await pipeline.on_actions(make_actions("a", "another", at=3000.0, user="bob"))
        await pipeline.drain()
        found = await pipeline.search("another", user_id="bob", k=5)
        assert all("later" not in hit.text for hit in found)
        (session,) = await pipeline.sessions(user_id="bob")
        assert session.ambiguous


async def test_a_new_model(pipeline_of, make_actions):
    async with pipeline_of() as pipeline:
        for number in range(30):
            await pipeline.on_actions(make_actions(f"s{number}", f"click {number}"))
        await pipeline.drain()
        other = ScriptedEmbedder(12)
        other.model = "other"
        moving = asyncio.create_task(pipeline.reembed(other))
        await pipeline.on_actions(make_actions("s99", "click 99"))
        report = await moving
        assert report.refused == 0
        await pipeline.drain()
        assert (await pipeline.verify()).clean
        (hit,) = await pipeline.search("click 99", k=1, mode="dense")
        assert hit.text == "click 99"
    embedder = ScriptedEmbedder(12)
    embedder.model = "other"
    async with pipeline_of(embedder=embedder) as pipeline:
        assert (await pipeline.verify()).clean
        assert pipeline.ledger.stored == 31


async def test_what_is_old_is_deleted(pipeline_of, make_actions):
    async with pipeline_of(retention_days=1.0) as pipeline:
        await pipeline.on_actions(make_actions("old", "long ago", at=1000.0))
        await pipeline.drain()
    async with pipeline_of(retention_days=1.0) as pipeline:
        while await pipeline.search("long ago", k=1):  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.05)
        await pipeline.drain()
        # The owner of the session looks for deletions in the outbox every now and then.
        while await pipeline._store.count():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.05)
        # A late delivery is known.
        assert await pipeline.accept(make_actions("old", "long ago", at=1000.0)) == "duplicate"


@pytest.mark.slow
async def test_a_server_that_is_restarted_loses_and_doubles_nothing(
    make_actions, make_pg_store, caplog
):
    caplog.set_level(logging.CRITICAL)
    server = PostgresServer()
    try:
        store = make_pg_store(dsn=server.dsn)
        async with IngestPipeline(
            store, ScriptedEmbedder(), journal=server.dsn, batch_window=0.0, render=titles
        ) as pipeline:
            payloads = [make_actions(f"s{n % 7}", f"click {n}", at=1000.0 + n) for n in range(300)]
            accepting = asyncio.gather(*(pipeline.accept(payload) for payload in payloads))
            for _ in range(2):
                await asyncio.sleep(0.3)
                await asyncio.to_thread(server.stop)
                await asyncio.to_thread(server.start)
            assert await accepting == ["accepted"] * 300
            await pipeline.drain(60)
            ledger = pipeline.ledger
            assert (ledger.received, ledger.stored, ledger.duplicate) == (300, 300, 0)
            assert ledger.balanced
            assert (await pipeline.verify()).clean
            texts = [chunk.text async for page in store.scan() for chunk in page]
            lines = [line for text in texts for line in text.split("\n")]
            assert sorted(lines) == sorted(f"click {n}" for n in range(300))
    finally:
        server.close()


SECRET = "postgresql://ann:s3cret@db.test/app"


@pytest.mark.slow
async def test_closing_does_not_wait_for_a_server_that_is_gone(make_pg_store, make_actions):
    server = PostgresServer()
    try:
        pipeline = IngestPipeline(
            make_pg_store(dsn=server.dsn),
            ScriptedEmbedder(),
            journal=server.dsn,
            batch_window=0.0,
            drain_timeout=1.0,
        )
        async with pipeline:
            await pipeline.on_actions(make_actions("s1", "click"))
            await pipeline.drain()
            await asyncio.to_thread(server.stop)
            while pipeline.health.state == "ok":  # noqa: ASYNC110 - another thread sets it
                await asyncio.sleep(0.02)
            async with asyncio.timeout(60):
                await pipeline.aclose()
    finally:
        server.close()


@pytest.mark.parametrize(
    "use",
    [
        JournalReader,
        lambda dsn: follow_journal(dsn).__aenter__(),
        lambda dsn: copy_store(MemoryStore(), MemoryStore(), ScriptedEmbedder(), journal=dsn),
    ],
    ids=["reader", "follow", "copy"],
)
async def test_what_needs_a_file_says_so_without_the_password(use):
    with pytest.raises(ConfigurationError, match="journal file") as raised:
        await use(SECRET)
    assert "s3cret" not in str(raised.value)


async def test_a_backup_says_who_makes_it(pipeline_of, tmp_path):
    async with pipeline_of() as pipeline:
        with pytest.raises(ConfigurationError, match="pg_dump"):
            await pipeline.backup(tmp_path / "backup")

import asyncio

import pytest

from autoplay_rag import IngestPipeline
from autoplay_rag.errors import JournalError
from autoplay_rag.ingest.follow import follow_journal
from autoplay_rag.stores import MemoryStore


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - a file says nothing when it changes
            await asyncio.sleep(0.01)


async def test_another_process_sees_what_is_stored_what_waits_and_what_comes(
    tmp_path, embedder, make_actions, titles
):
    path = tmp_path / "journal.db"
    async with IngestPipeline(MemoryStore(), embedder, journal=path, render=titles) as pipeline:
        await pipeline.on_actions(make_actions("a", "Opened reports", user="u1"))
        await pipeline.drain()
        await pipeline.on_actions(make_actions("a", "Clicked export", user="u1"))
        async with follow_journal(path, interval=0.01) as live:
            found = live.get(user_id="u1")
            assert [event.text for event in found.events] == ["Opened reports", "Clicked export"]
            await pipeline.on_actions(make_actions("b", "Invited a colleague", user="u2"))
            await until(lambda: live.get(session_id="b"))
            await pipeline.drain()
            await pipeline.on_actions(make_actions("b", "Left", user="u2", at=2000.0))
            await until(lambda: len(live.get(session_id="b").events) == 2)
            assert len(live.get(session_id="a").events) == 2


async def test_numbers_only_grow_so_that_a_restart_is_followed(tmp_path, embedder, make_actions):
    path = tmp_path / "journal.db"
    options = {"journal": path, "journal_recent_seconds": 1e-6}
    async with IngestPipeline(MemoryStore(), embedder, **options) as pipeline:
        await pipeline.on_actions(make_actions("a", "Opened reports"))
        await pipeline.drain()
        async with follow_journal(path, interval=0.01) as live:
            await pipeline.on_actions(make_actions("b", "Clicked export"))
            await until(lambda: live.get(session_id="b"))
            await pipeline.drain()
            await pipeline._run._journal.do(lambda db: db.forget())
            await pipeline.aclose()
            await pipeline.start()
            await pipeline.on_actions(make_actions("c", "Came back"))
            await until(lambda: live.get(session_id="c"))


async def test_nothing_older_than_asked_for_is_shown(tmp_path, embedder, make_actions):
    path = tmp_path / "journal.db"
    async with IngestPipeline(MemoryStore(), embedder, journal=path) as pipeline:
        await pipeline.on_actions(make_actions("a", "Opened reports"))
        async with follow_journal(path, seconds=0.0) as live:
            assert live.get(session_id="a") is None


async def test_a_journal_that_keeps_nothing_shows_only_what_waits(tmp_path, embedder, make_actions):
    path = tmp_path / "journal.db"
    async with IngestPipeline(
        MemoryStore(), embedder, journal=path, journal_recent_seconds=0
    ) as pipeline:
        await pipeline.on_actions(make_actions("a", "Opened reports"))
        await pipeline.drain()
        await pipeline.on_actions(make_actions("b", "Clicked export"))
        async with follow_journal(path) as live:
            assert live.get(session_id="a") is None
            assert live.get(session_id="b") is not None


async def test_no_journal_is_said_at_once(tmp_path):
    with pytest.raises(JournalError, match="there is no journal"):
        async with follow_journal(tmp_path / "nowhere.db"):
            pass

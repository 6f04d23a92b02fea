"""Live sessions in another process: it sees each payload, and none twice."""

from __future__ import annotations

import asyncio
import threading

import pytest

from autoplay_rag import IngestPipeline
from autoplay_rag.errors import ConfigurationError, JournalError
from autoplay_rag.ingest.follow import follow_journal
from autoplay_rag.journal.reader import JournalReader
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
    options = {"journal": path, "keep_payloads": False}
    async with IngestPipeline(MemoryStore(), embedder, **options) as pipeline:
        await pipeline.on_actions(make_actions("a", "Opened reports"))
        await pipeline.drain()
        async with follow_journal(path, interval=0.01) as live:
            await pipeline.on_actions(make_actions("b", "Clicked export"))
            await until(lambda: live.get(session_id="b"))
            await pipeline.drain()
            await pipeline._run._journal.tidy()
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
        MemoryStore(), embedder, journal=path, keep_payloads=False
    ) as pipeline:
        await pipeline.on_actions(make_actions("a", "Opened reports"))
        await pipeline.drain()
        await pipeline.on_actions(make_actions("b", "Clicked export"))
        async with follow_journal(path) as live:
            assert live.get(session_id="a") is None
            assert live.get(session_id="b") is not None


async def test_what_a_failing_look_had_found_is_not_added_again(
    tmp_path, embedder, make_actions, monkeypatch
):
    path = tmp_path / "journal.db"
    page, failed = JournalReader.payloads, asyncio.Event()
    loop = asyncio.get_running_loop()

    def second_page_fails_once(reader, after, since):
        if len(page(reader, 0, since)) < 2:  # wait for both, so that one read finds two pages
            return []
        found = page(reader, after, since)[:1]
        if found and after and not failed.is_set():
            loop.call_soon_threadsafe(failed.set)
            raise JournalError("the disk is away")
        return found

    async with IngestPipeline(MemoryStore(), embedder, journal=path) as pipeline:
        async with follow_journal(path, interval=0.001) as live:
            monkeypatch.setattr(JournalReader, "payloads", second_page_fails_once)
            await asyncio.gather(
                *(pipeline.on_actions(make_actions("a", title)) for title in ("first", "second"))
            )
            await failed.wait()
            await until(lambda: len(live.get(session_id="a").events) > 1)
        assert [event.text for event in live.get(session_id="a").events] == ["first", "second"]


@pytest.mark.parametrize("interval", [0, -1.0, float("nan")])
async def test_an_interval_without_a_pause_is_refused(tmp_path, interval):
    with pytest.raises(ConfigurationError, match="interval"):
        async with follow_journal(tmp_path / "journal.db", interval=interval):
            pass


async def test_no_journal_is_said_at_once(tmp_path):
    with pytest.raises(JournalError, match=r"no journal found at .*; check the path"):
        async with follow_journal(tmp_path / "nowhere.db"):
            pass


def follow_until(ended, path, seen) -> None:
    """Read as another process does: with its own connections, as fast as possible."""
    reader, after = JournalReader(path), 0
    while True:
        last_look = ended.is_set()
        while found := reader.payloads(after, 0.0):
            seen.extend((seq, payload.actions[0].title) for seq, _, payload in found)
            after = found[-1][0]
        if last_look:
            return


async def test_under_load_nothing_is_missed_and_nothing_is_seen_twice_while_letters_are_retried(
    tmp_path, embedder, make_actions, titles
):
    path, ended = tmp_path / "journal.db", threading.Event()
    seen: list[tuple[int, str]] = []

    def refuse_poison(texts):
        if any("poison" in text for text in texts):
            raise ValueError("poison")

    embedder.script = refuse_poison
    options = {"journal": path, "render": titles, "batch_window": 0.0, "max_attempts": 1}
    async with IngestPipeline(MemoryStore(), embedder, **options) as pipeline:
        following = asyncio.create_task(asyncio.to_thread(follow_until, ended, path, seen))

        async def send(sender):
            for number in range(100):
                name = f"{sender}.{number}" + (" poison" if number % 10 == 0 else "")
                await pipeline.on_actions(make_actions(f"s{sender}.{number % 7}", name))

        async def retry():
            while not ended.is_set():
                await pipeline.dead_letters.retry()
                await asyncio.sleep(0.005)

        retrying = asyncio.create_task(retry())
        await asyncio.gather(*(send(sender) for sender in range(4)))
        embedder.script = lambda texts: None
        await until(lambda: pipeline.ledger.stored == 400)
        ended.set()
        await asyncio.gather(following, retrying)
    names = [name for _, name in seen]
    assert [seq for seq, _ in seen] == sorted({seq for seq, _ in seen})  # in order, none twice
    assert len(set(names)) == len(names)
    healthy = [name for name in names if "poison" not in name]
    assert len(healthy) == 360


async def test_what_is_forgotten_leaves_the_live_sessions(tmp_path, embedder, make_actions):
    path = tmp_path / "journal.db"
    async with (
        IngestPipeline(MemoryStore(), embedder, journal=path) as pipeline,
        follow_journal(path, interval=0.01) as live,
    ):
        await pipeline.on_actions(make_actions("a", "Opened reports", user="u1"))
        await pipeline.on_actions(make_actions("b", "Invited a colleague", user="u2"))
        await until(lambda: live.get(session_id="a") and live.get(session_id="b"))
        await pipeline.forget(user_id="u1")
        await until(lambda: not live.get(session_id="a"))
        await pipeline.on_actions(make_actions("b", "Left", user="u2", at=2000.0))
        await until(lambda: live.get(session_id="b") and len(live.get(session_id="b").events) == 2)
        assert live.get(session_id="a") is None
        assert live.get(user_id="u1") is None


async def test_a_retried_letter_is_not_shown_a_second_time(tmp_path, embedder, make_actions):
    path = tmp_path / "journal.db"

    def refuse_poison(texts):
        if any("poison" in text for text in texts):
            raise ValueError("poison")

    embedder.script = refuse_poison
    options = {"journal": path, "batch_window": 60.0}
    async with IngestPipeline(MemoryStore(), embedder, **options) as pipeline:
        await pipeline.on_actions(make_actions("a", "poison"))
        async with follow_journal(path, interval=0.01) as live:
            assert len(live.get(session_id="a").events) == 1  # still pending
            await pipeline.on_actions(make_actions("b", "good"))
            await pipeline.drain()
            assert pipeline.ledger.dead == 1
            embedder.script = lambda texts: None
            assert await pipeline.dead_letters.retry() == 1
            await pipeline.drain()
            await pipeline.on_actions(make_actions("c", "last"))
            await until(lambda: live.get(session_id="c"))
            assert len(live.get(session_id="a").events) == 1

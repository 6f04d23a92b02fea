"""A journal seen from beside its owner, and requests left for it."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest

from autoplay_rag import IngestPipeline
from autoplay_rag.errors import JournalError, JournalVersionError
from autoplay_rag.ingest import journal_rows
from autoplay_rag.ingest.journal_reader import JournalReader
from autoplay_rag.stores import MemoryStore


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.db"


@pytest.fixture
def pipeline(path, embedder, titles):
    """A pipeline whose `select` fails on sessions called "bad", and stores at once."""

    def select(payload):
        if payload.session_id == "bad":
            raise RuntimeError("a bug in the rule")
        return True

    return IngestPipeline(
        MemoryStore(), embedder, journal=path, render=titles, select=select, batch_window=0.0
    )


async def test_it_sees_what_is_committed_beside_the_owner(pipeline, path, embedder, make_actions):
    gate = asyncio.Event()
    embedder.script = lambda texts: wait_for(gate)
    async with asyncio.timeout(30), pipeline:
        await pipeline.on_actions(make_actions("good", "a"))
        await pipeline.on_actions(make_actions("good", "a"))
        await pipeline.on_actions(make_actions("bad", "b"))
        reader = JournalReader(path)
        status = await asyncio.to_thread(reader.status)
        ledger = status.ledger
        assert (ledger.received, ledger.pending, ledger.duplicate, ledger.dead) == (3, 1, 1, 1)
        assert ledger.balanced
        assert status.running
        assert status.queue_bytes > 100
        assert status.oldest_at is not None
        (letter,) = await asyncio.to_thread(reader.dead_letters)
        assert (letter.session_id, letter.payload.actions[0].title) == ("bad", "b")
        assert await pipeline.dead_letters.list() == [letter]
        gate.set()
        await pipeline.drain()
        status = await asyncio.to_thread(reader.status)
        assert (status.ledger.stored, status.ledger.pending, status.oldest_at) == (1, 0, None)
    status = JournalReader(path).status()  # nobody owns it now
    assert not status.running
    assert status.ledger.stored == 1


async def wait_for(event):
    await event.wait()


async def test_a_reader_in_the_middle_of_reading_holds_up_no_commit(
    pipeline, path, embedder, make_actions
):
    async with asyncio.timeout(30), pipeline:
        await pipeline.on_actions(make_actions("good", "a"))
        beside = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        beside.execute("BEGIN")
        before = beside.execute("SELECT value FROM counters WHERE name = 'received'").fetchone()
        await pipeline.on_actions(make_actions("good", "b"))
        await pipeline.drain()
        assert pipeline.ledger.stored == 2
        again = beside.execute("SELECT value FROM counters WHERE name = 'received'").fetchone()
        assert before == again == (1,)  # its moment stands still
        beside.close()


async def test_the_running_owner_carries_requests_out(pipeline, path, make_actions, eventually):
    async with asyncio.timeout(30), pipeline:
        for title in "abc":
            await pipeline.on_actions(make_actions("bad", title))
        reader = JournalReader(path)
        first, second, third = [letter.id for letter in reader.dead_letters()]
        assert await asyncio.to_thread(reader.ask, "discard", [first])
        await eventually(lambda: pipeline.ledger.discarded == 1)
        assert await asyncio.to_thread(reader.ask, "retry", [second])
        await eventually(lambda: pipeline.ledger.stored == 1)
        assert [letter.id for letter in reader.dead_letters()] == [third]


async def test_ids_are_learnt_without_reading_what_they_name(
    pipeline, path, make_actions, monkeypatch
):
    async with pipeline:
        for title in "abc":
            await pipeline.on_actions(make_actions("bad", title))
    reader = JournalReader(path)
    letters = reader.dead_letters()
    monkeypatch.setattr(journal_rows, "decode", lambda _: pytest.fail("a body was read"))
    assert reader.dead_ids() == [letter.id for letter in letters]
    assert len(letters) == 3


async def test_the_next_owner_carries_requests_out(pipeline, path, make_actions, eventually):
    async with asyncio.timeout(30):
        async with pipeline:
            for title in "abc":
                await pipeline.on_actions(make_actions("bad", title))
        reader = JournalReader(path)
        first, second, third = [letter.id for letter in reader.dead_letters()]
        assert not reader.ask("retry", [first, third])
        assert not reader.ask("discard", [])  # none is not all
        async with pipeline:
            await eventually(lambda: pipeline.ledger.stored == 2)
            assert [letter.id for letter in await pipeline.dead_letters.list()] == [second]
        assert not reader.ask("discard", None)
        async with pipeline:
            await eventually(lambda: pipeline.ledger.discarded == 1)
            assert await pipeline.dead_letters.list() == []


async def test_health_is_told_in_the_owners_words(
    pipeline, path, embedder, make_actions, eventually
):
    def fail(_texts):
        raise ConnectionRefusedError("nobody there")

    embedder.script = fail
    async with asyncio.timeout(30):
        async with pipeline:
            reader = JournalReader(path)
            assert reader.status().health == "ok"
            await pipeline.on_actions(make_actions("good", "a"))
            await embedder.requested.wait()
            await eventually(lambda: reader.status().health != "ok")
            assert reader.status().health == "embedder: ConnectionRefusedError: nobody there"
            embedder.script = lambda texts: None


@pytest.mark.parametrize("content", [b"", b"no database at all, but long enough" * 100])
def test_what_is_no_journal_is_refused_untouched(path, content):
    path.write_bytes(content)
    with pytest.raises(JournalError):
        JournalReader(path)
    assert path.read_bytes() == content


def test_another_programs_database_is_refused(path):
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    with pytest.raises(JournalError, match="no journal of this package"):
        JournalReader(path)


async def test_an_unknown_format_is_refused(path, pipeline):
    async with pipeline:
        pass
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version = 7")
    other.close()
    with pytest.raises(JournalVersionError, match="format 7"):
        JournalReader(path)


def test_no_file_is_an_error_and_makes_none(path):
    with pytest.raises(JournalError, match="there is no journal"):
        JournalReader(path)
    assert not path.exists()

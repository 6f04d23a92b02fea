"""A journal read next to its owner, and requests left for the owner."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest

from autoplay_rag import IngestPipeline
from autoplay_rag.errors import JournalError, JournalVersionError
from autoplay_rag.journal import reader as reader_module
from autoplay_rag.journal.base import Health
from autoplay_rag.journal.reader import JournalReader
from autoplay_rag.stores import MemoryStore


@pytest.fixture
def pipeline(path, embedder, titles):
    """A pipeline that stores at once; its `select` fails on sessions named "bad"."""

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
    status = JournalReader(path).status()  # it has no owner now
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
        before = beside.execute("SELECT received FROM counts").fetchone()
        await pipeline.on_actions(make_actions("good", "b"))
        await pipeline.drain()
        assert pipeline.ledger.stored == 2
        again = beside.execute("SELECT received FROM counts").fetchone()
        assert before == again == (1,)  # its snapshot does not change
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
    monkeypatch.setattr(reader_module, "dead_letter", lambda *_: pytest.fail("a body was read"))
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
        assert not reader.ask("discard", [])  # an empty list does not mean all
        async with pipeline:
            await eventually(lambda: pipeline.ledger.stored == 2)
            assert [letter.id for letter in await pipeline.dead_letters.list()] == [second]
        assert not reader.ask("discard", None)
        async with pipeline:
            await eventually(lambda: pipeline.ledger.discarded == 1)
            assert await pipeline.dead_letters.list() == []


async def test_the_reader_reports_the_owners_health(
    pipeline, path, embedder, make_actions, eventually
):
    def fail(_texts):
        raise ConnectionRefusedError("nobody there")

    embedder.script = fail
    async with asyncio.timeout(30):
        async with pipeline:
            reader = JournalReader(path)
            await eventually(lambda: reader.status().health == Health())
            await pipeline.on_actions(make_actions("good", "a"))
            await embedder.requested.wait()
            await eventually(lambda: reader.status().health.state != "ok")
            health = reader.status().health
            assert health.state == "degraded"
            assert health.reasons == ("embedder: ConnectionRefusedError: nobody there",)
            embedder.script = lambda texts: None


@pytest.mark.parametrize("content", [b"", b"no database at all, but long enough" * 100])
def test_a_file_that_is_not_a_journal_is_refused_untouched(path, content):
    path.write_bytes(content)
    with pytest.raises(JournalError):
        JournalReader(path)
    assert path.read_bytes() == content


def test_another_programs_database_is_refused(path):
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    with pytest.raises(JournalError, match="not a journal of this package"):
        JournalReader(path)


async def test_an_unknown_format_is_refused(path, pipeline):
    async with pipeline:
        pass
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version = 7")
    other.close()
    with pytest.raises(JournalVersionError, match=r"format 7, .* install the newer version"):
        JournalReader(path)
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version = 2")
    other.close()
    with pytest.raises(
        JournalVersionError, match=r"format 2, .* start a pipeline with it once to upgrade it"
    ):
        JournalReader(path)


def test_no_file_is_an_error_and_makes_none(path):
    with pytest.raises(JournalError, match=r"no journal found at .*; check the path"):
        JournalReader(path)
    assert not path.exists()


# -- concurrent with the writer ---------------------------------------------------------------


def test_it_never_waits_for_the_writer(opened, path, make_actions, entries, store):
    db = opened()
    db.accept(entries(*(make_actions("s", title) for title in "abc")))
    store(db, 1, 2, dead={2: "store: no"})
    before = JournalReader(path).status()
    with db.file.transaction():  # an open transaction with changes, on another connection
        db.queue.accept(entries(make_actions("s", "d"), first=4))
        reader = JournalReader(path)
        assert reader.status() == before
        assert [letter.id for letter in reader.dead_letters()] == [2]
        assert reader.dead_ids() == [2]
        assert [seq for seq, _, _ in reader.payloads(0, 0.0)] == [1, 3]
    db.index()
    after = JournalReader(path).status()
    assert (before.ledger.received, after.ledger.received) == (3, 4)


def test_it_changes_nothing(opened, path, make_actions, entries):
    db = opened()
    db.accept(entries(make_actions("s", "a")))
    db.close()
    before = path.read_bytes()
    reader = JournalReader(path)
    reader.status()
    reader.dead_letters()
    reader.payloads(0, 0.0)
    assert path.read_bytes() == before


def test_the_watermark_is_below_what_waits(opened, path, make_actions, entries, store):
    db = opened()
    reader = JournalReader(path)
    assert reader.status().watermark == 0
    db.accept(entries(*(make_actions("s", title) for title in "abcd")))
    assert reader.status().watermark == 0
    store(db, 1, dead={1: "store: no"})
    store(db, 3, number=2)
    assert reader.status().watermark == 1
    db.retry([1])
    assert reader.status().watermark == 1  # a retried letter never moves it back
    store(db, 2, 4, number=3)
    assert reader.status().watermark == 4
    store(db, 1, number=4)
    assert reader.status().watermark == 4


def test_payloads_are_followed_once_each_in_order(opened, path, make_actions, entries, store):
    db = opened()
    payloads = [make_actions("s", title) for title in "abcd"]
    reader = JournalReader(path)
    assert reader.payloads(0, 0.0) == []
    db.accept(entries(*payloads[:3]))
    store(db, 1)
    store(db, 2, number=2, dead={2: "store: no"})
    found = reader.payloads(0, 0.0)
    assert [(seq, payload) for seq, _, payload in found] == [(1, payloads[0]), (3, payloads[2])]
    db.accept(entries(payloads[3], first=4))
    assert [seq for seq, _, _ in reader.payloads(3, 0.0)] == [4]
    db.retry(None)
    # It keeps its number: a reader past that number does not see it again.
    assert reader.payloads(4, 0.0) == []
    assert [seq for seq, _, _ in reader.payloads(0, 0.0)] == [1, 2, 3, 4]
    at = found[0][1]
    assert len(reader.payloads(0, at)) == 4
    assert reader.payloads(0, at + 3600) == []


def test_payloads_that_were_not_kept_are_left_out(opened, path, make_actions, entries, store):
    db = opened(keep_payloads=False)
    db.accept(entries(make_actions("s", "a"), make_actions("s", "b")))
    store(db, 1)
    assert [seq for seq, _, _ in JournalReader(path).payloads(0, 0.0)] == [2]


def test_a_damaged_body_costs_that_payload_only(opened, path, make_actions, entries):
    db = opened()
    db.accept(entries(*(make_actions("s", title) for title in "abc")))
    (body,) = db.connection.execute("SELECT body FROM payload WHERE seq = 2").fetchone()
    damaged = bytes([body[0] ^ 0xFF]) + body[1:]
    db.connection.execute("UPDATE payload SET body = ? WHERE seq = 2", (damaged,))
    assert [seq for seq, _, _ in JournalReader(path).payloads(0, 0.0)] == [1, 3]

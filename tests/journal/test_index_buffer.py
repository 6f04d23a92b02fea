"""The full-text index is written later than the queue, and nobody in this process notices."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing

import pytest

from autoplay_rag import IngestPipeline
from autoplay_rag.content.passages import passage_of
from autoplay_rag.errors import JournalError
from autoplay_rag.journal import index_buffer
from autoplay_rag.journal.base import IndexEntry
from autoplay_rag.journal.index_buffer import IndexBuffer
from autoplay_rag.journal.register import register_of
from autoplay_rag.journal.selecting import Asked
from autoplay_rag.journal.sqlite import SqliteJournal
from autoplay_rag.journal.timeline import Wanted
from autoplay_rag.stores import Filter, MemoryStore

WORDS = ["invoice", "refund", "export", "webhook", "password"]


@pytest.fixture(autouse=True)
def never_due(monkeypatch):
    """Only a reader or an operation has the index written."""
    monkeypatch.setattr(index_buffer, "_MOST_SECONDS", 600.0)


@pytest.fixture
async def journal(path):
    journal = SqliteJournal(
        path, on_entry=lambda entry, outcome: None, on_returned=lambda back: None
    )
    await journal.open()
    yield journal
    await journal.close()


@pytest.fixture
def accept(journal, make_actions, entry):
    """Accept a payload for each text, one after the other, each in a session of its own."""

    async def accept(texts=WORDS, first=1):
        for seq, text in enumerate(texts, first):
            payload = make_actions(f"s{seq}", f"Opened the {text}", user="ann")
            assert await journal.accept(entry(payload, seq)) == "accepted"

    return accept


@pytest.fixture
def killed(journal, accept, copied, path):
    """Return the journal of a process that was killed after it had accepted, but not indexed."""

    async def killed(indexed_before=0):
        await accept(["old page"] * indexed_before)
        await found(journal, "old")
        await accept(first=indexed_before + 1)
        return copied(path)

    return killed


def indexed(path):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT count(*) FROM passage").fetchone()[0]


async def found(journal, word):
    await journal.finder.scope(Filter().conditions())  # a search begins with it
    result = await journal.finder.find({word: [word]}, (), Filter().conditions(), 10)
    return sorted(seq for seq, _ in result.passages)


async def test_a_search_finds_at_once_what_is_indexed_together(path, journal, accept):
    await accept()
    assert indexed(path) == 0
    assert await found(journal, "refund") == [2]
    assert indexed(path) == len(WORDS)


async def test_a_list_has_what_was_accepted(journal, accept):
    await accept()
    total, listed = await journal.timeline.sessions(Wanted(user_id="ann"), 3, None)
    assert (total, len(listed)) == (len(WORDS), 3)


async def test_an_operation_sees_what_was_accepted_with_it(journal, accept, make_actions, entry):
    tables = journal._tables
    last = journal.accept(entry(make_actions("s1", "Opened the invoice"), 1))
    count = await journal._writer.run(tables.file.scalar, "SELECT count(*) FROM visit")
    assert (last.done(), count) == (True, 1)


async def test_many_do_not_wait_for_the_time(path, accept):
    await accept([f"page {number}" for number in range(513)])
    assert indexed(path) == 512


async def test_another_process_finds_them_soon(path, accept, monkeypatch):
    monkeypatch.setattr(index_buffer, "_MOST_SECONDS", 0.05)
    await accept()
    async with asyncio.timeout(10):
        while indexed(path) < len(WORDS):  # noqa: ASYNC110 - it is in the journal
            await asyncio.sleep(0.01)


async def test_closing_writes_the_index(path, journal, accept):
    await accept()
    await journal.close()
    assert indexed(path) == len(WORDS)


@pytest.mark.parametrize("before", [0, 1, 300])
async def test_after_a_kill_the_next_start_indexes_the_rest(killed, embedder, make_actions, before):
    copy = await killed(before)
    assert indexed(copy) == before
    options = {"journal": copy, "batch_window": 600, "drain_timeout": 10}
    async with IngestPipeline(MemoryStore(), embedder, **options) as pipeline:
        await pipeline.on_actions(make_actions("new", "Opened the new page"))
        for number, word in enumerate(WORDS, before + 1):
            hits = await pipeline.search(word, mode="text")
            assert {hit.session_id for hit in hits} == {f"s{number}"}
    assert indexed(copy) == before + len(WORDS) + 1


async def test_what_a_kill_left_unindexed_is_forgotten(killed, embedder):
    options = {"journal": await killed(), "batch_window": 600, "drain_timeout": 10}
    async with IngestPipeline(MemoryStore(), embedder, **options) as pipeline:
        receipt = await pipeline.forget(user_id="ann")
        assert receipt.payloads == len(WORDS)
        for word in WORDS:
            assert not await pipeline.search(word, mode="text")


async def test_a_restored_copy_forgets_also_what_it_had_not_indexed(
    journal, killed, path, embedder
):
    copy = await killed(2)  # of the same person
    asked = Asked(user_id="ann")
    selected, _ = await journal.erasures.select(asked)
    assert await journal.erasures.begin(asked, selected, block=False)
    async with IngestPipeline(
        MemoryStore(), embedder, journal=copy, erasure_register=register_of(path)
    ) as pipeline:
        assert (await pipeline.sessions()).total == 0
        for word in [*WORDS, "old"]:
            assert not await pipeline.search(word, mode="text")


async def test_an_index_without_room_stops_nothing_else(path, journal, accept, monkeypatch):
    fulltext, texts = journal._tables.fulltext, [f"word{seq} " * 200 for seq in range(50)]
    most = 1

    def write(entries):
        fulltext.file.connection.execute(f"PRAGMA max_page_count = {most}").fetchone()
        fulltext.add_missing(entries)

    monkeypatch.setattr(fulltext.buffer, "_write", write)
    await accept(texts)
    assert await journal.dead_letters(10) == []
    assert await found(journal, "word7") == []
    asked = Asked(user_id="ann")
    selected, _ = await journal.erasures.select(asked)
    with pytest.raises(JournalError, match="nothing was forgotten"):
        await journal.erasures.begin(asked, selected, block=False)
    most = 2**20
    assert await found(journal, "word7") == [8]
    assert indexed(path) == len(texts)


async def test_an_entry_that_cannot_be_written_keeps_no_other_out(
    path, journal, accept, monkeypatch, caplog
):
    fulltext = journal._tables.fulltext

    def refuses_one(entries):
        if any(one.seq == 2 for one in entries):
            raise sqlite3.IntegrityError("refused")
        fulltext.add_missing(entries)

    monkeypatch.setattr(fulltext.buffer, "_write", refuses_one)
    await accept()
    assert await found(journal, "export") == [3]
    assert await found(journal, "refund") == []
    assert indexed(path) == len(WORDS) - 1
    assert "a payload is not found by its words: IntegrityError: refused" in caplog.text
    monkeypatch.undo()
    await journal._writer.run(fulltext.reindex)


async def test_a_failed_write_is_tried_again_later_only(journal, accept, monkeypatch):
    """With 512 waiting, it is tried at once, but not again and again."""
    tries = []

    def full(entries):
        tries.append(len(entries))
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    monkeypatch.setattr(journal._tables.fulltext.buffer, "_write", full)
    await accept([f"page {number}" for number in range(600)])
    assert tries == [512]
    monkeypatch.undo()


async def test_the_time_counts_from_the_first(monkeypatch, make_actions):
    """Payloads that follow one another in less than the time do not put the write off."""
    now = 0.0
    monkeypatch.setattr(index_buffer.time, "monotonic", lambda: now)
    monkeypatch.setattr(index_buffer, "_MOST_SECONDS", 1.0)
    buffer = IndexBuffer(lambda entries: None)
    for now in (0.0, 0.75):
        buffer.add(
            [IndexEntry(int(now * 4), 1, "acme", None, passage_of(make_actions("s1", "page")))]
        )
    assert buffer.seconds_left() == 0.25
    buffer.put_off()
    assert buffer.seconds_left() == 1.0
    buffer.write(buffer.seqs)
    buffer.drop(buffer.seqs)
    assert (bool(buffer), buffer.seconds_left()) == (False, None)

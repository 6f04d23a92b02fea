"""The full-text index is written later than the queue, and nobody in this process notices."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing

import pytest

from autoplay_rag import IngestPipeline
from autoplay_rag.journal import index_buffer
from autoplay_rag.journal.fulltext import FullTextTables
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


async def until_found(pipeline, word):
    async with asyncio.timeout(10):
        while not (hits := await pipeline.search(word, mode="text")):  # noqa: ASYNC110 - in the journal
            await asyncio.sleep(0.01)
    return {hit.session_id for hit in hits}


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
    await accept([f"page {number}" for number in range(257)])
    assert indexed(path) == 256


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
            assert await until_found(pipeline, word) == {f"s{number}"}
    assert indexed(copy) == before + len(WORDS) + 1
    async with IngestPipeline(MemoryStore(), embedder, **options):
        pass  # a start without a rest
    with closing(sqlite3.connect(copy)) as connection:
        kept = dict(connection.execute("SELECT name, value FROM meta"))
    assert not {"index_below", "index_above"} & kept.keys()


async def test_what_a_kill_left_unindexed_is_forgotten(killed, embedder):
    options = {"journal": await killed(), "batch_window": 600, "drain_timeout": 10}
    async with IngestPipeline(MemoryStore(), embedder, **options) as pipeline:
        receipt = await pipeline.forget(user_id="ann")
        assert receipt.payloads == len(WORDS)
        for word in WORDS:
            assert not await pipeline.search(word, mode="text")


async def test_an_index_that_cannot_be_written_stops_nothing_else(
    path, journal, accept, monkeypatch
):
    add_missing = FullTextTables.add_missing
    failures = iter([sqlite3.OperationalError("no space")] * 3)

    def fails(self, entries):
        if error := next(failures, None):
            raise error
        add_missing(self, entries)

    monkeypatch.setattr(FullTextTables, "add_missing", fails)
    await accept()
    assert await journal.dead_letters(10, 0) == []  # the first failure
    for _ in range(2):
        assert await found(journal, "refund") == []
    assert await found(journal, "refund") == [2]
    assert indexed(path) == len(WORDS)

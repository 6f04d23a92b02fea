"""The single writer: who may write, what is committed together, what callers get."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import os
import random
import sqlite3
import sys
import threading
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from autoplay_rag import IngestPipeline
from autoplay_rag.errors import JournalError, JournalLockedError, PipelineClosedError
from autoplay_rag.journal import file as journal_file
from autoplay_rag.journal.base import Health
from autoplay_rag.journal.catalog import CatalogTables
from autoplay_rag.journal.file import JournalFile
from autoplay_rag.journal.queue import QueueTables
from autoplay_rag.journal.sqlite import SqliteJournal
from autoplay_rag.stores import MemoryStore

HOLDER = Path(__file__).with_name("journal_holder.py")


@pytest.fixture
async def opened(tmp_path):
    """Open journals at one path; close those that a test leaves open."""
    journals = []

    async def open_(
        path=tmp_path / "journal.db",
        on_entry=lambda entry, outcome: None,
        on_returned=lambda back: None,
        max_bytes=2**30,
    ):
        journal = SqliteJournal(
            path, max_bytes=max_bytes, on_entry=on_entry, on_returned=on_returned
        )
        async with asyncio.timeout(10):
            await journal.open()
        journals.append(journal)
        return journal

    yield open_
    for journal in journals:
        async with asyncio.timeout(10):
            await journal.close()


@pytest.fixture
def commits(monkeypatch):
    """A list with one element per commit."""
    found = []
    transaction = JournalFile.transaction

    def counted(file):
        found.append(1)
        return transaction(file)

    monkeypatch.setattr(JournalFile, "transaction", counted)
    return found


class Held:
    """Keeps the writer busy until the end of the block, so that calls accumulate."""

    def __init__(self, journal):
        self._go = threading.Event()
        self._busy = threading.Event()
        self._work = asyncio.ensure_future(run(journal, self._wait))

    def _wait(self):
        self._busy.set()
        self._go.wait(10)

    async def __aenter__(self):
        await asyncio.to_thread(self._busy.wait, 10)

    async def __aexit__(self, *_):
        self._go.set()
        await self._work


def run(journal, operation, *arguments, **options):
    """Run an operation on the writer thread, in a transaction."""
    return journal._writer.run(operation, *arguments, **options)


def limit_pages(journal, pages):
    journal._tables.file.connection.execute(f"PRAGMA max_page_count = {pages}")


@pytest.fixture
def many(make_actions, entry):
    """Make entries with one session each."""

    def make(count, first=1, size=1):
        return [
            entry(make_actions(f"s{seq}", "x" * size), seq) for seq in range(first, first + count)
        ]

    return make


@asynccontextmanager
async def holder(path):
    """Another process that opens the journal; yields the process and its output."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(HOLDER),
        str(path),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(30):
            yield process, (await process.stdout.readline()).decode().strip()
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


# -- commits ----------------------------------------------------------------------------------


async def test_a_caller_that_awaits_each_has_each_committed(opened, commits, many):
    journal = await opened()
    commits.clear()
    for entry in many(20):
        assert await journal.accept(entry) == "accepted"
    assert len(commits) == 20
    assert journal.counts["received"] == 20


async def test_what_gathers_while_the_writer_is_busy_is_committed_together(opened, commits, many):
    journal = await opened()
    commits.clear()
    async with Held(journal):
        futures = [journal.accept(entry) for entry in many(600)]
    assert await asyncio.gather(*futures) == ["accepted"] * 600
    assert len(commits) == 1 + 3 + 1  # at most 256 per commit, and 512 wait for the index


async def test_large_payloads_do_not_gather_without_end(opened, commits, many):
    journal = await opened()
    commits.clear()
    async with Held(journal):
        futures = [journal.accept(e) for e in many(6, size=1_100_000)]
    await asyncio.gather(*futures)
    assert len(commits) == 1 + 3  # title and description: two payloads are 4 MB


async def test_entries_are_reported_in_order_before_their_futures_end(opened, many):
    told = []
    journal = await opened(on_entry=lambda entry, outcome: told.append((entry.seq, outcome)))
    made = many(300)
    again = [dataclasses.replace(one, seq=301 + i) for i, one in enumerate(made[:5])]
    ended = []
    futures = [journal.accept(entry) for entry in [*made, *again]]
    for seq, future in enumerate(futures, 1):
        future.add_done_callback(lambda _, seq=seq: ended.append((seq, len(told) >= seq)))
    outcomes = await asyncio.gather(*futures)
    await asyncio.sleep(0)
    assert outcomes == ["accepted"] * 300 + ["duplicate"] * 5
    assert told == [
        *((seq, "accepted") for seq in range(1, 301)),
        *((seq, "duplicate") for seq in range(301, 306)),
    ]
    assert ended[:300] == [(seq, True) for seq in range(1, 301)]


async def test_cancelled_callers_lose_nothing(opened, many):
    told = []
    journal = await opened(on_entry=lambda entry, outcome: told.append(entry.seq))

    async def call(entry):
        await journal.accept(entry)

    async with Held(journal):
        tasks = [asyncio.create_task(call(entry)) for entry in many(50)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.wait(tasks[::2])
    await asyncio.gather(*tasks[1::2])
    assert told == list(range(1, 51))
    assert len(await journal.waiting(0, 99)) == 50


async def test_what_follows_work_happens_also_if_its_caller_was_cancelled(opened):
    journal = await opened()
    followed = []
    async with Held(journal):
        task = asyncio.create_task(run(journal, lambda: 42, then=followed.append))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    await journal.known()
    assert task.cancelled()
    assert followed == [42]


async def test_what_follows_work_comes_after_the_callers_of_earlier_work(opened):
    journal = await opened()
    order = []

    async def call(name, **options):
        await run(journal, lambda: None, **options)
        order.append(name)

    async with Held(journal):
        tasks = [asyncio.create_task(call("first"))]
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(call("second", then=lambda _: order.append("then"))))
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert order == ["first", "then", "second"]


async def test_a_failing_operation_does_not_affect_others(opened, many):
    journal = await opened()

    def fail():
        raise RuntimeError("a bug")

    async with Held(journal):
        before = journal.accept(many(1)[0])
        bug = asyncio.ensure_future(run(journal, fail))
        after = journal.accept(many(1, first=2)[0])
        await asyncio.sleep(0)
    with pytest.raises(JournalError, match="RuntimeError: a bug") as caught:
        await bug
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert [await before, await after] == ["accepted", "accepted"]
    assert journal.counts["received"] == 2


async def test_a_base_exception_does_not_end_the_writer(opened, many):
    """What an extension written in Rust raises."""

    class Panic(BaseException):
        pass

    journal = await opened()

    def fail():
        raise Panic

    with pytest.raises(JournalError, match="Panic"):
        await run(journal, fail)
    assert await journal.accept(many(1)[0]) == "accepted"


async def test_while_another_program_holds_the_file_everybody_waits(  # noqa: PLR0917 - fixtures
    opened, many, tmp_path, monkeypatch, eventually, caplog
):
    monkeypatch.setattr(journal_file, "_LOCKED_SECONDS", 0.01)
    journal = await opened()
    with closing(sqlite3.connect(tmp_path / "journal.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        futures = [journal.accept(entry) for entry in many(20)]
        await eventually(lambda: journal.problem)
        assert "holds the lock" in journal.problem
        assert not any(future.done() for future in futures)
        other.execute("ROLLBACK")
    assert await asyncio.gather(*futures) == ["accepted"] * 20
    assert journal.problem is None
    assert caplog.text.count("holds the lock") == 1


async def test_closing_does_not_wait_for_another_program(opened, many, tmp_path, monkeypatch):
    monkeypatch.setattr(journal_file, "_LOCKED_SECONDS", 0.01)
    journal = await opened()
    with closing(sqlite3.connect(tmp_path / "journal.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        future = journal.accept(many(1)[0])
        await journal.close()
        with pytest.raises(JournalError, match="locked"):
            await future
    assert journal.counts["overflow"] == 1


# -- limits -----------------------------------------------------------------------------------


async def test_a_full_disk_is_overflow_for_payloads_and_an_error_for_the_rest(
    opened, make_actions, entry
):
    journal = await opened()
    noise = random.Random(1).randbytes  # does not compress
    small = entry(make_actions("s1", "x"), 1)
    large, later = (entry(make_actions(f"s{i}", noise(50_000).hex()), i) for i in (2, 3))
    again = dataclasses.replace(small, seq=4)
    assert await journal.accept(small) == "accepted"

    def limit(pages):
        return run(journal, limit_pages, journal, pages)

    await limit(await run(journal, journal._tables.file.scalar, "PRAGMA page_count"))
    async with Held(journal):
        futures = [journal.accept(large), journal.accept(again)]
    assert await asyncio.gather(*futures) == ["overflow", "duplicate"]
    assert journal.counts["overflow"] == 1
    with pytest.raises(JournalError, match=r"could not be used: .* full"):
        await journal.note_health(Health("degraded", ("x" * 100_000,)))
    await limit(1_000_000)
    assert await journal.accept(large) == "accepted"
    assert await journal.accept(later) == "accepted"
    assert (journal.counts["received"], journal.counts["overflow"]) == (5, 1)


async def test_what_the_disk_refuses_for_another_reason_is_counted_and_raised(
    opened, many, monkeypatch
):
    """SQLite does not report an exceeded quota or file size limit as a full disk."""
    journal = await opened()

    def refuse(self, entries, bodies):
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(QueueTables, "accept", refuse)
        with pytest.raises(JournalError, match="disk I/O error"):
            await journal.accept(many(1)[0])
    assert (journal.counts["received"], journal.counts["overflow"]) == (1, 1)
    assert await journal.accept(many(1)[0]) == "accepted"
    assert (journal.counts["received"], journal.counts["overflow"]) == (2, 1)


async def test_a_journal_in_memory_works_as_one_on_disk(opened, many):
    journal = await opened(path=None, max_bytes=700)
    outcomes = [await journal.accept(entry) for entry in many(3)]
    assert outcomes == ["accepted", "overflow", "overflow"]


# -- one writer only --------------------------------------------------------------------------


async def test_a_second_process_is_refused_with_the_first_ones_number(opened, tmp_path):
    await opened()
    async with holder(tmp_path / "journal.db") as (_, said):
        assert said.startswith("locked: ")
        assert f"in use by process {os.getpid()}" in said


async def test_a_second_journal_of_one_process_is_refused(opened):
    await opened()
    with pytest.raises(JournalLockedError):
        await opened()


async def test_a_killed_owner_blocks_no_other(opened, tmp_path):
    path = tmp_path / "journal.db"
    async with holder(path) as (process, said):
        assert said == "open"
        with pytest.raises(JournalLockedError, match=f"process {process.pid}"):
            await opened()
        process.kill()
        await process.wait()
        journal = await opened()
        assert journal._tables.file.unclean


async def test_an_owner_that_ends_in_good_order_leaves_a_clean_journal(opened, tmp_path):
    async with holder(tmp_path / "journal.db") as (process, said):
        assert said == "open"
        process.stdin.close()
        await process.wait()
    journal = await opened()
    assert not journal._tables.file.unclean
    assert not (tmp_path / "journal.db.damaged").exists()


# -- opening and closing ----------------------------------------------------------------------


async def test_what_was_handed_over_before_closing_is_carried_out(opened, tmp_path, many):
    journal = await opened()
    async with Held(journal):
        futures = [journal.accept(entry) for entry in many(400)]
        closing = asyncio.create_task(journal.close())
        await asyncio.sleep(0)
    await closing
    assert [future.result() for future in futures] == ["accepted"] * 400
    again = await opened()
    assert again.counts["pending"] == 400


async def test_a_closed_journal_refuses_instead_of_never_answering(opened, many):
    journal = await opened()
    await journal.close()
    with pytest.raises(PipelineClosedError):
        await journal.dead_letters(1)
    with pytest.raises(PipelineClosedError):
        journal.accept(many(1)[0])


async def test_opening_that_is_cancelled_leaves_no_lock(opened, monkeypatch):
    opening, go = threading.Event(), threading.Event()
    original = JournalFile.__init__

    def slow(self, *args, **options):
        opening.set()
        go.wait(10)
        original(self, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(JournalFile, "__init__", slow)
        task = asyncio.create_task(opened())
        await asyncio.to_thread(opening.wait, 10)
        task.cancel()
        await asyncio.wait([task])
        (thread,) = [t for t in threading.enumerate() if t.name == "autoplay-journal"]
        go.set()
        await asyncio.to_thread(thread.join, 10)
    assert task.cancelled()
    await opened()


async def test_opening_that_fails_leaves_no_lock_and_no_thread(opened, tmp_path):
    with sqlite3.connect(tmp_path / "journal.db") as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    with pytest.raises(JournalError, match="another program's"):
        await opened()
    (tmp_path / "journal.db").unlink()
    await opened()
    gc.collect()
    assert sum(t.name == "autoplay-journal" for t in threading.enumerate()) == 1


async def test_a_folder_that_cannot_be_made_is_an_error_that_names_the_journal(opened, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match=r"journal\.db cannot be opened"):
        await opened(path=tmp_path / "file" / "journal.db")
    await opened(path=tmp_path / "made" / "on" / "the" / "way" / "journal.db")


@pytest.mark.parametrize("content", [b"my notes", b"SQLite format 3\0 but nothing more"])
async def test_a_file_that_never_was_a_journal_is_refused_and_left_alone(
    tmp_path, embedder, content
):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    for _ in range(2):  # the first refusal must not turn it into a journal
        pipeline = IngestPipeline(MemoryStore(), embedder, journal=path)
        with pytest.raises(JournalError, match="is not a journal"):
            await pipeline.start()
    assert [found.name for found in tmp_path.iterdir()] == ["notes.txt"]
    assert path.read_bytes() == content


# -- failures ---------------------------------------------------------------------------------


async def test_a_failing_operation_of_a_group_is_rolled_back_alone(opened, many, monkeypatch):
    journal = await opened()
    set_meta = JournalFile.set_meta

    def fail_half_way(file, name, value):
        set_meta(file, name, value)
        if value == "store-bad":
            raise RuntimeError("a bug")

    monkeypatch.setattr(JournalFile, "set_meta", fail_half_way)
    async with Held(journal):
        before = journal.accept(many(1)[0])
        good = asyncio.ensure_future(journal.note_tokens("2026-01-31", 5))
        bad = asyncio.ensure_future(journal.note_store("store-bad", 1, "m"))
        after = journal.accept(many(1, first=2)[0])
        await asyncio.sleep(0)
    with pytest.raises(JournalError, match="RuntimeError: a bug"):
        await bad
    await good
    assert [await before, await after] == ["accepted", "accepted"]
    assert await journal.tokens("2026-01-31") == 5
    assert (await journal.notes()).store_id == ""
    assert (journal.counts["received"], journal.counts["pending"]) == (2, 2)


async def test_counts_of_a_failing_operation_are_taken_back(opened, many, monkeypatch):
    journal = await opened()
    made = many(6)
    insert = QueueTables._insert_if_new

    def fail_on_the_fourth(tables, row_of):
        fresh = insert(tables, row_of)
        tables.file.counts["received"] += 1000
        if 4 in row_of:
            raise RuntimeError("a bug")
        tables.file.counts["received"] -= 1000
        return fresh

    monkeypatch.setattr(QueueTables, "_insert_if_new", fail_on_the_fourth)
    async with Held(journal):
        futures = [journal.accept(one) for one in made]
    outcomes = await asyncio.gather(*futures, return_exceptions=True)
    assert outcomes[:3] + outcomes[4:] == ["accepted"] * 5
    assert isinstance(outcomes[3], JournalError)
    assert (journal.counts["received"], journal.counts["pending"]) == (5, 5)
    assert [seq for seq, _, _ in await journal.waiting(0, 9)] == [1, 2, 3, 5, 6]


async def test_tables_that_cannot_be_read_are_an_error_that_leaves_no_lock(opened, monkeypatch):
    def fail(catalog, file):
        raise sqlite3.DatabaseError("database disk image is malformed")

    with monkeypatch.context() as patched:
        patched.setattr(CatalogTables, "__init__", fail)
        with pytest.raises(JournalError, match=r"journal\.db cannot be opened: .*malformed"):
            await opened()
    gc.collect()  # an open connection would warn
    await opened()


async def test_the_loop_has_its_turn_between_many_reports(opened, many):
    told, turns = [], []
    journal = await opened(on_entry=lambda entry, outcome: told.append(entry.seq))

    async def watch():
        while len(told) < 200:
            turns.append(len(told))
            await asyncio.sleep(0)

    async with Held(journal):
        futures = [journal.accept(entry) for entry in many(200)]
        watching = asyncio.create_task(watch())
    await asyncio.gather(*futures)
    await watching
    assert told == list(range(1, 201))
    assert {50, 100, 150} <= {*turns}


async def test_closing_reports_all(opened, many):
    told = []
    journal = await opened(on_entry=lambda entry, outcome: told.append(entry.seq))
    futures = [journal.accept(entry) for entry in many(200)]
    await journal.close()
    assert told == list(range(1, 201))
    assert all(future.done() for future in futures)

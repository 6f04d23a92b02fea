"""The journal beside the event loop: who may write it, what goes together, what callers see."""

from __future__ import annotations

import asyncio
import gc
import os
import sqlite3
import sys
import threading
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from autoplay_rag.ingest.journal import Journal
from autoplay_rag.ingest.journal_db import JournalDb

from autoplay_rag import IngestPipeline
from autoplay_rag.errors import JournalError, JournalLockedError, PipelineClosedError
from autoplay_rag.ingest import journal_file
from autoplay_rag.ingest.intake import Intake
from autoplay_rag.stores import MemoryStore

HOLDER = Path(__file__).with_name("journal_holder.py")


@pytest.fixture
async def opened(tmp_path):
    """Opens journals at one path; closes those a test leaves open."""
    journals = []

    async def open_(path=tmp_path / "journal.db", on_accepted=lambda entry: None, max_bytes=2**30):
        journal = Journal(path, durability="normal", max_bytes=max_bytes, on_accepted=on_accepted)
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
    """The number of commits so far, as a list that grows."""
    found = []
    transaction = JournalDb.transaction

    def counted(db):
        found.append(1)
        return transaction(db)

    monkeypatch.setattr(JournalDb, "transaction", counted)
    return found


class Held:
    """Keeps the writer busy until it is let go, so that what is handed over gathers."""

    def __init__(self, journal):
        self._go = threading.Event()
        self._busy = threading.Event()
        self._work = asyncio.ensure_future(journal.do(self._wait))

    def _wait(self, _db):
        self._busy.set()
        self._go.wait(10)

    async def __aenter__(self):
        await asyncio.to_thread(self._busy.wait, 10)

    async def __aexit__(self, *_):
        self._go.set()
        await self._work


def entries(make_actions, count, first=1, size=1):
    intake = Intake(None, None)
    return [
        intake.entry(make_actions(f"s{seq}", "x" * size), seq)
        for seq in range(first, first + count)
    ]


@asynccontextmanager
async def holder(path):
    """Another process that opens the journal; yields what it says."""
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


async def test_a_caller_that_awaits_each_has_each_committed(opened, commits, make_actions):
    journal = await opened()
    for entry in entries(make_actions, 20):
        assert await journal.accept(entry) == "accepted"
    assert len(commits) == 20
    assert journal.counters["received"] == 20


async def test_what_gathers_while_the_writer_is_busy_is_committed_together(
    opened, commits, make_actions
):
    journal = await opened()
    async with Held(journal):
        futures = [journal.accept(entry) for entry in entries(make_actions, 600)]
    assert await asyncio.gather(*futures) == ["accepted"] * 600
    assert len(commits) == 1 + 3  # at most 256 together


async def test_large_payloads_do_not_gather_without_end(opened, commits, make_actions):
    journal = await opened()
    async with Held(journal):
        futures = [journal.accept(e) for e in entries(make_actions, 6, size=1_100_000)]
    await asyncio.gather(*futures)
    assert len(commits) == 1 + 3  # title and description: two of them are 4 MB


async def test_accepted_entries_are_told_in_order_before_their_futures_end(opened, make_actions):
    told = []
    journal = await opened(on_accepted=lambda entry: told.append(entry.seq))
    made = entries(make_actions, 300)
    ended = []
    futures = [journal.accept(entry) for entry in [*made, *made[:5]]]
    for seq, future in enumerate(futures, 1):
        future.add_done_callback(lambda _, seq=seq: ended.append((seq, seq in told)))
    outcomes = await asyncio.gather(*futures)
    await asyncio.sleep(0)
    assert outcomes == ["accepted"] * 300 + ["duplicate"] * 5
    assert told == list(range(1, 301))
    assert ended[:300] == [(seq, True) for seq in range(1, 301)]


async def test_cancelled_callers_lose_nothing(opened, make_actions):
    told = []
    journal = await opened(on_accepted=lambda entry: told.append(entry.seq))

    async def call(entry):
        await journal.accept(entry)

    async with Held(journal):
        tasks = [asyncio.create_task(call(entry)) for entry in entries(make_actions, 50)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.wait(tasks[::2])
    await asyncio.gather(*tasks[1::2])
    assert told == list(range(1, 51))
    assert await journal.do(lambda db: db.count_waiting(99)) == 50


async def test_what_follows_work_happens_also_if_its_caller_was_cancelled(opened):
    journal = await opened()
    followed = []
    async with Held(journal):
        task = asyncio.create_task(journal.do(lambda db: 42, followed.append))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    await journal.do(lambda db: None)
    assert task.cancelled()
    assert followed == [42]


async def test_one_that_fails_fails_alone(opened, make_actions):
    journal = await opened()

    def fail(_db):
        raise RuntimeError("a bug")

    async with Held(journal):
        before = journal.accept(entries(make_actions, 1)[0])
        bug = asyncio.ensure_future(journal.do(fail))
        after = journal.accept(entries(make_actions, 1, first=2)[0])
        await asyncio.sleep(0)
    with pytest.raises(JournalError, match="RuntimeError: a bug") as caught:
        await bug
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert [await before, await after] == ["accepted", "accepted"]
    assert journal.counters["received"] == 2


async def test_what_is_no_exception_ends_no_writer(opened, make_actions):
    """As extensions written in Rust raise it."""

    class Panic(BaseException):
        pass

    journal = await opened()

    def fail(_db):
        raise Panic

    with pytest.raises(JournalError, match="Panic"):
        await journal.do(fail)
    assert await journal.accept(entries(make_actions, 1)[0]) == "accepted"


async def test_while_another_program_holds_the_file_everybody_waits(  # noqa: PLR0917 - fixtures
    opened, make_actions, tmp_path, monkeypatch, eventually, caplog
):
    monkeypatch.setattr(journal_file, "_LOCKED_SECONDS", 0.01)
    journal = await opened()
    with closing(sqlite3.connect(tmp_path / "journal.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        futures = [journal.accept(entry) for entry in entries(make_actions, 20)]
        await eventually(lambda: journal.trouble)
        assert "holds the lock" in journal.trouble
        assert not any(future.done() for future in futures)
        other.execute("ROLLBACK")
    assert await asyncio.gather(*futures) == ["accepted"] * 20
    assert journal.trouble is None
    assert caplog.text.count("holds the lock") == 1


async def test_closing_does_not_wait_for_another_program(
    opened, make_actions, tmp_path, monkeypatch
):
    monkeypatch.setattr(journal_file, "_LOCKED_SECONDS", 0.01)
    journal = await opened()
    with closing(sqlite3.connect(tmp_path / "journal.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        future = journal.accept(entries(make_actions, 1)[0])
        await journal.close()
        with pytest.raises(JournalError, match="locked"):
            await future
    assert journal.counters["overflow"] == 1


# -- limits -----------------------------------------------------------------------------------


async def test_a_full_disk_is_overflow_for_payloads_and_an_error_for_the_rest(opened, make_actions):
    journal = await opened()
    small, large, later = (*entries(make_actions, 1), *entries(make_actions, 2, 2, 100_000))
    assert await journal.accept(small) == "accepted"

    def limit(pages):
        return journal.do(lambda db: db._connection.execute(f"PRAGMA max_page_count = {pages}"))

    await limit(await journal.do(lambda db: db._scalar("PRAGMA page_count")))
    async with Held(journal):
        futures = [journal.accept(large), journal.accept(small)]
    assert await asyncio.gather(*futures) == ["overflow", "duplicate"]
    assert journal.counters["overflow"] == 1
    with pytest.raises(JournalError, match=r"could not be used: .* full"):
        await journal.do(lambda db: db.set_health("x" * 100_000))
    await limit(1_000_000)
    assert await journal.accept(large) == "accepted"
    assert await journal.accept(later) == "accepted"
    assert (journal.counters["received"], journal.counters["overflow"]) == (5, 1)


async def test_what_the_disk_refuses_for_another_reason_is_counted_and_raised(
    opened, make_actions, monkeypatch
):
    """A quota or a limit of the file's size is no full disk to SQLite."""
    journal = await opened()

    def refuse(self, entries):
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(JournalDb, "accept", refuse)
        with pytest.raises(JournalError, match="disk I/O error"):
            await journal.accept(entries(make_actions, 1)[0])
    assert (journal.counters["received"], journal.counters["overflow"]) == (1, 1)
    assert await journal.accept(entries(make_actions, 1)[0]) == "accepted"
    assert (journal.counters["received"], journal.counters["overflow"]) == (2, 1)


async def test_a_journal_in_memory_works_as_one_on_disk(opened, make_actions):
    journal = await opened(path=None, max_bytes=700)
    outcomes = [await journal.accept(entry) for entry in entries(make_actions, 3)]
    assert outcomes == ["accepted", "overflow", "overflow"]


# -- who may write it -------------------------------------------------------------------------


async def test_a_second_process_is_refused_with_the_first_ones_number(opened, tmp_path):
    await opened()
    async with holder(tmp_path / "journal.db") as (_, said):
        assert said.startswith("locked: ")
        assert f"in use by process {os.getpid()}" in said


async def test_a_second_journal_of_one_process_is_refused(opened):
    await opened()
    with pytest.raises(JournalLockedError):
        await opened()


async def test_a_killed_owner_holds_up_nobody(opened, tmp_path):
    path = tmp_path / "journal.db"
    async with holder(path) as (process, said):
        assert said == "open"
        with pytest.raises(JournalLockedError, match=f"process {process.pid}"):
            await opened()
        process.kill()
        await process.wait()
        journal = await opened()
        assert await journal.do(lambda db: db.unclean)


async def test_an_owner_that_ends_in_good_order_leaves_a_clean_journal(opened, tmp_path):
    async with holder(tmp_path / "journal.db") as (process, said):
        assert said == "open"
        process.stdin.close()
        await process.wait()
    journal = await opened()
    assert not await journal.do(lambda db: db.unclean)
    assert not (tmp_path / "journal.db.damaged").exists()


# -- opening and closing ----------------------------------------------------------------------


async def test_what_was_handed_over_before_closing_is_carried_out(opened, tmp_path, make_actions):
    journal = await opened()
    async with Held(journal):
        futures = [journal.accept(entry) for entry in entries(make_actions, 400)]
        closing = asyncio.create_task(journal.close())
        await asyncio.sleep(0)
    await closing
    assert [future.result() for future in futures] == ["accepted"] * 400
    again = await opened()
    assert again.counters["pending"] == 400


async def test_a_closed_journal_refuses_instead_of_never_answering(opened, make_actions):
    journal = await opened()
    await journal.close()
    with pytest.raises(PipelineClosedError):
        await journal.do(lambda db: db.dead_letters(1))
    with pytest.raises(PipelineClosedError):
        journal.accept(entries(make_actions, 1)[0])


async def test_opening_that_is_cancelled_leaves_no_lock(opened, monkeypatch):
    opening, go = threading.Event(), threading.Event()
    original = JournalDb.__init__

    def slow(self, *args, **options):
        opening.set()
        go.wait(10)
        original(self, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(JournalDb, "__init__", slow)
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
    for _ in range(2):  # the first refusal leaves no trace that makes it one
        pipeline = IngestPipeline(MemoryStore(), embedder, journal=path)
        with pytest.raises(JournalError, match="is no journal"):
            await pipeline.start()
    assert [found.name for found in tmp_path.iterdir()] == ["notes.txt"]
    assert path.read_bytes() == content

"""Take, plan, write, acknowledge: with a real journal, and with one that fails."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from contextlib import asynccontextmanager

import pytest

from autoplay_rag.errors import JournalError
from autoplay_rag.ingest import retries, upkeep, worker
from autoplay_rag.ingest.batching import Batcher
from autoplay_rag.ingest.chunk_writer import ChunkWriter
from autoplay_rag.ingest.intake import Intake
from autoplay_rag.ingest.planner import Planner
from autoplay_rag.ingest.upkeep import Upkeep
from autoplay_rag.ingest.worker import Worker
from autoplay_rag.journal.sqlite import SqliteJournal
from autoplay_rag.stores import MemoryStore
from autoplay_rag.stores.base import TextStore

pytestmark = pytest.mark.timeout(40)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Make the waits shorter."""
    monkeypatch.setattr(retries, "_LONE_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(worker, "_JOURNAL_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(upkeep, "_FIRST_REPEAT_SECONDS", 0.02)
    pause = retries.Pause
    monkeypatch.setattr(retries, "Pause", lambda: pause(0.02, 0.1))


class Texts(TextStore):
    """Keeps texts by id; refuses poisoned ones."""

    capabilities = frozenset({"delete"})

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.gate = asyncio.Event()
        self.gate.set()

    async def add(self, chunks) -> None:
        await self.gate.wait()
        if any("poison" in chunk.text for chunk in chunks):
            raise ValueError("poison")
        self.texts |= {chunk.id: chunk.text for chunk in chunks}

    async def search(self, text, k, filter):
        return []

    async def delete(self, ids) -> None:
        for one in ids:
            self.texts.pop(one, None)

    @property
    def lines(self) -> Counter:
        return Counter(line for text in self.texts.values() for line in text.split("\n"))


class Rig:
    """A worker and its dependencies, without a pipeline."""

    def __init__(self, store, render, max_actions) -> None:
        self.store = store
        self.batcher = Batcher(0.0)
        self.journal = SqliteJournal(None, on_entry=self.committed, on_returned=self.gathered)
        self.writer = ChunkWriter(store, None, embed_concurrency=1, limits=None, max_attempts=2)
        planner = Planner(render, len, max_actions, include_email=False)
        self.upkeep = Upkeep(self.journal, self.writer, planner)
        self.settled: list[int] = []
        self.changed = asyncio.Event()
        self.worker = Worker(
            self.journal,
            self.batcher,
            planner,
            self.writer,
            self.upkeep,
            on_settled=self.on_settled,
        )
        self.intake = Intake(None, None)
        self.seq = 0

    def committed(self, entry, outcome) -> None:
        if outcome == "accepted":
            self.gathered([(entry.lane, entry.seq)])

    def gathered(self, back) -> None:
        for lane, seq in back:
            self.batcher.add(lane, seq, asyncio.get_running_loop().time())
        self.worker.wake()

    def on_settled(self, seqs) -> None:
        self.settled += seqs
        self.changed.set()

    async def accept(self, *payloads) -> None:
        for payload in payloads:
            self.seq += 1
            await self.journal.accept(self.intake.entry(payload, self.seq))

    async def until_settled(self, count) -> None:
        while len(self.settled) < count:
            self.changed.clear()
            await self.changed.wait()


@pytest.fixture
def rig(titles):
    @asynccontextmanager
    async def run(store=None, render=titles, max_actions=20):
        made = Rig(store or Texts(), render, max_actions)
        await made.journal.open()
        tasks = [
            asyncio.create_task(part.run()) for part in (made.writer, made.worker, made.upkeep)
        ]
        try:
            yield made
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await made.journal.close()

    return run


def fail_first(monkeypatch, journal, name, *, times=3, when=lambda *_: True):
    """Make a method of the journal fail at first; return the failures that are left."""
    method, left = getattr(journal, name), [JournalError("the disk is away")] * times

    async def failing(*arguments):
        if left and when(*arguments):
            raise left.pop()
        return await method(*arguments)

    monkeypatch.setattr(journal, name, failing)
    return left


# -- planning in its own thread ---------------------------------------------------------------


async def test_a_render_that_sleeps_delays_nobodys_on_actions(
    make_pipeline, make_actions, titles, tmp_path
):
    rendering, done = threading.Event(), threading.Event()

    def render(payloads):
        text = titles(payloads)
        if text == "slow":
            rendering.set()
            time.sleep(1.0)
            done.set()
        return text

    async with make_pipeline(render=render, journal=tmp_path / "j.db") as pipeline:
        await pipeline.on_actions(make_actions("s", "slow"))
        await asyncio.to_thread(rendering.wait, 10)
        returned = 0
        for number in range(10):
            await pipeline.on_actions(make_actions(f"t{number}", "a"))
            returned += not done.is_set()
        await pipeline.on_actions(make_actions("s", "of the same session"))
        returned += not done.is_set()
        assert returned > 5  # render sleeps for a second; each call takes a few milliseconds
        assert pipeline.ledger.pending == 12
        await pipeline.drain()
        assert pipeline.ledger.stored == 12


async def test_no_more_chunks_are_under_way_than_may_be(rig, make_actions, monkeypatch):
    monkeypatch.setattr(worker, "_MOST_CHUNKS", 3)
    monkeypatch.setattr(worker, "_PLAN_PAYLOADS", 1)
    async with rig() as made:
        made.store.gate.clear()
        await made.accept(*(make_actions(f"s{n}", str(n)) for n in range(10)))
        await asyncio.sleep(0.1)
        assert made.writer.operations == 3
        made.store.gate.set()
        await made.until_settled(10)
        assert made.store.lines == Counter(map(str, range(10)))


# -- a journal that fails ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["read", "sessions", "record_plans", "acknowledge"])
async def test_a_journal_that_fails_is_asked_again(rig, make_actions, monkeypatch, name, caplog):
    async with rig() as made:
        failures = fail_first(monkeypatch, made.journal, name)
        await made.accept(*(make_actions(f"s{n % 2}", str(n)) for n in range(6)))
        await made.until_settled(6)
        assert not failures
        assert made.store.lines == Counter(map(str, range(6)))
        assert sorted(made.settled) == [1, 2, 3, 4, 5, 6]
        assert made.worker.problems == []
        counts = made.journal.counts
        assert (counts["stored"], counts["pending"]) == (6, 0)
    what = "acknowledging" if name == "acknowledge" else "planning"
    assert f"{what} failed; retrying in 0.01 s: the disk is away" in caplog.text


@pytest.mark.parametrize(("name", "what"), [("read", "planning"), ("acknowledge", "acknowledging")])
async def test_while_the_journal_fails_that_is_said(  # noqa: PLR0917 - fixtures
    rig, make_actions, monkeypatch, eventually, name, what
):
    async with rig() as made:
        failures = fail_first(monkeypatch, made.journal, name, times=10**6)
        await made.accept(make_actions("s", "a"))
        await eventually(lambda: made.worker.problems)
        assert made.worker.problems == [f"{what} failed: JournalError: the disk is away"]
        failures.clear()
        await made.until_settled(1)
        assert made.worker.problems == []


async def test_a_chunk_is_divided_though_the_journal_fails_meanwhile(
    rig, make_actions, monkeypatch
):
    async with rig() as made:
        made.store.gate.clear()
        await made.accept(make_actions("s", "first"))
        await made.accept(*(make_actions("s", title) for title in ("a", "poison", "b")))
        failures = fail_first(monkeypatch, made.journal, "replace_plan")
        made.store.gate.set()
        await made.until_settled(3)
        await made.accept(make_actions("t", "other"))  # proves that the store works
        await made.until_settled(5)
        assert not failures
        assert made.store.lines == Counter(["first", "a", "b", "other"])
        (letter,) = await made.journal.dead_letters(10)
        assert letter.error == "store: ValueError: poison"
        assert made.worker.problems == []


async def test_one_session_that_cannot_be_planned_delays_no_other(
    rig, make_actions, monkeypatch, eventually
):
    async with rig() as made:
        failures = fail_first(
            monkeypatch,
            made.journal,
            "record_plans",
            times=10**6,
            when=lambda plans, _: any("bad" in c.chunk.text for p in plans for c in p.chunks),
        )
        await made.accept(*(make_actions(name, name) for name in ("s1", "bad", "s2", "s3")))
        await made.until_settled(3)
        assert sorted(made.settled) == [1, 3, 4]
        await made.accept(make_actions("s4", "s4"))
        await made.until_settled(4)
        failures.clear()
        await made.until_settled(5)
        assert made.store.lines["bad"] == 1


# -- payloads that are no longer pending ------------------------------------------------------


async def test_a_payload_that_is_not_pending_is_skipped_once(
    rig, make_actions, monkeypatch, eventually
):
    async with rig() as made:
        reads = []
        read = made.journal.read

        async def watched(seqs, most_bytes):
            reads.append(list(seqs))
            return await read(seqs, most_bytes)

        monkeypatch.setattr(made.journal, "read", watched)
        made.gathered([(7, 1000), (-1001, 1001)])  # unknown to the journal
        await made.accept(make_actions("s", "a"))
        await made.until_settled(1)
        await eventually(lambda: len(made.batcher) == 0)
        await asyncio.sleep(0.1)
        assert len(reads) <= 3
        # Together with others of its session, in any position.
        lane = made.intake.entry(make_actions("s", "a"), 1).lane
        reads.clear()
        made.gathered([(lane, 2000)])
        await made.accept(make_actions("s", "b"))
        made.gathered([(lane, 3000)])
        await made.until_settled(2)
        await eventually(lambda: len(made.batcher) == 0)
        await asyncio.sleep(0.1)
        assert len(reads) <= 4
        assert made.store.lines == Counter("ab")


async def test_more_bytes_than_are_planned_at_once_go_one_after_the_other(
    rig, make_actions, monkeypatch
):
    monkeypatch.setattr(worker, "_PLAN_BYTES", 1)
    async with rig() as made:
        made.store.gate.clear()
        await made.accept(make_actions("s", "first"))
        await made.accept(*(make_actions("s", str(n)) for n in range(5)))
        await made.accept(*(make_actions(f"t{n}", f"t{n}") for n in range(5)))
        made.store.gate.set()
        await made.until_settled(11)
        assert sum(made.store.lines.values()) == len(made.store.texts) == 11
        assert len(made.batcher) == 0


# -- acknowledging ----------------------------------------------------------------------------


async def test_parts_of_a_payload_that_died_are_deleted(rig, make_actions):
    async with rig(max_actions=2) as made:
        await made.accept(make_actions("s", "kept"))
        await made.until_settled(1)
        await made.accept(make_actions("s", "a", "b", "poison", "c", "d"))
        await asyncio.sleep(0)
        await made.accept(*(make_actions("t", str(n)) for n in range(3)))
        await made.until_settled(5)
        await made.upkeep.wait()
        assert made.store.lines == Counter(["kept", "0", "1", "2"])
        assert made.journal.counts["dead"] == 1
        assert made.worker._chunks == 0


async def test_plans_of_an_earlier_run_are_carried_out_as_they_were_recorded(
    make_pipeline, make_actions, embedder, tmp_path
):
    """Tokens are counted again; nothing is rendered again."""
    journal = tmp_path / "j.db"
    embedder.script = lambda texts: asyncio.Event().wait()
    async with make_pipeline(journal=journal, drain_timeout=0.1) as pipeline:
        await pipeline.on_actions(make_actions("s", "a"))
        await embedder.requested.wait()
    embedder.script = lambda texts: None
    embedder.count_tokens = lambda text: 42
    store = MemoryStore()
    async with make_pipeline(store, journal=journal, render=lambda _: "other") as pipeline:
        await pipeline.on_actions(make_actions("s", "b"))
        await pipeline.drain()
        assert pipeline.ledger.embed_tokens == 84
        texts = {chunk.text async for page in store.scan() for chunk in page}
        assert texts == {"a", "other"}

"""Partitions that come and go, with several processes' parts on one journal and one store."""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from autoplay_rag.content.keys import PARTITIONS, partition_of, session_lane
from autoplay_rag.errors import FencedError, JournalError
from autoplay_rag.ingest import partitions as partitions_module
from autoplay_rag.ingest import retries, worker
from autoplay_rag.ingest.batching import Batcher
from autoplay_rag.ingest.chunk_writer import ChunkWriter
from autoplay_rag.ingest.intake import Intake
from autoplay_rag.ingest.partitions import Partitions
from autoplay_rag.ingest.planner import Planner
from autoplay_rag.ingest.repairing import Repairer
from autoplay_rag.ingest.upkeep import Upkeep
from autoplay_rag.ingest.watermark import SharedWatermark
from autoplay_rag.ingest.worker import Worker
from autoplay_rag.journal.ownership import Arrivals, Change, Ownership, SharedProgress, Sharing
from autoplay_rag.journal.sqlite import SqliteJournal
from autoplay_rag.stores.base import TextStore

pytestmark = pytest.mark.timeout(60)

ALL = frozenset(range(PARTITIONS))


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(retries, "_LONE_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(worker, "_JOURNAL_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(partitions_module, "_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(partitions_module, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr("autoplay_rag.ingest.repairing._LOOK_SECONDS", 0.01)
    pause = retries.Pause
    monkeypatch.setattr(retries, "Pause", lambda: pause(0.02, 0.1))


class Texts(TextStore):
    """Keeps texts by id. A process may be held at its gate before a request takes effect."""

    capabilities = frozenset({"delete"})

    def __init__(self, texts: dict[str, str]) -> None:
        self.texts = texts
        self.refuses = True
        self.open = asyncio.Event()
        self.open.set()
        self.reached = asyncio.Event()
        self.requests: list[list[str]] = []

    async def add(self, chunks) -> None:
        self.requests.append([chunk.text for chunk in chunks])
        self.reached.set()
        await self.open.wait()
        if self.refuses and any("poison" in chunk.text for chunk in chunks):
            raise ValueError("poison")
        self.texts |= {chunk.id: chunk.text for chunk in chunks}

    async def search(self, text, k, filter):
        return []

    async def delete(self, ids) -> None:
        for one in ids:
            self.texts.pop(one, None)


class Table:
    """Who owns what, as the database would have it."""

    def __init__(self) -> None:
        self.owner: dict[int, Process | None] = dict.fromkeys(ALL)
        self.closing = 0


class FencedJournal:
    """The journal as one process sees it: what it does not own, it cannot plan or acknowledge."""

    def __init__(self, journal: SqliteJournal, process: Process) -> None:
        self._journal = journal
        self._process = process
        self.failures = 0

    def __getattr__(self, name):
        return getattr(self._journal, name)

    def _check(self, plans) -> None:
        owner = self._process.cluster.table.owner
        lanes = {partition_of(plan.lane) for plan in plans}
        if lost := {one for one in lanes if owner[one] is not self._process}:
            self._process.fenced |= lost
            raise FencedError("taken over", partitions=lost)

    async def record_plans(self, plans, sessions):
        self._check(plans)
        return await self._journal.record_plans(plans, sessions)

    async def replace_plan(self, plan):
        self._check([plan])
        await self._journal.replace_plan(plan)

    async def acknowledge(self, ended):
        self._check([one.plan for one in ended])
        return await self._journal.acknowledge(ended)


class Share(Ownership, Sharing):
    """What one process has, changed by the test."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._table = process.cluster.table
        self._journal = process.cluster.journal
        self._changes: asyncio.Queue[Change] = asyncio.Queue()
        self._owned: frozenset[int] = frozenset()
        self.valid = True
        self.given: set[int] = set()
        self.fails = 0

    def tell(self, change: Change) -> None:
        self._changes.put_nowait(change)

    def owns(self, lane: int) -> bool:
        return self.valid and partition_of(lane) in self._owned

    async def next_change(self) -> Change:
        change = await self._changes.get()
        self._owned = (self._owned - change.lost) | change.gained
        return change

    def give_back(self, partitions) -> None:
        self._owned -= set(partitions)
        for one in partitions:
            if self._table.owner[one] is self._process:
                self._table.owner[one] = None
        self.given |= set(partitions)
        self._process.cluster.changed.set()

    async def plans_of(self, partitions):
        return [one for one in await self._journal.plans() if partition_of(one.lane) in partitions]

    async def waiting_of(self, partitions, after, limit):
        rows = await self._journal.waiting(after, limit)
        return [row for row in rows if partition_of(row[1]) in partitions]

    async def arrivals(self, partitions, after, *, retried):
        if self.fails:
            self.fails -= 1
            raise JournalError("the server is away")
        last = (await self._journal.known()).seq
        rows = [row for row in await self._journal.waiting(0, 10**6) if row[0] <= last]
        fresh = [seq for seq, _, again in rows if not again]
        found = [
            row
            for row in rows
            if partition_of(row[1]) in partitions
            and ((retried and row[2]) or (row[0] > after and not row[2]))
        ]
        settled = min(fresh) - 1 if fresh else last
        letters = sum(again for *_, again in rows)
        return Arrivals(found, last, SharedProgress(last, settled, letters, self._table.closing))

    async def close_windows(self):
        last = (await self._journal.known()).seq
        self._table.closing = last
        for process in self._process.cluster.processes:
            process.partitions.wake()
        return (await self.arrivals((), last, retried=False)).progress


class Process:
    """The parts of one pipeline."""

    def __init__(self, cluster: Cluster, window: float) -> None:
        self.cluster = cluster
        self.share = Share(self)
        self.store = Texts(cluster.texts)
        self.fenced: set[int] = set()
        self.journal = FencedJournal(cluster.journal, self)
        self.batcher = Batcher(window)
        self.writer = ChunkWriter(
            self.store, None, embed_concurrency=1, limits=None, max_attempts=2
        )
        planner = Planner(cluster.render, len, 20, include_email=False)
        self.upkeep = Upkeep(self.journal, self.writer, planner)
        self.repairer = Repairer(self.journal, self.writer, self.upkeep)
        self.watermark = SharedWatermark(cluster.journal, self.share)
        self.worker = Worker(
            self.journal,
            self.batcher,
            planner,
            self.writer,
            self.upkeep,
            owns=self.share.owns,
            on_settled=self.settled,
        )
        self.partitions = Partitions(
            self.share,
            self.share,
            self.batcher,
            self.worker,
            on_progress=self.watermark.note,
            on_dropped=self.repairer.add,
        )
        self.intake = Intake(None, None)
        self.tasks: list[asyncio.Task] = []

    def settled(self, seqs) -> None:
        self.partitions.settled(seqs)
        self.watermark.settle(seqs)
        self.cluster.changed.set()

    def start(self) -> None:
        parts = (self.writer, self.worker, self.upkeep, self.repairer, self.partitions)
        self.tasks = [asyncio.create_task(part.run()) for part in parts]

    async def kill(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    @property
    def loaded(self) -> frozenset[int]:
        return self.partitions.loaded


class Cluster:
    """Processes on one journal and one store."""

    def __init__(self, render) -> None:
        self.render = render
        self.texts: dict[str, str] = {}
        self.table = Table()
        self.journal = SqliteJournal(None, on_entry=self.committed, on_returned=self.returned)
        self.processes: list[Process] = []
        self.changed = asyncio.Event()
        self.intake = Intake(None, None)
        self.seq = 0

    def committed(self, entry, outcome) -> None:
        for process in self.processes:
            process.partitions.wake()

    def returned(self, back) -> None:
        for process in self.processes:
            process.partitions.look_for_retried()

    async def process(self, window: float = 0.0) -> Process:
        made = Process(self, window)
        made.start()
        self.processes.append(made)
        return made

    async def accept(self, *payloads) -> None:
        """Accept payloads, as any process may."""
        for payload in payloads:
            self.seq += 1
            await self.journal.accept(self.intake.entry(payload, self.seq))

    def give(self, process: Process, partitions=ALL) -> None:
        """Let a process have free partitions."""
        gained = frozenset(one for one in partitions if self.table.owner[one] is None)
        for one in gained:
            self.table.owner[one] = process
        process.share.tell(Change(gained=gained))

    def take(self, process: Process, partitions=ALL) -> frozenset[int]:
        """End the lease of a process on partitions. It learns of it later."""
        taken = frozenset(one for one in partitions if self.table.owner[one] is process)
        for one in taken:
            self.table.owner[one] = None
        return taken

    async def until(self, condition) -> None:
        async with asyncio.timeout(30):
            while not condition():
                self.changed.clear()
                try:
                    async with asyncio.timeout(0.02):
                        await self.changed.wait()
                except TimeoutError:
                    pass

    async def until_stored(self, count: int) -> None:
        await self.until(lambda: self.journal.counts["stored"] >= count)

    def lines(self) -> Counter:
        return Counter(line for text in self.texts.values() for line in text.split("\n"))

    async def check(self, expected: list[str]) -> None:
        """Check that each payload is stored once, and each session in its order."""
        for process in self.processes:
            async with asyncio.timeout(20):
                await process.repairer.wait()
                await process.upkeep.wait()
        assert self.lines() == Counter(expected)
        rows = await self.journal._writer.run(
            lambda: self.journal._tables.file.connection.execute(
                "SELECT chunk.lane, chunk.number, seq, chunk.id FROM chunk_payload "
                "JOIN chunk ON chunk.number = chunk ORDER BY chunk.number, seq"
            ).fetchall()
        )
        order: dict[int, list[int]] = {}
        for lane, _, seq, _ in rows:
            order.setdefault(lane, []).append(seq)
        for seqs in order.values():
            assert seqs == sorted(seqs)
        counted = Counter(seq for _, _, seq, _ in rows)
        assert set(counted.values()) <= {1}
        assert {one for *_, one in rows} == self.texts.keys()


@pytest.fixture
def cluster(titles):
    @asynccontextmanager
    async def run():
        made = Cluster(titles)
        await made.journal.open()
        try:
            yield made
        finally:
            for process in made.processes:
                process.store.open.set()
                await process.kill()
            await made.journal.close()

    return run


def partition_named(session: str) -> int:
    return partition_of(session_lane("acme", session))


# -- gained -----------------------------------------------------------------------------------


async def test_nothing_is_stored_by_a_process_that_owns_nothing(cluster, make_actions):
    async with cluster() as c:
        one = await c.process()
        await c.accept(make_actions("s1", "a"))
        await c.until(lambda: one.watermark.last == 1)
        assert not c.texts
        assert one.watermark.value == 0
        c.give(one)
        await c.until_stored(1)
        await c.check(["a"])


async def test_payloads_that_another_process_accepted_are_picked_up_in_order(cluster, make_actions):
    async with cluster() as c:
        one = await c.process()
        c.give(one)
        await c.until(lambda: one.loaded == ALL)
        titles = [f"t{number}" for number in range(50)]
        for number, title in enumerate(titles):
            await c.accept(make_actions(f"s{number % 3}", title, at=1000.0 + number))
        await c.until_stored(50)
        await c.check(titles)
        assert one.watermark.last == 50


async def test_what_an_earlier_owner_left_goes_on(cluster, make_actions):
    async with cluster() as c:
        one, two = await c.process(), await c.process()
        c.give(one)
        one.store.open.clear()
        await c.accept(make_actions("s1", "planned"))
        await one.store.reached.wait()
        await c.accept(make_actions("s1", "waits", at=2000.0))
        await one.kill()
        c.take(one)
        c.processes.remove(one)
        c.give(two)
        await c.until_stored(2)
        await c.check(["planned", "waits"])


async def test_an_outage_while_loading_is_retried(cluster, make_actions):
    async with cluster() as c:
        await c.accept(make_actions("s1", "a"))
        one = await c.process()
        one.share.fails = 3
        c.give(one)
        await c.until(lambda: bool(one.partitions.problems))
        await c.until_stored(1)
        await c.until(lambda: not one.partitions.problems)


# -- lost -------------------------------------------------------------------------------------


async def test_a_lost_partition_is_not_acknowledged_and_stored_once_by_the_next(
    cluster, make_actions
):
    async with cluster() as c:
        one, two = await c.process(), await c.process()
        c.give(one)
        one.store.open.clear()
        await c.accept(make_actions("s1", "a"), make_actions("s2", "b"))
        await one.store.reached.wait()
        c.take(one)
        one.share.valid = False
        c.give(two)  # before `one` notices
        await c.until_stored(2)
        one.share.tell(Change(lost=ALL))
        await c.until(lambda: not one.loaded)
        one.store.open.set()  # its request ends now, long after
        await c.check(["a", "b"])
        assert c.journal.counts["stored"] == 2


async def test_the_fence_stops_what_does_not_know_of_its_loss(cluster, make_actions):
    async with cluster() as c:
        one, two = await c.process(), await c.process()
        c.give(one)
        one.store.open.clear()
        await c.accept(make_actions("s1", "a"))
        await one.store.reached.wait()
        await c.accept(make_actions("s2", "b"))
        taken = c.take(one, {partition_named("s1")})
        one.store.open.set()
        await c.until(lambda: partition_named("s1") in one.fenced)
        await c.until_stored(1)  # s2 goes on
        one.share.tell(Change(lost=taken))
        await c.until(lambda: partition_named("s1") not in one.loaded)
        c.give(two, taken)
        await c.until_stored(2)
        await c.check(["a", "b"])


async def test_a_request_that_ends_late_resurrects_nothing(cluster, make_actions):
    async with cluster() as c:
        one, two = await c.process(), await c.process()
        c.give(one)
        one.store.refuses = False
        one.store.open.clear()
        await c.accept(make_actions("s1", "poison"))
        await one.store.reached.wait()
        taken = c.take(one)
        one.share.valid = False
        c.give(two)
        # The next owner finds that it cannot be stored.
        await c.until(lambda: c.journal.counts["dead"] == 1)
        one.share.tell(Change(lost=taken))
        await c.until(lambda: not one.loaded)
        one.store.open.set()
        await c.until(lambda: c.texts or one.repairer.idle)
        await c.check([])


async def test_nothing_is_sent_once_the_lease_has_ended(cluster, make_actions):
    async with cluster() as c:
        one = await c.process()
        c.give(one)
        await c.until(lambda: one.loaded == ALL)
        one.share.valid = False
        await c.accept(make_actions("s1", "a"))
        await c.until(lambda: one.writer.operations == 0 and one.watermark.last == 1)
        taken = c.take(one)
        one.share.tell(Change(lost=taken))
        await c.until(lambda: not one.loaded)
        assert one.store.requests == []
        one.share.valid = True
        c.give(one)
        await c.until_stored(1)
        await c.check(["a"])


# -- given back -------------------------------------------------------------------------------


async def test_what_is_in_flight_is_finished_before_a_partition_is_given_back(
    cluster, make_actions
):
    async with cluster() as c:
        one, two = await c.process(), await c.process()
        c.give(one)
        one.store.open.clear()
        await c.accept(make_actions("s1", "a"))
        await one.store.reached.wait()
        await c.accept(make_actions("s1", "b", at=2000.0))
        one.share.tell(Change(leaving=ALL))
        await c.until(lambda: not one.loaded)
        assert not one.share.given
        one.store.open.set()
        await c.until(lambda: one.share.given == ALL)
        assert c.journal.counts["stored"] == 1
        c.give(two)
        await c.until_stored(2)
        await c.check(["a", "b"])
        assert two.store.requests == [["b"]]


async def test_a_partition_is_given_back_even_if_its_store_does_not_answer(
    cluster, make_actions, monkeypatch
):
    monkeypatch.setattr(partitions_module, "_FINISH_SECONDS", 0.05)
    async with cluster() as c:
        one, two = await c.process(), await c.process()
        c.give(one)
        one.store.open.clear()
        await c.accept(make_actions("s1", "a"))
        await one.store.reached.wait()
        one.share.tell(Change(leaving=ALL))
        await c.until(lambda: one.share.given == ALL)
        c.give(two)
        await c.until_stored(1)
        one.store.open.set()
        await c.check(["a"])


# -- drain, letters ---------------------------------------------------------------------------


async def test_draining_in_one_process_closes_the_windows_of_all(cluster, make_actions):
    async with cluster() as c:
        one, two = await c.process(window=1000.0), await c.process(window=1000.0)
        c.give(one, range(0, 64, 2))
        c.give(two, range(1, 64, 2))
        await c.until(lambda: one.loaded | two.loaded == ALL)
        titles = [f"t{number}" for number in range(20)]
        await c.accept(*(make_actions(f"s{title}", title) for title in titles))
        async with asyncio.timeout(30):
            await one.watermark.wait()
        assert one.watermark.value == 20
        await c.check(titles)


async def test_retried_letters_go_to_the_owner(cluster, make_actions):
    async with cluster() as c:
        one = await c.process()
        c.give(one)
        await c.accept(make_actions("s1", "poison"))
        await c.until(lambda: c.journal.counts["dead"] == 1)
        for _ in range(2):
            requests = len(one.store.requests)
            assert len(await c.journal.retry(None)) == 1
            await one.watermark.wait()
            await c.until(lambda: c.journal.counts["dead"] == 1)
            assert len(one.store.requests) > requests
        await c.check([])


# -- at random --------------------------------------------------------------------------------


async def move(c: Cluster, source: random.Random) -> None:
    """Let something happen to one process."""
    process = source.choice(c.processes)
    owned = [one for one, owner in c.table.owner.items() if owner is process]
    action = source.choice(["give", "lose", "leave", "stall", "yield"])
    if action == "give":
        free = [one for one, owner in c.table.owner.items() if owner is None]
        c.give(process, source.sample(free, source.randint(0, len(free))))
    elif action == "lose":
        taken = c.take(process, owned[: source.randint(0, len(owned))])
        if source.random() < 0.5:  # another one is faster than the news
            c.give(source.choice([one for one in c.processes if one is not process]), taken)
            await asyncio.sleep(source.choice([0.0, 0.02]))
        process.share.tell(Change(lost=taken))
    elif action == "leave":
        process.share.tell(Change(leaving=process.loaded & frozenset(owned[:20])))
    elif action == "stall":
        (process.store.open.clear if source.random() < 0.5 else process.store.open.set)()
    else:
        await asyncio.sleep(source.choice([0.0, 0.005, 0.02]))


@pytest.mark.parametrize("seed", range(6))
async def test_partitions_that_move_at_random_lose_and_double_nothing(cluster, make_actions, seed):
    source = random.Random(seed)
    async with cluster() as c:
        processes = [await c.process(window=source.choice([0.0, 0.02])) for _ in range(3)]
        titles: list[str] = []
        for step in range(120):
            if source.random() < 0.3:
                titles.append(f"t{step}")
                session = f"s{source.randrange(8)}"
                await c.accept(make_actions(session, titles[-1], at=1000.0 + 10 * step))
            else:
                await move(c, source)
        for process in processes:
            process.store.open.set()

        def give_the_rest() -> bool:
            free = [one for one, owner in c.table.owner.items() if owner is None]
            if free:
                c.give(processes[0], free)
            return c.journal.counts["stored"] >= len(titles)

        await c.until(give_the_rest)
        assert c.journal.counts["stored"] == len(titles)
        await c.check(titles)

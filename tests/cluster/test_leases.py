"""Partitions and named leases over a real server: taken, renewed, lost, given back."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from autoplay_rag.cluster import leases as leases_module
from autoplay_rag.cluster.lease_rows import LEASE_TABLES
from autoplay_rag.cluster.leases import Leases
from autoplay_rag.cluster.notices import Notices
from autoplay_rag.content.keys import PARTITIONS, partition_of
from autoplay_rag.errors import ClientStateError, FencedError
from autoplay_rag.stores.postgres.dsn import parameters_of
from autoplay_rag.stores.postgres.link import Link

pytestmark = pytest.mark.timeout(120)

ALL = frozenset(range(PARTITIONS))
CHILD = Path(__file__).parent / "lease_child.py"


@pytest.fixture
def schema(postgres):
    name = f"c_{uuid4().hex[:12]}"
    postgres.run(f"CREATE SCHEMA {name}")
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        connection.execute(f"SET search_path = {name}")
        for statement in LEASE_TABLES:
            connection.execute(statement)
    return name


class Clock:
    """A clock that a test can put forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(leases_module, "_clock", clock)
    return clock


class Process:
    """What a pipeline does with its leases, in this process."""

    def __init__(self, leases: Leases) -> None:
        self.leases = leases
        self.lost: set[int] = set()
        self.changes = asyncio.Event()

    async def follow(self) -> None:
        while True:
            change = await self.leases.next_change()
            self.lost |= change.lost
            self.leases.give_back(change.leaving)
            self.changes.set()

    async def until(self, condition) -> None:
        async with asyncio.timeout(30):
            while not condition():
                await self.changes.wait()
                self.changes.clear()


@pytest.fixture
async def link(postgres):
    made: list[Link] = []

    def make(seconds: float = 10.0) -> Link:
        made.append(Link(parameters_of(postgres.dsn), 3, seconds))
        return made[-1]

    async def nothing() -> None:
        pass

    yield make
    for one in made:
        await one.close(nothing)


@pytest.fixture
def join(link, schema):
    """Start processes of one cluster."""

    @asynccontextmanager
    async def join(
        name: str = "one", *, seconds: float = 60.0, notices: bool = True, takes: bool = True
    ) -> AsyncIterator[Process]:
        own = link()
        leases = Leases(own, schema, name, seconds=seconds, takes=takes, channel=schema)
        process = Process(leases)
        running = [asyncio.create_task(leases.run()), asyncio.create_task(process.follow())]
        if notices:
            listening = Notices(own, schema, lambda _: leases.wake())
            running.append(asyncio.create_task(listening.run()))
        try:
            yield process
        finally:
            for task in running:
                task.cancel()
            await asyncio.wait(running)
            await leases.close()

    return join


def owners(postgres, schema) -> dict[int, str | None]:
    rows = postgres.run(
        f"SELECT p.number, w.name FROM {schema}.partition p "
        f"LEFT JOIN {schema}.worker w ON w.id = p.owner"
    )
    return dict(rows)


def bump(postgres, schema, *, where: str = "true") -> None:
    """Take partitions over as another process would."""
    postgres.run(f"UPDATE {schema}.partition SET owner = 'x', epoch = epoch + 1 WHERE {where}")


# -- one process ------------------------------------------------------------------------------


async def test_one_process_has_everything_and_gives_it_back(join, postgres, schema):
    async with join() as one:
        await one.until(lambda: one.leases.partitions == ALL)
        assert all(one.leases.owns(lane) for lane in range(-100, 100))
        assert set(owners(postgres, schema).values()) == {"one"}
    assert set(owners(postgres, schema).values()) == {None}
    assert one.leases.partitions == frozenset()
    assert not one.leases.owns(1)
    assert postgres.run(f"SELECT count(*) FROM {schema}.worker") == [(0,)]


async def test_a_process_that_takes_none_may_read_a_source(join):
    read = asyncio.Event()

    async def work() -> str:
        read.set()
        return "read"

    async with join(takes=False) as serving:
        assert await serving.leases.while_held("source:acme", work) == "read"
        assert serving.leases.partitions == frozenset()


# -- several processes ------------------------------------------------------------------------


async def test_a_joiner_gets_its_share_and_leaves_it_again(join, postgres, schema):
    async with join("one") as one:
        await one.until(lambda: one.leases.partitions == ALL)
        async with join("two") as two:
            await two.until(lambda: len(two.leases.partitions) == 32)
            assert one.leases.partitions | two.leases.partitions == ALL
            assert not one.leases.partitions & two.leases.partitions
            async with join("three") as three:
                await three.until(lambda: len(three.leases.partitions) == 21)
        await one.until(lambda: one.leases.partitions == ALL)
        assert set(owners(postgres, schema).values()) == {"one"}
        assert not one.lost


async def test_nothing_moves_between_workers_that_have_their_shares(join, postgres, schema):
    async with join("one") as one, join("two", notices=False) as two:
        async with asyncio.timeout(30):
            while not len(one.leases.partitions) == len(two.leases.partitions) == 32:
                one.leases.wake()
                two.leases.wake()
                await asyncio.sleep(0.01)
        epochs = dict(postgres.run(f"SELECT number, epoch FROM {schema}.partition"))
        for _ in range(3):
            one.leases.wake()
            two.leases.wake()
            await asyncio.sleep(0.05)
        assert dict(postgres.run(f"SELECT number, epoch FROM {schema}.partition")) == epochs


# -- losing -----------------------------------------------------------------------------------


async def test_it_stops_before_its_lease_ends(join, clock):
    async with join(seconds=60.0) as one:
        await one.until(lambda: one.leases.partitions == ALL)
        clock.ahead += 40.0
        assert one.leases.owns(1)
        clock.ahead += 9.0  # more than four fifths of a lease
        assert not one.leases.owns(1)
        assert one.leases.partitions == frozenset()
        with pytest.raises(FencedError, match="does not own the partitions 1, 3"):
            one.leases.check(None, [1, 3])
        one.leases.wake()
        await one.until(lambda: one.lost == ALL and one.leases.partitions == ALL)


async def test_what_was_lost_is_taken_again_with_another_epoch(join, postgres, schema, clock):
    async with join() as one:
        await one.until(lambda: one.leases.partitions == ALL)
        (before,) = postgres.run(f"SELECT max(epoch) FROM {schema}.partition")
        clock.ahead += 100.0
        one.leases.wake()
        await one.until(lambda: one.lost == ALL and one.leases.partitions == ALL)
        ((after,),) = postgres.run(f"SELECT min(epoch) FROM {schema}.partition")
        assert after > before[0]


async def test_gained_comes_only_after_lost_was_handled(link, schema, clock):
    leases = Leases(link(), schema, "one", seconds=60.0)
    running = asyncio.create_task(leases.run())
    try:
        assert (await leases.next_change()).gained == ALL
        clock.ahead += 100.0
        leases.wake()
        change = await leases.next_change()
        assert change.lost == ALL
        assert not change.gained
        assert leases.partitions == frozenset()  # not until the caller asks again
        async with asyncio.timeout(30):
            assert (await leases.next_change()).gained == ALL
        assert leases.partitions == ALL
    finally:
        running.cancel()
        await asyncio.wait([running])
        await leases.close()


async def test_rows_that_another_process_changed_are_noticed(join, postgres, schema):
    async with join() as one:
        await one.until(lambda: one.leases.partitions == ALL)
        bump(postgres, schema, where="number < 4")
        one.leases.wake()
        await one.until(lambda: one.lost == {0, 1, 2, 3} and one.leases.partitions == ALL)


async def test_a_lease_that_ended_in_the_database_is_not_renewed(join, postgres, schema):
    async with join() as one:
        await one.until(lambda: one.leases.partitions == ALL)
        postgres.run(f"DELETE FROM {schema}.worker")
        one.leases.wake()
        await one.until(lambda: one.lost == ALL and one.leases.partitions == ALL)


async def test_a_server_that_stops_and_starts_again(join, postgres):
    async with join(seconds=60.0) as one:
        await one.until(lambda: one.leases.partitions == ALL)
        postgres.stop()
        try:
            one.leases.wake()
            async with asyncio.timeout(30):
                while not one.leases.problems:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert "not renewed" in one.leases.problems[0]
            assert one.leases.partitions == ALL  # the lease has not ended
        finally:
            postgres.start()
        async with asyncio.timeout(30):
            while one.leases.problems:
                one.leases.wake()
                await asyncio.sleep(0.05)
        assert one.leases.partitions == ALL
        assert not one.lost


async def test_a_lease_that_ends_is_noticed_before_the_next_renewal(join, postgres, schema):
    """The next renewal would be after 200 seconds."""
    postgres.run(
        f"INSERT INTO {schema}.worker (id, name, takes, started, expires) "
        "SELECT 'x', 'x', true, now(), clock_timestamp() + interval '2 s'"
    )
    bump(postgres, schema)
    async with join(seconds=600.0, notices=False) as one:
        await one.until(lambda: one.leases.partitions == ALL)
        assert not postgres.run(f"SELECT FROM {schema}.worker WHERE id = 'x'")


# -- the fence --------------------------------------------------------------------------------


async def test_the_fence_passes_what_is_owned_and_stops_what_was_taken(join, postgres, schema):
    async with join() as one:
        await one.until(lambda: one.leases.partitions == ALL)
        with psycopg.connect(postgres.dsn) as connection:
            one.leases.check(connection, [5, 3])
            connection.rollback()
            bump(postgres, schema, where="number = 5")
            with pytest.raises(FencedError, match="taken over the partitions 5") as caught:
                one.leases.check(connection, [5, 3])
            assert caught.value.partitions == {5}


async def test_a_partition_cannot_be_taken_between_check_and_commit(join, postgres, schema):
    async with join() as one:
        await one.until(lambda: one.leases.partitions == ALL)
        with psycopg.connect(postgres.dsn) as connection:
            one.leases.check(connection, [5])
            with pytest.raises(psycopg.errors.LockNotAvailable):
                postgres.run(f"SELECT * FROM {schema}.partition WHERE number = 5 FOR UPDATE NOWAIT")
            # The renewal of the lease does not wait for it.
            postgres.run(f"UPDATE {schema}.worker SET expires = expires + interval '1 s'")
            # Another process does not wait for it either: it takes what it can.
            await one.leases._rows.sweep()
            rows = one.leases._rows
            assert await rows.take("x", {5: 1, 6: 1}) == {6: 2}
            connection.commit()
        assert await rows.take("x", {5: 1}) == {5: 2}


async def test_a_check_that_waits_for_a_take_over_fails(join, postgres, schema):
    async with join() as one:
        await one.until(lambda: one.leases.partitions == ALL)
        with psycopg.connect(postgres.dsn) as taking:
            taking.execute(f"UPDATE {schema}.partition SET epoch = epoch + 1 WHERE number = 7")

            def check() -> None:
                with psycopg.connect(postgres.dsn) as connection:
                    one.leases.check(connection, [7])

            checking = asyncio.create_task(asyncio.to_thread(check))
            async with asyncio.timeout(30):
                while not postgres.run(  # noqa: ASYNC110
                    "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
                    "AND query LIKE '%%FOR SHARE'"
                ):
                    await asyncio.sleep(0.02)
            taking.commit()
            with pytest.raises(FencedError):
                await checking


# -- named leases -----------------------------------------------------------------------------


async def test_work_runs_in_one_process_at_a_time(join):
    running: list[str] = []

    def reader(name: str, started: asyncio.Event, stop: asyncio.Event):
        async def work() -> str:
            running.append(name)
            assert running == [name]
            started.set()
            try:
                await stop.wait()
                return name
            finally:
                running.remove(name)

        return work

    async with join("one") as one, join("two") as two:
        started, stop = [asyncio.Event(), asyncio.Event()], [asyncio.Event(), asyncio.Event()]
        first = asyncio.create_task(
            one.leases.while_held("source", reader("one", started[0], stop[0]))
        )
        await started[0].wait()
        second = asyncio.create_task(
            two.leases.while_held("source", reader("two", started[1], stop[1]))
        )
        with pytest.raises(ClientStateError, match="already"):
            await one.leases.while_held("source", reader("one", *started))
        two.leases.wake()
        await asyncio.sleep(0.1)
        assert running == ["one"]
        stop[0].set()
        assert await first == "one"
        async with asyncio.timeout(30):
            await started[1].wait()  # by the notification: the lease is a minute long
        stop[1].set()
        assert await second == "two"


async def test_work_is_cancelled_when_its_lease_is_lost_and_starts_anew(join, clock):
    starts: list[asyncio.Event] = [asyncio.Event(), asyncio.Event()]
    cancelled = asyncio.Event()

    async def work() -> None:
        next(start for start in starts if not start.is_set()).set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with join() as one:
        working = asyncio.create_task(one.leases.while_held("source", work))
        async with asyncio.timeout(30):
            await starts[0].wait()
            clock.ahead += 100.0
            one.leases.wake()
            await cancelled.wait()
            await starts[1].wait()
        working.cancel()
        with suppress(asyncio.CancelledError):
            await working


async def test_an_error_of_the_work_releases_the_lease(join):
    async def fails() -> None:
        raise ValueError("no such source")

    async def works() -> str:
        return "done"

    async with join("one") as one, join("two") as two:
        with pytest.raises(ValueError, match="no such source"):
            await one.leases.while_held("source", fails)
        assert await two.leases.while_held("source", works) == "done"


async def test_a_lease_that_is_released_while_it_is_renewed_is_free(join):
    renewing, released = asyncio.Event(), asyncio.Event()

    async def works() -> str:
        return "done"

    async with join("one") as one, join("two") as two:
        take = one.leases._rows.take_named

        async def take_late(worker, names):
            renewing.set()
            await released.wait()
            return await take(worker, names)

        async def until_renewed() -> None:
            one.leases._rows.take_named = take_late
            one.leases.wake()
            await renewing.wait()

        await one.leases.while_held("source", until_renewed)
        released.set()
        async with asyncio.timeout(30):
            assert await two.leases.while_held("source", works) == "done"


# -- processes --------------------------------------------------------------------------------


class Child:
    """A process of its own; see `lease_child.py`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.owned: frozenset[int] = frozenset()
        self.reads = False
        self.changed = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            event = json.loads(line)
            self.owned = frozenset(event.get("owned", self.owned))
            self.reads = event.get("reads", self.reads)
            self.changed.set()

    async def until(self, condition) -> None:
        async with asyncio.timeout(60):
            while not condition(self):
                await self.changed.wait()
                self.changed.clear()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def end(self) -> None:
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.kill()
        await self.process.wait()
        await self._reading


@pytest.fixture
async def children(postgres, schema):
    made: list[Child] = []

    async def make(name: str, seconds: float = 3.0) -> Child:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(CHILD), postgres.dsn, schema, name, str(seconds),
            stdout=asyncio.subprocess.PIPE, env={**os.environ},
        )  # fmt: skip
        made.append(Child(process))
        return made[-1]

    yield make
    for child in made:
        await child.end()


@pytest.mark.slow
async def test_a_killed_process_is_replaced_within_its_lease(children):
    one = await children("one")
    await one.until(lambda child: child.owned == ALL and child.reads)
    two = await children("two")
    await two.until(lambda child: len(child.owned) == 32)
    await one.until(lambda child: len(child.owned) == 32)
    assert not one.owned & two.owned
    assert not two.reads
    one.signal(signal.SIGKILL)
    killed = time.monotonic()
    await two.until(lambda child: child.owned == ALL and child.reads)
    assert time.monotonic() - killed < 30  # on a busy machine; the lease has 3 s


@pytest.mark.slow
async def test_a_stopped_process_is_replaced_at_once(children):
    one = await children("one", seconds=60.0)
    await one.until(lambda child: child.owned == ALL and child.reads)
    two = await children("two", seconds=60.0)
    one.signal(signal.SIGTERM)
    await two.until(lambda child: child.owned == ALL and child.reads)
    assert await one.process.wait() == 0


@pytest.mark.slow
async def test_a_frozen_process_has_lost_everything_when_it_wakes(children, postgres, schema):
    one = await children("one")
    await one.until(lambda child: child.owned == ALL and child.reads)
    two = await children("two")
    await two.until(lambda child: len(child.owned) == 32)
    await one.until(lambda child: len(child.owned) == 32)
    before = dict(postgres.run(f"SELECT number, epoch FROM {schema}.partition"))
    had = one.owned
    one.signal(signal.SIGSTOP)
    await two.until(lambda child: child.owned == ALL and child.reads)
    one.signal(signal.SIGCONT)
    await one.until(lambda child: not child.reads and not child.owned & had)
    await one.until(lambda child: len(child.owned) == 32)
    after = dict(postgres.run(f"SELECT number, epoch FROM {schema}.partition"))
    assert all(after[number] > before[number] for number in had)
    assert {partition_of(number) for number in had} == had

"""Several journals on one schema, as several processes have it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection
from uuid import uuid4

import msgspec
import psycopg
import pytest

from autoplay_rag.cluster import PostgresJournal, database
from autoplay_rag.cluster.fence import Fence
from autoplay_rag.cluster.notices import channel_of
from autoplay_rag.content.chunks import Chunk
from autoplay_rag.content.keys import chunk_id, lane_of, partition_of, payload_key
from autoplay_rag.errors import AutoplayError, FencedError
from autoplay_rag.journal.base import Acknowledgement, Entry, Plan, PlannedChunk
from autoplay_rag.journal.ledger import COUNTERS, Ledger
from autoplay_rag.journal.selecting import Asked
from autoplay_rag.payloads import ActionsPayload, SlimAction, SummaryPayload


def _payload(session: str | None, title: str, user: str | None = None) -> ActionsPayload:
    action = SlimAction(title, title, "https://app.test/p", 0, "click", 1000.0, 1000.0)
    return ActionsPayload("acme", session, user, None, [action], 1, 1010.0)


def _entry(payload: ActionsPayload, seq: int) -> Entry:
    key = payload_key(payload)
    body = msgspec.json.encode(payload)
    return Entry(seq, key, lane_of(payload, seq), payload, body, chunk_id(payload, key))


def _plan(number: int, payload: ActionsPayload, seq: int) -> Plan:
    key = payload_key(payload)
    chunk = Chunk(chunk_id(payload, key), "text", {"product_id": "acme", "kind": "actions"})
    return Plan(number, lane_of(payload, seq), [PlannedChunk(chunk, (seq,), 1)])


class Process:
    """One journal, with what it reported."""

    def __init__(self, dsn: str, schema: str, fence=None) -> None:
        self.entries: list[Entry] = []
        self.journal = PostgresJournal(
            dsn,
            schema=schema,
            fence=fence,
            on_entry=lambda entry, outcome: self.entries.append(entry),
            on_returned=lambda back: None,
        )
        self._ticket = 0

    async def accept(self, *payloads: ActionsPayload) -> list[str]:
        """Submit payloads while the writer is busy, so that it commits them together."""
        submitted = threading.Event()
        futures = [asyncio.create_task(self.journal._writer.look(submitted.wait))]
        await asyncio.sleep(0)
        for payload in payloads:
            self._ticket += 1
            futures.append(self.journal.accept(_entry(payload, self._ticket)))
        submitted.set()
        return (await asyncio.gather(*futures))[1:]


@pytest.fixture
def schema():
    return f"t_{uuid4().hex[:12]}"


@pytest.fixture
async def start(postgres, schema):
    started = []

    async def start(**options) -> Process:
        process = Process(postgres.dsn, schema, **options)
        await process.journal.open()
        started.append(process)
        return process

    yield start
    for process in started:
        await process.journal.close()


async def test_numbers_are_unique_and_the_former_ones_are_told(start):
    one, other = await start(), await start()
    assert await one.accept(_payload("a", "1"), _payload(None, "2")) == ["accepted"] * 2
    assert await other.accept(_payload("a", "3"), _payload(None, "4")) == ["accepted"] * 2
    assert [(entry.seq, entry.ticket) for entry in one.entries] == [(1, 0), (2, 0)]
    assert [(entry.seq, entry.ticket) for entry in other.entries] == [(3, 1), (4, 2)]
    # A payload without a session has a session of its own, by its number.
    assert [entry.lane for entry in (one.entries[1], other.entries[1])] == [-2, -4]
    assert [seq for seq, _, _ in await one.journal.waiting(0, 9)] == [1, 2, 3, 4]
    assert (await one.journal.known()).seq == 4


async def test_what_one_knows_is_a_duplicate_for_the_other(start):
    one, other = await start(), await start()
    payload = _payload("a", "1")
    outcomes = await asyncio.gather(one.accept(payload), other.accept(payload))
    assert sorted(outcome for (outcome,) in outcomes) == ["accepted", "duplicate"]


async def test_numbers_are_committed_in_order(start, postgres, schema):
    """A reader that goes on after the last number it saw misses nothing."""
    processes = [await start() for _ in range(3)]
    seen: list[int] = []
    done = asyncio.Event()

    async def follow() -> None:
        async with await psycopg.AsyncConnection.connect(postgres.dsn, autocommit=True) as reader:
            last = False
            while not last:
                last = done.is_set()
                rows = await reader.execute(
                    f"SELECT seq FROM {schema}.payload WHERE seq > %s ORDER BY seq",
                    [seen[-1] if seen else 0],
                )
                seen.extend(seq for (seq,) in await rows.fetchall())

    following = asyncio.create_task(follow())
    for turn in range(15):
        await asyncio.gather(
            *(
                process.accept(*(_payload(f"s{i}", f"{number}-{turn}-{i}") for i in range(7)))
                for number, process in enumerate(processes)
            )
        )
    done.set()
    await following
    assert seen == list(range(1, 3 * 15 * 7 + 1))


async def test_counts_of_all_processes_are_added(start):
    one, other = await start(), await start()
    first, second = _payload("a", "1"), _payload("b", "2")
    await one.accept(first)
    await other.accept(second, first)
    await one.journal.record_plans([_plan(1, first, 1)], [])
    await one.journal.acknowledge([Acknowledgement(_plan(1, first, 1), {})])
    await other.journal.settled_of(0)
    for process in (one, other):
        counts = {name: process.journal.counts[name] for name in COUNTERS}
        assert Ledger(**counts).balanced
        assert {name: n for name, n in counts.items() if n} == {
            "received": 3, "stored": 1, "pending": 1, "duplicate": 1
        }  # fmt: skip


async def test_numbers_of_plans_are_not_used_twice(start):
    one, other = await start(), await start()
    first, second = await asyncio.gather(
        one.journal.take_batches(100), other.journal.take_batches(100)
    )
    assert len(first) == len(second) == 100
    assert len({*first, *second}) == 200
    assert first == sorted(first)
    assert await one.journal.take_batches(1) == [201]


async def test_partitions_are_read_apart(start):
    process = await start()
    payloads = [_payload(f"s{i}", str(i)) for i in range(20)]
    await process.accept(*payloads)
    parts = {partition_of(lane_of(payload, seq)) for seq, payload in enumerate(payloads, 1)}
    mine = set(sorted(parts)[::2])
    await process.journal.record_plans(
        [_plan(seq, payload, seq) for seq, payload in enumerate(payloads, 1)], []
    )
    expected = [
        seq for seq, one in enumerate(payloads, 1) if partition_of(lane_of(one, seq)) in mine
    ]
    assert [seq for seq, _, _ in await process.journal.waiting_of(mine, 0, 99)] == expected
    assert [plan.number for plan in await process.journal.plans_of(mine)] == expected


class _LostError(AutoplayError):
    pass


class _Fence:
    def __init__(self) -> None:
        self.lost: set[int] = set()

    def check(self, connection: psycopg.Connection, parts: Collection[int]) -> None:
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        if self.lost & set(parts):
            raise _LostError


async def test_a_process_without_the_partition_neither_plans_nor_acknowledges(start):
    fence = _Fence()
    process = await start(fence=fence)
    kept, lost = _payload("a", "1"), _payload("b", "2")
    await process.accept(kept, lost)
    mine, other = _plan(1, kept, 1), _plan(2, lost, 2)
    await process.journal.record_plans([mine, other], [])
    fence.lost = {partition_of(other.lane)}
    for attempt in (
        process.journal.acknowledge([Acknowledgement(other, {})]),
        process.journal.replace_plan(other),
        process.journal.record_plans([_plan(3, lost, 2)], []),
    ):
        with pytest.raises(_LostError):
            await attempt
    # What was committed together with it is not affected.
    results = await asyncio.gather(
        process.journal.acknowledge([Acknowledgement(mine, {})]),
        process.journal.acknowledge([Acknowledgement(other, {})]),
        return_exceptions=True,
    )
    assert results[0].settled == [1]
    assert isinstance(results[1], _LostError)
    assert process.journal.counts["stored"] == 1
    assert [plan.number for plan in await process.journal.plans()] == [2]


class _Epochs:
    """The fence of a process that had all partitions with the first epoch."""

    def __init__(self, schema: str) -> None:
        self._schema = schema

    def check(self, connection: psycopg.Connection, parts: Collection[int]) -> None:
        fence = Fence(dict.fromkeys(parts, 0))
        rows = connection.execute(fence.statement(self._schema).encode(), fence.parameters)
        fence.check(rows.fetchall())


_TABLES = ("payload", "chunk", "deletion", "outdated", "claim", "counts")


async def _store_again(journal: PostgresJournal) -> None:
    queued = await journal.queued(0, 9)
    await journal.stored_again({one.number: one.chunk.id for one in queued}, {})


async def _refuse_again(journal: PostgresJournal) -> None:
    queued = await journal.queued(0, 9)
    await journal.stored_again({}, {one.number: "no" for one in queued})


async def _claim(journal: PostgresJournal) -> None:
    (claim,), (claimable,) = await journal.open_claims(lane_of(_payload("a", ""), 0))
    await journal.apply_claims({claim.seq: 1}, {claimable.seq: 1})


async def _update(journal: PostgresJournal) -> None:
    await journal.updated(await journal.outdated(9))


async def _delete(journal: PostgresJournal) -> None:
    await journal.deleted(await journal.deletions(9))


@pytest.mark.parametrize("write", [_store_again, _refuse_again, _claim, _update, _delete])
async def test_a_process_with_an_older_epoch_changes_nothing(start, postgres, schema, write):
    process = await start(fence=_Epochs(schema))
    journal = process.journal
    actions, summary = _payload("a", "1"), SummaryPayload("acme", "a", "One did it.", 1, 1020.0)
    await process.accept(actions, summary)
    plans = [_plan(seq, payload, seq) for seq, payload in enumerate((actions, summary), 1)]
    await journal.record_plans(plans, [])
    await journal.acknowledge([Acknowledgement(plan, {}) for plan in plans])
    await journal.queue_all()
    postgres.run(
        f"SET search_path TO {schema}; INSERT INTO outdated SELECT id, 1 FROM chunk; "
        "INSERT INTO deletion (chunk, reason, at) SELECT id, 'test', 1 FROM chunk"
    )

    def content() -> list[list[tuple]]:
        return [postgres.run(f"SELECT * FROM {schema}.{one} ORDER BY 1") for one in _TABLES]

    part = partition_of(lane_of(actions, 1))
    before = content()
    postgres.run(f"UPDATE {schema}.partition SET epoch = epoch + 1 WHERE number = {part}")
    with pytest.raises(FencedError, match="taken over") as caught:
        await write(journal)
    assert caught.value.partitions == {part}
    assert content() == before
    # Other partitions may have changed hands.
    postgres.run(f"UPDATE {schema}.partition SET epoch = CASE number WHEN {part} THEN 0 ELSE 5 END")
    await write(journal)
    assert content() != before


async def test_new_payloads_are_announced_with_their_partitions(start, postgres, schema):
    process = await start()
    payloads = [_payload("a", "1"), _payload("b", "2")]
    async with await psycopg.AsyncConnection.connect(postgres.dsn, autocommit=True) as listener:
        await listener.execute(f"LISTEN {channel_of(schema)}".encode())
        await process.accept(*payloads)
        notices = listener.notifies(timeout=60, stop_after=1)
        (message,) = [notice.payload async for notice in notices]
    parts = sorted(partition_of(lane_of(payload, 1)) for payload in payloads)
    assert message == ",".join(map(str, parts))


async def test_what_one_forgets_the_other_refuses(start):
    one, other = await start(), await start()
    await one.accept(_payload("a", "1", "ann"), _payload("b", "2", "bob"))
    asked = Asked(user_id="ann")
    selected, sizes = await one.journal.erasures.select(asked)
    assert sizes.payloads == 1
    assert await one.journal.erasures.begin(asked, selected, block=True) is not None
    await one.journal.erasures.delete_all()
    assert await other.accept(_payload("a", "3", "ann"), _payload("c", "4", "bob")) == [
        "refused", "accepted"
    ]  # fmt: skip
    assert [seq for seq, _, _ in await other.journal.waiting(0, 9)] == [2, 4]


async def test_a_request_is_carried_out_once(start, postgres, schema):
    one, other = await start(), await start()
    payload = _payload("a", "1")
    await one.accept(payload)
    await one.journal.record_plans([_plan(1, payload, 1)], [])
    await one.journal.acknowledge([Acknowledgement(_plan(1, payload, 1), {1: "store: no"})])
    postgres.run(f"INSERT INTO {schema}.request (action, seq) VALUES ('retry', '1')")
    back = await asyncio.gather(
        one.journal.carry_out_requests(), other.journal.carry_out_requests()
    )
    assert sorted(back) == [[], [(lane_of(payload, 1), 1)]]
    await other.journal.settled_of(0)
    assert other.journal.counts["pending"] == 1


async def test_many_at_once_change_the_same_sessions(start):
    """Processes that meet in the same rows wait for each other or try again; nothing is lost."""
    processes = [await start() for _ in range(3)]
    await asyncio.gather(
        *(
            process.accept(*(_payload(f"s{(i * 7) % 5}", f"{number} {i}") for i in range(40)))
            for number, process in enumerate(processes)
            for _ in range(2)
        )
    )
    await processes[0].journal.settled_of(0)
    counts = processes[0].journal.counts
    assert counts["received"] == 240
    assert counts["pending"] == 120
    assert counts["duplicate"] == 120
    visits = await processes[0].journal.finder.visits([lane_of(_payload("s1", ""), 1)])
    assert sum(visit.payloads for visit in visits.values()) == 24


class _Pausing:
    """Pauses the first transaction that it checks, as SIGSTOP does."""

    def __init__(self) -> None:
        self.paused, self.go_on = threading.Event(), threading.Event()

    def check(self, connection: psycopg.Connection, parts: Collection[int]) -> None:
        if not self.paused.is_set():
            self.paused.set()
            assert self.go_on.wait(60)


async def test_a_process_that_is_paused_in_a_transaction_does_not_hold_up_others(
    start, monkeypatch
):
    monkeypatch.setattr(
        database, "_TIMEOUT", "SET LOCAL idle_in_transaction_session_timeout = '300ms'"
    )
    pausing = _Pausing()
    one, other = await start(fence=pausing), await start()
    payload = _payload("a", "1")
    await one.accept(payload)
    planning = asyncio.create_task(one.journal.record_plans([_plan(1, payload, 1)], []))
    await asyncio.to_thread(pausing.paused.wait, 60)
    assert await other.journal.discard(None) == 0  # waits until nobody else changes anything
    pausing.go_on.set()
    await planning  # with another connection
    assert [plan.number for plan in await other.journal.plans()] == [1]

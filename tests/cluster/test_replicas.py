"""Three replicas: killed, frozen beyond their lease, the server restarted. Nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import signal
import statistics
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

CHILD = Path(__file__).parent / "replica_child.py"
LEASE_SECONDS = 3.0
ANSWER_SECONDS = 2.0


class Replica:
    """A process; see `replica_child.py`."""

    numbers = itertools.count(1)

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self._waiting: dict[Any, asyncio.Future[dict[str, Any]]] = {}
        self.started = self._expect("started")
        self._reading = asyncio.create_task(self._read())

    def _expect(self, number: Any) -> asyncio.Future[dict[str, Any]]:
        return self._waiting.setdefault(number, asyncio.get_running_loop().create_future())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            event = json.loads(line)
            future = self._waiting.pop(event["answer"], None)
            if future is not None and not future.done():
                future.set_result(event)
        for future in self._waiting.values():
            future.cancel()

    async def ask(self, within: float = ANSWER_SECONDS, **command: Any) -> dict[str, Any] | None:
        """Send a command; return its answer, or None if there was none in time."""
        number = next(self.numbers)
        answer = self._expect(number)
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps({"id": number, **command}).encode() + b"\n")
            async with asyncio.timeout(within):
                return await answer
        except (TimeoutError, ConnectionError, asyncio.CancelledError):
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            return None

    async def end(self, number: int = signal.SIGKILL) -> None:
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)
        await self.process.wait()
        await self._reading


class Cluster:
    def __init__(self, dsn: str, schema: str) -> None:
        self.dsn = dsn
        self.schema = schema
        self.replicas: list[Replica] = []

    async def add(self) -> Replica:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(CHILD), self.dsn, self.schema,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        replica = Replica(process)
        self.replicas.append(replica)
        return replica

    async def until_shared(self) -> None:
        """Wait until all replicas together have all partitions."""
        async with asyncio.timeout(120):
            while True:
                answers = [await replica.ask(do="owned") for replica in self.replicas]
                owned = [set(answer["owned"]) for answer in answers if answer]
                if sum(map(len, owned)) == 64 and len(set.union(*owned)) == 64:
                    return
                await asyncio.sleep(0.1)

    async def send(self, session: str, numbers: range, source: random.Random) -> None:
        """Send a session's payloads in order, as pushes: again, to any replica, until accepted."""
        for number in numbers:
            while not await source.choice(self.replicas).ask(
                do="accept", session=session, number=number
            ):
                pass
            await asyncio.sleep(source.uniform(0, 0.1))


@pytest.fixture
async def cluster(postgres, make_pg_store):
    made = Cluster(postgres.dsn, f"r_{uuid4().hex[:12]}")
    yield made
    for replica in made.replicas:
        with suppress(ProcessLookupError):
            replica.process.send_signal(signal.SIGCONT)
        await replica.end()


def check(postgres, cluster, expected: list[str], ledger: dict[str, Any]) -> None:
    """Check that each payload is stored once, and each session in its order."""
    schema = cluster.schema
    rows = postgres.run(
        f"SELECT c.session, c.text FROM {schema}.chunk c "
        f"JOIN {schema}.store_chunk_1 s ON s.id = c.id AND s.text = c.text"
    )
    lines = Counter(line for _, text in rows for line in text.split("\n"))
    assert lines == Counter(expected)
    # In the order in which the payloads were accepted: their texts, and when they were stored.
    order: dict[int, list[tuple[str, float, int]]] = {}
    for lane, title, ended, chunk in postgres.run(
        f"SELECT p.lane, t.text, p.ended, c.chunk FROM {schema}.payload p "
        f"JOIN {schema}.passage t USING (seq) JOIN {schema}.chunk_payload c USING (seq) "
        "ORDER BY p.lane, p.seq"
    ):
        order.setdefault(lane, []).append((title, ended, chunk))
    for found in order.values():
        numbers = [int(title.rpartition("-")[2].split()[0]) for title, _, _ in found]
        assert numbers == [*range(len(numbers))]
        times = [ended for _, ended, _ in found]
        assert times == sorted(times)
        chunks = [chunk for chunk, _ in itertools.groupby(found, key=lambda row: row[2])]
        assert len(chunks) == len(set(chunks))  # no chunk is between the parts of another
    assert postgres.run(f"SELECT count(*) FROM {schema}.store_chunk_1") == [(len(rows),)]
    assert postgres.run(f"SELECT count(*) FROM {schema}.plan") == [(0,)]
    assert ledger["stored"] == len(expected)
    assert ledger["pending"] == ledger["dead"] == ledger["overflow"] == 0
    assert ledger["received"] == ledger["stored"] + ledger["duplicate"]


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_killed_frozen_and_restarted(cluster, postgres):
    for _ in range(3):
        await (await cluster.add()).started
    await cluster.until_shared()
    sessions, count = 30, 60
    sending = [
        asyncio.create_task(cluster.send(f"s{one}", range(count), random.Random(one)))
        for one in range(sessions)
    ]
    await asyncio.sleep(2)
    killed = cluster.replicas[0]
    await killed.end()
    cluster.replicas.remove(killed)
    taken = time.monotonic()
    await cluster.until_shared()
    assert time.monotonic() - taken < 15
    fresh = await cluster.add()
    frozen = cluster.replicas[0]
    frozen.process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(LEASE_SECONDS * 2)
    frozen.process.send_signal(signal.SIGCONT)
    await fresh.started
    await asyncio.gather(*sending)
    answer = await cluster.replicas[-1].ask(within=120, do="drain")
    assert answer is not None
    expected = [f"s{one}-{number}" for one in range(sessions) for number in range(count)]
    check(postgres, cluster, expected, answer["ledger"])


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(1))
async def test_at_random(cluster, postgres, seed):
    source = random.Random(seed)
    for _ in range(3):
        await (await cluster.add()).started
    await cluster.until_shared()
    sessions, count = 40, 120
    sending = asyncio.gather(
        *(
            cluster.send(f"s{one}", range(count), random.Random(1000 * seed + one))
            for one in range(sessions)
        )
    )
    while not sending.done():
        await asyncio.sleep(source.uniform(0, 3))
        replica = source.choice(cluster.replicas)
        action = source.choice(["kill", "kill", "freeze", "restart", "stop"])
        if action == "freeze":
            replica.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(source.uniform(0, 3 * LEASE_SECONDS))
            replica.process.send_signal(signal.SIGCONT)
        elif action == "restart":
            postgres.stop()
            await asyncio.sleep(source.uniform(0, 2))
            postgres.start()
        else:
            cluster.replicas.remove(replica)
            if action == "kill":
                await replica.end()
            else:
                assert replica.process.stdin is not None
                replica.process.stdin.close()  # it finishes what it was sent, and leaves
                async with asyncio.timeout(60):
                    assert await replica.process.wait() == 0
                await replica.end()
            await (await cluster.add()).started
    await sending
    answer = await cluster.replicas[-1].ask(within=120, do="drain")
    assert answer is not None
    expected = [f"s{one}-{number}" for one in range(sessions) for number in range(count)]
    check(postgres, cluster, expected, answer["ledger"])


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_restarted_server(cluster, postgres):
    for _ in range(2):
        await (await cluster.add()).started
    await cluster.until_shared()
    sending = [
        asyncio.create_task(cluster.send(f"s{one}", range(40), random.Random(one)))
        for one in range(20)
    ]
    await asyncio.sleep(1)
    postgres.stop()
    await asyncio.sleep(1)
    postgres.start()
    await asyncio.gather(*sending)
    answer = await cluster.replicas[0].ask(within=120, do="drain")
    assert answer is not None
    expected = [f"s{one}-{number}" for one in range(20) for number in range(40)]
    check(postgres, cluster, expected, answer["ledger"])


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_partitions_of_a_killed_replica_move_on_within_seconds(cluster, postgres):
    for _ in range(3):
        await (await cluster.add()).started
    await cluster.until_shared()
    times = []
    for _ in range(3):
        killed = cluster.replicas.pop(0)
        await killed.end()
        at = time.monotonic()
        await cluster.until_shared()
        times.append(time.monotonic() - at)
        await (await cluster.add()).started
        await cluster.until_shared()
    assert statistics.median(times) < 15

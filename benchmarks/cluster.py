"""Run several replicas on one PostgreSQL: kill, freeze and restart them; measure how they scale.

    python -m benchmarks.cluster faults [--replicas 3] [--rate 1000] [--minutes 5] [--kills 20] ...
    python -m benchmarks.cluster faults --queue kafka [--partitions 6] [--broker-restarts 1] ...
    python -m benchmarks.cluster scaling [--replicas 1,2,4] [--events 12000]

Each replica is a process with a pipeline; the server is one from the package index, with its default
settings. Events are pushed to any replica, and pushed again to another one after 2 s without an
answer. `faults` checks that each event is stored once, each session in its order, and that the ledger
balances. With `--queue kafka` the events come through a topic; the broker is one from the package
index too. It has everything in memory: after a restart it is empty, and what the journal does not have
is sent again.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import signal
import statistics
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoplay_rag.kafka.address import TopicAddress
from benchmarks.broker import Broker
from benchmarks.replica import Options, title_of
from benchmarks.replicas import Replica, Replicas, Server
from benchmarks.replicas_outcome import read_outcome, send
from benchmarks.table import Figure, show
from benchmarks.topic_feeder import Feeder

SCHEMA = "bench"
FROZEN_LEASES = 1.5
"""How long a frozen replica stands still, in lengths of a lease, or of a session if that is longer."""
_DRAIN_SECONDS = 600.0
_PAUSE_SECONDS = 1.5
"""What counts as a pause of a partition, whatever its cause."""


@dataclass
class Faults:
    """What was done to the replicas.

    Attributes:
        kills: When a replica was killed, in Unix seconds, and the partitions it had.
        reading: The same, with the partitions of the topic that it read.
        freezes: How many were frozen.
        restarts: How many times the server was restarted.
        broker_restarts: How many times the broker was.
        layouts: When the broker was restarted, and the partition of each session until then. The
            topic that is made after it may have fewer partitions.
    """

    kills: list[tuple[float, list[int]]] = field(default_factory=list)
    reading: list[tuple[float, list[int]]] = field(default_factory=list)
    freezes: int = 0
    restarts: int = 0
    broker_restarts: int = 0
    layouts: list[tuple[float, dict[str, int]]] = field(default_factory=list)


async def _cause_faults(
    replicas: Replicas,
    topic: tuple[Broker, Feeder] | None,
    faults: Faults,
    options: argparse.Namespace,
    source: random.Random,
) -> None:
    """Kill, freeze and restart at random times; each as often as asked for."""
    seconds = options.minutes * 60
    kinds = ["kill"] * options.kills + ["freeze"] * options.freezes + ["restart"] * options.restarts
    kinds += ["broker"] * (options.broker_restarts if topic else 0)
    started = time.monotonic()
    thawing: list[asyncio.Task[None]] = []
    for at, kind in sorted((source.uniform(0.05, 0.95) * seconds, kind) for kind in kinds):
        await asyncio.sleep(max(0.0, started + at - time.monotonic()))
        if kind == "restart":
            await asyncio.to_thread(replicas.server.restart)
            faults.restarts += 1
            continue
        if kind == "broker":
            assert topic is not None
            broker, feeder = topic
            parts = await asyncio.to_thread(feeder.parts, options.sessions)
            faults.layouts.append((time.time(), parts))
            await asyncio.to_thread(broker.restart)
            faults.broker_restarts += 1
            continue
        candidates = await _wait_for_candidates(replicas)
        victim = source.choice(candidates)
        if kind == "kill":
            shares = await asyncio.to_thread(replicas.shares)
            reading = await asyncio.to_thread(replicas.topic_shares)
            await replicas.kill(victim)
            faults.kills.append((time.time(), shares.get(victim.process.pid, [])))
            faults.reading.append((time.time(), reading.get(victim.process.pid, [])))
            await replicas.add()
        else:
            thawing.append(
                asyncio.create_task(
                    _freeze(victim, FROZEN_LEASES * max(options.lease, options.session))
                )
            )
            faults.freezes += 1
    if thawing:
        await asyncio.wait(thawing)


async def _wait_for_candidates(replicas: Replicas) -> list[Replica]:
    while True:
        found = [
            one
            for one in replicas.live
            if one.started.done() and not one.started.cancelled() and not one.frozen
        ]
        if found:
            return found
        await asyncio.sleep(0.1)


async def _freeze(replica: Replica, seconds: float) -> None:
    replica.frozen = True
    replica.process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(seconds)
    with suppress(ProcessLookupError):
        replica.process.send_signal(signal.SIGCONT)
    replica.frozen = False


def _pauses(kills: list[tuple[float, list[int]]], times: dict[int, list[float]]) -> list[float]:
    """For each partition of a killed replica, the seconds until something happened there again."""
    found = []
    for at, parts in kills:
        for part in parts:
            later = [ended for ended in times.get(part, []) if ended > at]
            if later:
                found.append(min(later) - at)
    return found


def _reading(
    faults: Faults,
    parts: dict[str, int],
    came: dict[str, list[float]],
    options: argparse.Namespace,
) -> Figure:
    """How long a partition of the topic was not read, after a kill and for any other cause."""
    of_part: dict[int, list[float]] = {}
    for session, times in came.items():
        for at in times:
            then = next((before for end, before in faults.layouts if at < end), parts)
            of_part.setdefault(then[session], []).append(at)
    after_kills = _pauses(faults.reading, of_part) or [float("nan")]
    all_pauses = [
        later - earlier
        for times in of_part.values()
        for earlier, later in itertools.pairwise(sorted(times))
        if later - earlier > _PAUSE_SECONDS
    ] or [float("nan")]
    return Figure(
        "seconds until a partition of the topic that a killed replica read is read again",
        f"{statistics.median(after_kills):.1f} median, {max(after_kills):.1f} at most",
        f"{len(after_kills):,} partitions, session timeout {options.session:g} s; pauses over "
        f"{_PAUSE_SECONDS:g} s of any cause: {len(all_pauses):,}, "
        f"{statistics.median(all_pauses):.1f} median, {max(all_pauses):.1f} at most",
        "12 s median", statistics.median(after_kills) < 12,
    )  # fmt: skip


async def _push_all(
    replicas: Replicas, options: argparse.Namespace, count: int, interval: float
) -> str:
    """Push all events at their times, and tell how many attempts that took."""
    attempts = await asyncio.gather(
        *(
            send(replicas, f"s{one}", count, interval, random.Random(one))
            for one in range(options.sessions)
        )
    )
    return f"{sum(attempts):,} pushes"


async def _faults(
    server: Server, broker: Broker | None, options: argparse.Namespace
) -> list[Figure]:
    source, faults = random.Random(options.seed), Faults()
    interval = options.sessions / options.rate
    count = round(options.minutes * 60 / interval)
    address = TopicAddress(broker.bootstrap, "events", "bench") if broker else None
    setup = Options(
        SCHEMA,
        options.lease,
        options.window,
        topic=address.url if address else "",
        session_seconds=options.session,
    )
    async with AsyncExitStack() as stack:
        feeder = None
        if address is not None:
            feeder = Feeder(server, SCHEMA, address, options.partitions)
            await stack.enter_async_context(feeder)
        replicas = await stack.enter_async_context(Replicas(server, setup))
        for _ in range(options.replicas):
            await (await replicas.add()).started
        await replicas.until_shared()
        if feeder is not None:
            await replicas.until_topic_shared(options.partitions)
        began = time.monotonic()
        topic = (broker, feeder) if broker and feeder else None
        causing = asyncio.create_task(_cause_faults(replicas, topic, faults, options, source))
        if feeder is None:
            told = await _push_all(replicas, options, count, interval)
        else:
            await feeder.run(options.sessions, count, interval)
            told = f"{feeder.delivered:,} relayed, at most {feeder.most_kept:,} kept at once"
        seconds = time.monotonic() - began
        await causing
        (last, *_) = await _wait_for_candidates(replicas)
        answer = await last.ask(do="drain", timeout=_DRAIN_SECONDS)
        drained = time.monotonic() - began - seconds
        parts = await asyncio.to_thread(feeder.parts, options.sessions) if feeder else None
    ledger: dict[str, Any] = answer["ledger"] if answer else Counter()
    outcome = await asyncio.to_thread(read_outcome, server, SCHEMA)
    expected = Counter(
        title_of(f"s{one}", number) for one in range(options.sessions) for number in range(count)
    )
    lost, more = (expected - outcome.stored).total(), (outcome.stored - expected).total()
    balanced = (
        ledger["received"] == ledger["stored"] + ledger["duplicate"]
        and ledger["stored"] == expected.total()
        and not ledger["pending"]
    )
    pauses = _pauses(faults.kills, outcome.times) or [float("nan")]
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    figures = [
        Figure(
            f"{options.replicas} replicas, {options.rate:g} events a second for "
            f"{options.minutes:g} minutes, {len(faults.kills)} kills, {faults.freezes} freezes, "
            f"{faults.restarts} restarts of PostgreSQL, {faults.broker_restarts} of the broker: "
            "events lost, stored twice, sessions out of order",
            f"{lost:,} lost, {more:,} doubled, {outcome.out_of_order:,} out of order of "
            f"{expected.total():,} events in {options.sessions:,} sessions; ledger balanced: "
            f"{balanced}; rows left over: {outcome.left}",
            f"{told} in {seconds:.0f} s, drained in {drained:.1f} s, load {load}",
            "0, 0 and 0", not (lost or more or outcome.out_of_order or outcome.left) and balanced,
        ),
        Figure(
            "seconds until the partitions of a killed replica store again",
            f"{statistics.median(pauses):.1f} median, {max(pauses):.1f} at most",
            f"{len(pauses):,} partitions, lease {options.lease:g} s, window {options.window:g} s",
            "15 s median", statistics.median(pauses) < 15,
        ),
    ]  # fmt: skip
    if parts is not None:
        figures.append(_reading(faults, parts, outcome.came, options))
    return figures


def _processor_seconds(replica: Replica) -> float:
    """The processor time of a replica so far, with its start. Linux only."""
    try:
        numbers = Path(f"/proc/{replica.process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("nan")
    return (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")


async def _rate(server: Server, count: int, options: argparse.Namespace) -> float:
    """Return the events a second that `count` replicas take in and store."""
    server.run(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
    setup = Options(SCHEMA, embed_concurrency=1)
    async with Replicas(server, setup) as replicas:
        for _ in range(count):
            await (await replicas.add()).started
        await replicas.until_shared()
        began = time.monotonic()
        edges = [options.events * place // count for place in range(count + 1)]
        fed = await asyncio.gather(
            *(
                replica.ask(do="feed", first=first, end=end)
                for replica, (first, end) in zip(
                    replicas.live, itertools.pairwise(edges), strict=True
                )
            )
        )
        taken_in = time.monotonic() - began
        answer = await replicas.live[0].ask(do="drain", timeout=_DRAIN_SECONDS)
        seconds = time.monotonic() - began
        spent = sum(map(_processor_seconds, replicas.live))
        print(
            f"{count} replicas: taken in {taken_in:.1f} s, stored {seconds:.1f} s, processor time of "
            f"the replicas {spent:.1f} s",
            file=sys.stderr,
        )
        if not all(fed) or answer is None or answer["ledger"]["stored"] != options.events:
            raise RuntimeError(f"{count} replicas did not store everything: {answer}")
    return float(options.events / seconds)


async def _scaling(server: Server, options: argparse.Namespace) -> list[Figure]:
    rates = {count: await _rate(server, count, options) for count in options.replicas}
    one = rates.get(1, float("nan"))
    bars = {2: 1.7, 4: 3.0}
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    return [
        Figure(
            f"events a second of {count} replicas: an embedder that waits 50 ms a request, 16 texts "
            "a request, one request at once, no vector index",
            f"{rate:,.0f}, {rate / one:.2f} times one",
            f"{one:,.0f} with one replica; {options.events:,} events, {os.cpu_count()} cores, load {load}",
            f"{bars[count]:g} times" if count in bars else "-",
            rate / one >= bars.get(count, 0),
        )
        for count, rate in rates.items()
    ]  # fmt: skip


def _counts(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main(argv: list[str] | None = None) -> list[Figure]:
    """Run the benchmark; the arguments are those of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster")
    parts = parser.add_subparsers(dest="part", required=True)
    faults = parts.add_parser("faults")
    faults.add_argument("--replicas", type=int, default=3)
    faults.add_argument("--rate", type=float, default=1000.0)
    faults.add_argument("--minutes", type=float, default=5.0)
    faults.add_argument("--sessions", type=int, default=500)
    faults.add_argument("--kills", type=int, default=20)
    faults.add_argument("--freezes", type=int, default=5)
    faults.add_argument("--restarts", type=int, default=2)
    faults.add_argument("--lease", type=float, default=10.0)
    faults.add_argument("--window", type=float, default=1.0)
    faults.add_argument("--seed", type=int, default=1)
    faults.add_argument("--queue", choices=["postgres", "kafka"], default="postgres")
    faults.add_argument("--partitions", type=int, default=6)
    faults.add_argument("--session", type=float, default=6.0)
    faults.add_argument("--broker-restarts", type=int, default=1)
    scaling = parts.add_parser("scaling")
    scaling.add_argument("--replicas", type=_counts, default=[1, 2, 4])
    scaling.add_argument("--events", type=int, default=12_000)
    options = parser.parse_args(argv)
    with Server() as server:
        if options.part == "scaling":
            return asyncio.run(_scaling(server, options))
        if options.queue == "postgres":
            return asyncio.run(_faults(server, None, options))
        with Broker() as broker:
            return asyncio.run(_faults(server, broker, options))


if __name__ == "__main__":
    figures = main(sys.argv[1:])
    show(figures)
    sys.exit(0 if all(figure.met for figure in figures) else 1)

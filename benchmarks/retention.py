"""Whether journal and store stop growing with a retention of a week, and what deletion costs.

python -m benchmarks.retention                         ten simulated weeks of 2,800 events, some minutes
python -m benchmarks.retention --events 700            a minute
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import random
import tempfile
import time
from pathlib import Path

from autoplay_rag import ActionsPayload, IngestPipeline, SlimAction
from autoplay_rag.stores import ChromaStore, MemoryStore
from benchmarks.maintenance import RandomEmbedder

_DAY = 24 * 3600.0
_WEEKS = 10
_RATE = 100
"""Events a second while latency is measured."""
_SECONDS = 10.0
_WORDS = [
    f"{first}{last}" for first in "bcdfghjklmnprstvw" for last in ("at", "en", "ip", "ot", "un")
]


class Clock:
    """The time of a simulation."""

    def __init__(self) -> None:
        self.now = 1.7e9

    def __call__(self) -> float:
        return self.now


def payload(number: int, at: float) -> ActionsPayload:
    """A payload of three actions. Sessions have ten of them."""
    source = random.Random(number)
    clicks = [
        SlimAction(
            f"click {number}.{i}",
            f"User clicked {' '.join(source.choices(_WORDS, k=8))} in report {number * 7919}",
            f"https://app.test/{number % 997}",
            i,
            "click",
            at + i,
            at + i,
        )
        for i in range(3)
    ]
    return ActionsPayload("acme", f"s{number // 10}", f"user {number // 100}", None, clicks, 3, at)


def pipeline_of(store: object, journal: Path, clock: Clock, **options: object) -> IngestPipeline:
    """A pipeline whose time is simulated."""
    made = IngestPipeline(store, RandomEmbedder(), journal=journal, batch_window=0.0, **options)
    made._settings = dataclasses.replace(made._settings, clock=clock)  # noqa: SLF001
    return made


async def send(pipeline: IngestPipeline, numbers: range, clock: Clock, seconds: float) -> None:
    """Accept events, spread evenly over simulated time, and store them."""
    for number in numbers:
        clock.now += seconds / len(numbers)
        accepted = pipeline.accept(payload(number, clock.now))
        if number % 200 == 199:
            await accepted
    await pipeline.drain(300)


async def expire(pipeline: IngestPipeline) -> None:
    """Delete what is old, in store and journal."""
    work = pipeline._run.retention  # noqa: SLF001 - the simulated time passes faster than its timer
    work.wake()
    await work.wait()
    await pipeline.drain(300)


def size(*paths: Path) -> int:
    """The bytes of these files."""
    return sum(path.stat().st_size for path in paths if path.is_file())


async def weeks(events: int, key_days: float, folder: Path) -> None:
    """Print the sizes after each of ten weeks."""
    clock = Clock()
    journal, chroma = folder / "journal.db", folder / "chroma"
    options = {"retention_days": 7, "remember_keys_days": key_days, "max_batch_actions": 3}
    print(f"{events:,} events a week, a retention of 7 days, keys for {key_days:g} days")
    print("week    journal, its log    Chroma's database, index    chunks   known payloads")
    store = ChromaStore(chroma)
    async with pipeline_of(store, journal, clock, **options) as pipeline:
        daily = events // 7
        for week in range(_WEEKS):
            for day in range(7):
                start = (week * 7 + day) * daily
                await send(pipeline, range(start, start + daily), clock, _DAY)
                await expire(pipeline)
                await store.compact()  # as the pipeline does every ten minutes
            journal_bytes = size(journal)
            log = size(journal.with_name("journal.db-wal"))
            database = size(*chroma.glob("chroma.sqlite3*"))
            index = size(*(path for path in chroma.rglob("*") if path.parent != chroma))
            known = (await pipeline._run._journal.known()).chunks  # noqa: SLF001
            left = await pipeline._run._journal._read(  # noqa: SLF001
                lambda connection: connection.execute("SELECT count(*) FROM payload").fetchone()[0]
            )
            print(
                f"{week + 1:4}{journal_bytes >> 10:9,} KB{log >> 10:8,} KB"
                f"{database >> 10:15,} KB{index >> 10:9,} KB{known:10,}{left:12,}",
                flush=True,
            )


async def latency(events: int, folder: Path) -> None:
    """Print how long an event takes to be accepted, without and beside a large deletion."""
    clock = Clock()
    options = {"retention_days": 7, "max_batch_actions": 3, "drain_timeout": 300.0}
    journal = folder / "journal.db"
    async with pipeline_of(MemoryStore(), journal, clock, **options) as pipeline:
        await send(pipeline, range(events), clock, _DAY)
        clock.now += 30 * _DAY
        before = await accepted(pipeline, clock, 10_000_000, asyncio.sleep(_SECONDS))
        began = time.perf_counter()
        beside = await accepted(pipeline, clock, 20_000_000, expire(pipeline))
        seconds = time.perf_counter() - began
    print(f"{events:,} events deleted in {seconds:.1f} s, at {_RATE} new ones a second")
    for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
        one, other = (
            times[min(len(times) - 1, int(len(times) * share))] for times in (before, beside)
        )
        print(
            f"    accepted within, {name}: {one * 1000:6.1f} ms before, {other * 1000:6.1f} ms "
            f"beside it, {other / one:.1f} times"
        )


async def accepted(pipeline: IngestPipeline, clock: Clock, first: int, work: object) -> list[float]:
    """Send events at a constant rate beside some work; returns how long each took, in order."""
    found = []
    task = asyncio.ensure_future(work)
    number = first
    while not task.done():
        before = time.perf_counter()
        await pipeline.accept(payload(number, clock.now))
        found.append(time.perf_counter() - before)
        number += 1
        await asyncio.sleep(1 / _RATE)
    await task
    return sorted(found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=2800, help="events a week")
    parser.add_argument("--keys", type=float, default=7.0, help="remember_keys_days")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made_here:
        asyncio.run(latency(given.events * 4, Path(made_here)))
    with tempfile.TemporaryDirectory() as made_here:
        asyncio.run(weeks(given.events, given.keys, Path(made_here)))

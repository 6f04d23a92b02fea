"""Measure the journal's own cost: CPU and bytes written per event.

The latency of an embedder or a store would hide the work of the journal. Here both take no time, and
each run has its own process. The bytes are those that the process passes to the operating system:
the write-ahead log and the checkpoints.

    python -m benchmarks.journal_cost            the table
    python -m benchmarks.journal_cost million    with a million known payloads (takes minutes)
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from pathlib import Path

from benchmarks.pipeline import decoded
from benchmarks.streams import events
from benchmarks.table import Figure, show

BULK = 10_000
PACED = 3_000
PER_SECOND = 200
SESSIONS = 1_000
ROUNDS = 3
MILLION = 1_000_000
_VECTOR = array("f", [1.0, 0.0])


def _parts():
    """An embedder and a store that take no time."""
    from autoplay_rag.embedders.base import Embedder
    from autoplay_rag.stores import VectorStore

    class Embeds(Embedder):
        model = "takes no time"
        max_inputs = 1000

        async def embed(self, texts):
            return [_VECTOR] * len(texts)

    class Stores(VectorStore):
        async def upsert(self, chunks, vectors): ...

        async def query(self, vector, k, filter):  # noqa: ARG002 - finds nothing
            return []

        async def delete(self, ids): ...

        async def count(self):
            return 0

    return Stores(), Embeds()


def _written() -> int:
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["wchar"])


async def _bulk(journal: str | None, count: int) -> dict:
    """Ingest at full speed, 200 concurrent calls at a time."""
    from autoplay_rag import IngestPipeline

    store, embedder = _parts()
    with decoded(count, SESSIONS) as payloads:
        async with IngestPipeline(store, embedder, journal=journal) as pipeline:
            before, cpu, started = _written(), time.process_time(), time.perf_counter()
            for start in range(0, count, 200):
                given = payloads[start : start + 200]
                await asyncio.gather(*(pipeline.on_actions(payload) for payload in given))
            await pipeline.drain()
            assert pipeline.ledger.stored >= count
            return {
                "cpu_us": (time.process_time() - cpu) / count * 1e6,
                "bytes": (_written() - before) / count,
                "per_second": count / (time.perf_counter() - started),
            }


async def _raw(journal: str, count: int) -> dict:
    """The limit: bare inserts of the same events into SQLite, 200 in a transaction."""
    bodies = [(number, json.dumps(event)) for number, event in enumerate(events(count, SESSIONS))]
    connection = sqlite3.connect(journal, isolation_level=None)
    connection.executescript(
        "PRAGMA journal_mode = wal; PRAGMA synchronous = normal;"
        "CREATE TABLE event (seq INTEGER PRIMARY KEY, body)"
    )
    before, cpu, started = _written(), time.process_time(), time.perf_counter()
    for start in range(0, count, 200):
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO event VALUES (?, ?)", bodies[start : start + 200])
        connection.execute("COMMIT")
    connection.close()
    return {
        "cpu_us": (time.process_time() - cpu) / count * 1e6,
        "bytes": (_written() - before) / count,
        "per_second": count / (time.perf_counter() - started),
    }


async def _paced(journal: str | None, count: int) -> dict:
    """Ingest as from a live stream: `PER_SECOND` events per second, evenly spaced."""
    from autoplay_rag import IngestPipeline

    store, embedder = _parts()
    loop = asyncio.get_running_loop()
    with decoded(count, SESSIONS) as payloads:
        async with IngestPipeline(store, embedder, journal=journal) as pipeline:
            before, cpu, started = _written(), time.process_time(), loop.time()
            for number, payload in enumerate(payloads):
                await asyncio.sleep(started + number / PER_SECOND - loop.time())
                await pipeline.on_actions(payload)
            await pipeline.drain()
            return {
                "cpu_us": (time.process_time() - cpu) / count * 1e6,
                "bytes": (_written() - before) / count,
                "per_second": count / (loop.time() - started),
            }


async def _million(journal: str) -> dict:
    """With a million known payloads, measure the cost per event and the time of a start."""
    from autoplay_rag import IngestPipeline

    store, embedder = _parts()
    step = 50_000
    for _ in range(MILLION // step):
        async with IngestPipeline(store, embedder, journal=journal) as pipeline:
            with decoded(step, SESSIONS) as payloads:
                for start in range(0, step, 1000):
                    await asyncio.gather(
                        *(pipeline.on_actions(_other(p)) for p in payloads[start : start + 1000])
                    )
            await pipeline.drain(600)
    started = time.perf_counter()
    pipeline = IngestPipeline(store, embedder, journal=journal)
    await pipeline.start()
    start_seconds = time.perf_counter() - started
    before, cpu = _written(), time.process_time()
    with decoded(BULK, SESSIONS) as payloads:
        for start in range(0, BULK, 200):
            given = [_other(payload) for payload in payloads[start : start + 200]]
            await asyncio.gather(*(pipeline.on_actions(payload) for payload in given))
    await pipeline.drain(600)
    found = {
        "cpu_us": (time.process_time() - cpu) / BULK * 1e6,
        "bytes": (_written() - before) / BULK,
        "start_seconds": start_seconds,
        "file_bytes": Path(journal).stat().st_size,  # noqa: ASYNC240 - nothing else runs
        "known": pipeline.ledger.stored,
    }
    await pipeline.aclose()
    return found


_numbers = iter(range(10**9))


def _other(payload):
    """Copy a payload with another key."""
    import msgspec

    action = msgspec.structs.replace(payload.actions[0], title=f"Report {next(_numbers)}")
    return msgspec.structs.replace(payload, actions=[action, *payload.actions[1:]])


_RUNS = {"bulk": (_bulk, BULK), "raw": (_raw, BULK), "paced": (_paced, PACED)}


def _run(name: str, journal: bool) -> dict:
    command = [
        sys.executable,
        "-m",
        "benchmarks.journal_cost",
        name,
        "file" if journal else "memory",
    ]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(found.stdout.splitlines()[-1])


def main() -> list[Figure]:
    turns = [(_run("bulk", True), _run("bulk", False)) for _ in range(ROUNDS)]
    ratio = statistics.median(a["cpu_us"] / b["cpu_us"] for a, b in turns)
    with_ = statistics.median(a["cpu_us"] for a, _ in turns)
    without = statistics.median(b["cpu_us"] for _, b in turns)
    bulk = statistics.median(a["bytes"] for a, _ in turns)
    paced = _run("paced", True)["bytes"]
    raw = [_run("raw", True) for _ in range(ROUNDS)]
    insert, inserted = (statistics.median(one[name] for one in raw) for name in ("cpu_us", "bytes"))
    return [
        Figure(
            "CPU of an event with a journal on disk, embedder and store taking no time",
            f"{with_:,.0f} us = {ratio:.2f} of without", f"{without:,.0f} us without; a bare INSERT {insert:,.0f} us",
            "at most 1.5", ratio <= 1.5,
        ),
        Figure(
            "bytes written for an event of 1.3 KB, in bulk",
            f"{bulk / 1000:,.1f} KB", f"bare INSERTs {inserted / 1000:,.1f} KB", "at most 12", bulk <= 12_000,
        ),
        Figure(
            f"bytes written for an event of 1.3 KB, {PER_SECOND} a second",
            f"{paced / 1000:,.1f} KB", "-", "at most 16", paced <= 16_000,
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/journal.db"
        match sys.argv[1:]:
            case ["million"]:
                print(json.dumps(asyncio.run(_million(path))))
            case [name, kind]:
                run, count = _RUNS[name]
                print(json.dumps(asyncio.run(run(path if kind == "file" else None, count))))
            case _:
                show(main())

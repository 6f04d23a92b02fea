"""Measure the cost of full text during ingest: CPU time with and without it, and bytes on disk.

Runs with and without full text alternate, each in its own process. "Without" replaces a private
function, so that no payload has a passage. The run with the bundled model ingests a backlog. The
run without a model has an embedder and a store that take no time. The ratios are of CPU time,
because other load on the machine changes it less than wall time.

    python -m benchmarks.fulltext_cost
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
from pathlib import Path

from benchmarks.journal_cost import _bulk as bulk
from benchmarks.journal_cost import _parts as parts_without_cost
from benchmarks.pipeline import decoded
from benchmarks.table import Figure, show

ROUNDS = 3
MODEL_EVENTS = 300
JOURNAL_EVENTS = 4_000
DISK_EVENTS = 4_000
SESSIONS = 100


def without_full_text() -> None:
    """Disable the full-text index in this process."""
    from autoplay_rag.journal import queue

    queue.passage_of = lambda _: None


async def with_model(journal: str, count: int) -> dict:
    """Ingest a backlog, embedded with the bundled model."""
    from autoplay_rag import IngestPipeline
    from autoplay_rag.embedders import LocalEmbedder
    from autoplay_rag.stores import MemoryStore

    embedder = LocalEmbedder()
    await embedder.embed(["load the model"])
    with decoded(count, SESSIONS) as payloads:
        async with IngestPipeline(MemoryStore(), embedder, journal=journal) as pipeline:
            cpu, started = time.process_time(), time.perf_counter()
            await asyncio.gather(*map(pipeline.on_actions, payloads))
            await pipeline.drain()
            return {
                "cpu_us": (time.process_time() - cpu) / count * 1e6,
                "per_second": count / (time.perf_counter() - started),
            }


async def on_disk(journal: str, count: int) -> dict:
    """Measure the bytes of the file per payload. Each payload is stored in its own chunk."""
    from autoplay_rag import IngestPipeline

    with decoded(count, count // 4) as payloads:
        async with IngestPipeline(
            *parts_without_cost(), journal=journal, batch_window=0
        ) as pipeline:
            for start in range(0, count, count // 4):
                given = payloads[start : start + count // 4]
                await asyncio.gather(*map(pipeline.on_actions, given))
                await pipeline.drain()
    connection = sqlite3.connect(journal)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    (text,) = connection.execute("SELECT avg(length(CAST(text AS BLOB))) FROM chunk").fetchone()
    (chunks,) = connection.execute("SELECT count(*) FROM chunk").fetchone()
    tables = _sizes(connection)
    connection.close()
    assert chunks == count
    return {"bytes": Path(journal).stat().st_size / count, "text": text, "tables": tables}  # noqa: ASYNC240


def _sizes(connection: sqlite3.Connection) -> dict[str, int]:
    """Bytes of each table and index; empty if SQLite was built without `dbstat`."""
    try:
        rows = connection.execute(
            "SELECT name, sum(pgsize) FROM dbstat GROUP BY name ORDER BY 2 DESC"
        )
        return dict(rows.fetchall())
    except sqlite3.OperationalError:
        return {}


_RUNS = {
    "model": (with_model, MODEL_EVENTS),
    "journal": (bulk, JOURNAL_EVENTS),
    "disk": (on_disk, DISK_EVENTS),
}


def _run(name: str, *, full_text: bool = True) -> dict:
    command = [
        sys.executable,
        "-m",
        "benchmarks.fulltext_cost",
        name,
        "with" if full_text else "without",
    ]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(found.stdout.splitlines()[-1])


def _ratio(name: str) -> tuple[float, float, float]:
    """CPU time without full text divided by that with it, and both in us per event."""
    turns = [(_run(name), _run(name, full_text=False)) for _ in range(ROUNDS)]
    with_, without = ([turn[side]["cpu_us"] for turn in turns] for side in (0, 1))
    ratio = statistics.median(b / a for a, b in zip(with_, without, strict=True))
    return ratio, statistics.median(with_), statistics.median(without)


def main() -> list[Figure]:
    figures = []
    for name, what, bar in (
        ("model", "the bundled model", 0.95),
        ("journal", "an embedder and a store that take no time", 0.6),
    ):
        ratio, with_, without = _ratio(name)
        figures.append(
            Figure(
                f"rate of an ingest with full text, of that without (by CPU), {what}",
                f"{ratio:.2f} ({with_:,.0f} us an event)", f"{without:,.0f} us", f"at least {bar}", ratio >= bar,
            )
        )  # fmt: skip
    disk, bare = _run("disk"), _run("disk", full_text=False)
    beyond = disk["bytes"] - disk["text"]
    figures.append(
        Figure(
            "bytes of the journal per payload beyond its text, payload and full text kept",
            f"{beyond:,.0f}", f"{bare['bytes'] - bare['text']:,.0f} without full text",
            "at most 900", beyond <= 900,
        )
    )  # fmt: skip
    return figures


if __name__ == "__main__":
    if len(sys.argv) > 1:
        if sys.argv[2] == "without":
            without_full_text()
        run, count = _RUNS[sys.argv[1]]
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(asyncio.run(run(f"{folder}/journal.db", count))))
    else:
        show(main())

"""Measure payloads per second into the journal. What it costs a pipeline: `benchmarks.journal_cost`."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.pipeline import SlowService, decoded
from benchmarks.table import Figure, show

TOGETHER = 20_000
ONE_BY_ONE = 5_000
ROUNDS = 3


async def _together(durability: str) -> dict:
    """Payloads per second from decoded to committed, 200 concurrent calls at a time."""
    from autoplay_rag.ingest.intake import Intake
    from autoplay_rag.journal.sqlite import SqliteJournal

    intake = Intake(None, None)
    with tempfile.TemporaryDirectory() as folder, decoded(TOGETHER, 100) as payloads:
        journal = SqliteJournal(
            Path(folder) / "journal.db",
            durability=durability,
            max_bytes=2**30,
            on_entry=lambda *_: None,
            on_returned=lambda _: None,
        )
        await journal.open()
        started = time.perf_counter()
        for start in range(0, TOGETHER, 200):
            given = enumerate(payloads[start : start + 200], start + 1)
            await asyncio.gather(*(journal.accept(intake.entry(p, seq)) for seq, p in given))
        took = time.perf_counter() - started
        assert journal.counts["pending"] == TOGETHER
        await journal.close()
    return {"per_second": TOGETHER / took}


async def _one_by_one(durability: str) -> dict:
    """Payloads per second of a caller that awaits each `on_actions` before the next."""
    from autoplay_rag import IngestPipeline
    from autoplay_rag.stores import MemoryStore

    with tempfile.TemporaryDirectory() as folder, decoded(ONE_BY_ONE, 100) as payloads:
        async with IngestPipeline(
            MemoryStore(),
            SlowService(),
            journal=f"{folder}/journal.db",
            durability=durability,
        ) as ingest:
            started = time.perf_counter()
            for payload in payloads:
                await ingest.on_actions(payload)
            took = time.perf_counter() - started
    return {"per_second": ONE_BY_ONE / took}


_RUNS = {"together": _together, "one-by-one": _one_by_one}


def _rate(*name: str) -> float:
    """Run one measurement in its own process."""
    command = [sys.executable, "-m", *name]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(found.stdout.splitlines()[-1])["per_second"]


def _best(*name: str) -> float:
    """Take the maximum of several runs: other load only makes a run slower."""
    return max(_rate("benchmarks.journal", *name) for _ in range(ROUNDS))


def main() -> list[Figure]:
    together, together_full = _best("together", "normal"), _best("together", "full")
    single, single_full = _best("one-by-one", "normal"), _best("one-by-one", "full")
    return [
        Figure(
            "payloads a second into the journal alone, many callers",
            f"{together:,.0f}", f'{together_full:,.0f} with durability="full"',
            "at least 10,000", together >= 10_000,
        ),
        Figure(
            "payloads a second of one caller that awaits each `on_actions`",
            f"{single:,.0f}", f'{single_full:,.0f} with durability="full"',
            "at least 1,500", single >= 1_500,
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(asyncio.run(_RUNS[sys.argv[1]](sys.argv[2]))))
    else:
        show(main())

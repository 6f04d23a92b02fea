"""Run the pipeline with injected faults for minutes; check that the ledger balances and memory is flat.

    python -m benchmarks.soak [--minutes 10] [--rate 500] [--sessions 20000] [--kills 0]

A connector in its own process cuts, resets and stalls the stream, repeats events and sends
garbage. The embedder has outages, limits the rate, gives invalid answers and refuses some texts
permanently. The store fails before and after an upsert. `--kills` also kills Chroma's process. This
is off by default: a kill during an index write may leave an index that Chroma cannot read (chromadb
1.5.9), and the journal cannot repair it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from autoplay_rag.errors import EmbedderUnavailableError
from autoplay_rag.stores import ChromaStore
from benchmarks.pipeline import SlowService
from benchmarks.table import Figure, show

POISONED = "[poisoned]"
SETTLED = 60.0
"""Seconds until memory must be flat."""
FLAT_MB = 20.0


class HostileService(SlowService):
    """An embedding service with every kind of failure."""

    max_inputs = 256

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self._chance = chance
        self._out_until = 0.0

    async def embed(self, texts):
        found = await super().embed(texts)
        if any(POISONED in text for text in texts):
            raise ValueError("this text is refused")
        now, luck = time.monotonic(), self._chance.random()
        if luck < 0.002:
            self._out_until = now + self._chance.uniform(0.5, 5.0)
        if now < self._out_until:
            raise ConnectionError("out")
        if luck < 0.01:
            raise EmbedderUnavailableError("slow down", retry_after=0.5)
        if luck < 0.02:
            return found[:-1]
        if luck < 0.03:
            return [[float("nan")] * len(vector) for vector in found]
        return found


class HostileStore(ChromaStore):
    """Fails before or after an upsert."""

    def __init__(self, path: str, chance: random.Random) -> None:
        super().__init__(path)
        self._chance = chance

    async def upsert(self, chunks, vectors) -> None:
        luck = self._chance.random()
        if luck < 0.02:
            raise ConnectionError("before")
        await super().upsert(chunks, vectors)
        if luck < 0.04:
            raise ConnectionError("after")


def chromas_pid() -> int | None:
    """The pid of the process that runs Chroma for the store. Linux only."""
    for children in Path("/proc/self/task").glob("*/children"):
        for pid in children.read_text().split():
            with suppress(OSError):
                if b"stores.chroma.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return int(pid)
    return None


async def kill_chroma(kills: int, seconds: float, chance: random.Random, outcome: Outcome) -> None:
    """Kill Chroma's process about `kills` times within `seconds`."""
    while kills:
        await asyncio.sleep(chance.expovariate(kills / seconds))
        if pid := chromas_pid():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                outcome.kills += 1


def resident_mb(pid: int | str = "self") -> float:
    """A process's resident memory; 0 if there is no such process. Linux only."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6
    except OSError:
        return 0.0


@dataclass
class Outcome:
    """The result. Memory is sampled each second, as (seconds, MB)."""

    ours: list[tuple[float, float]] = field(default_factory=list)
    chromas: list[float] = field(default_factory=list)
    read: int = 0
    connections: int = 0
    kills: int = 0
    in_store: int = 0
    ledger: object = None

    def growth(self) -> float | None:
        """The most MB above the level at the end of the first minute; None in a short run."""
        before = [mb for at, mb in self.ours if SETTLED - 10 <= at <= SETTLED]
        after = [mb for at, mb in self.ours if at > SETTLED]
        return max(after) - statistics.median(before) if before and after else None


async def _measure(url: str, options: argparse.Namespace, folder: str) -> Outcome:
    from autoplay_rag import IngestPipeline
    from autoplay_rag.connector.client import AsyncConnectorClient

    chance = random.Random(options.seed)
    store = HostileStore(f"{folder}/chroma", chance)
    outcome = Outcome()
    async with IngestPipeline(
        store, HostileService(chance), journal=f"{folder}/journal.db"
    ) as pipeline:
        client = pipeline.attach(
            AsyncConnectorClient(url, token="bench", initial_backoff_s=0.2, max_backoff_s=1.0)
        )
        client.run_in_background()
        seconds = options.minutes * 60
        killing = asyncio.create_task(kill_chroma(options.kills, seconds, chance, outcome))
        started = time.monotonic()
        while (at := time.monotonic() - started) < seconds:
            outcome.ours.append((at, resident_mb()))
            outcome.chromas.append(resident_mb(chromas_pid() or 0))
            await asyncio.sleep(1.0)
        killing.cancel()
        async with client:
            pass  # leaving stops it; it hands over what it has read
        await pipeline.drain(300.0)
        outcome.in_store = await store.count()
        outcome.read, outcome.connections = client.counts.received, client.counts.connections
    outcome.ledger = pipeline.ledger
    return outcome


def main(argv: list[str] | None = None) -> list[Figure]:
    """Run the benchmark; the arguments are those of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=500.0)
    parser.add_argument("--sessions", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv or [])
    with _hostile_connector(options) as url, tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(_measure(url, options, folder))
    ledger, growth = found.ledger, found.growth()
    whole = ledger.balanced and ledger.pending == ledger.overflow == 0
    true = found.read == ledger.received and found.in_store == ledger.chunks
    return [
        Figure(
            f"{options.minutes:g} minutes at {options.rate:g} events a second, "
            f"{options.sessions:,} sessions, faults everywhere: what became of them",
            f"{ledger.received:,} received = {ledger.stored:,} stored + {ledger.duplicate:,} duplicate "
            f"+ {ledger.dead:,} dead + {ledger.filtered:,} filtered",
            f"{found.read:,} read over {found.connections:,} connections, {found.in_store:,} chunks in "
            f"the store for {ledger.chunks:,} stored, {ledger.retries:,} retries, {found.kills} kills of Chroma",
            "the ledger balances", whole and true,
        ),
        Figure(
            "resident memory of our process, at most after the first minute",
            "-" if growth is None else f"{growth:+.1f} MB",
            f"{found.ours[0][1]:.0f} MB at the start, {found.ours[-1][1]:.0f} MB at the end; Chroma's "
            f"own process {max(found.chromas):.0f} MB",
            f"under {FLAT_MB:g} MB more", growth is None or growth < FLAT_MB,
        ),
    ]  # fmt: skip


@contextmanager
def _hostile_connector(options: argparse.Namespace):
    command = [sys.executable, "-m", "benchmarks.hostile_connector"]
    command += [str(options.rate), str(options.sessions), str(options.seed)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


if __name__ == "__main__":
    figures = main(sys.argv[1:])
    show(figures)
    sys.exit(0 if all(figure.met for figure in figures) else 1)

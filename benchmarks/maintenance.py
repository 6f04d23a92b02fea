"""What comparing, backing up and restoring cost, beside a live ingest into Chroma.

python -m benchmarks.maintenance                     20,000 chunks, about a minute
python -m benchmarks.maintenance --chunks 100000     some minutes
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import tempfile
import time
from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from autoplay_rag import ActionsPayload, IngestPipeline, SlimAction
from autoplay_rag.embedders import Embedder
from autoplay_rag.maintenance.restoring import restore
from autoplay_rag.stores import ChromaStore
from benchmarks.filters import DIMENSION, corpus

_BATCH = 500
_RATE = 50
"""Events a second."""


class RandomEmbedder(Embedder):
    """Random vectors, so that the figures are those of journal and store."""

    model = "random"

    def __init__(self) -> None:
        import numpy as np

        self._random = np.random.default_rng(1)

    async def embed(self, texts: Sequence[str]) -> list[array[float]]:
        rows = self._random.normal(size=(len(texts), DIMENSION)).astype("float32")
        return [array("f", row.tobytes()) for row in rows]


class Lag:
    """How late a task wakes up that sleeps all the time."""

    def __init__(self) -> None:
        self.lags: list[float] = []

    async def run(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            self.lags.append(time.perf_counter() - before - 0.005)

    def __str__(self) -> str:
        ordered = sorted(self.lags)
        p99 = ordered[len(ordered) * 99 // 100]
        return f"loop lag p99 {p99 * 1000:.1f} ms, worst {ordered[-1] * 1000:.1f} ms"


@asynccontextmanager
async def measured(what: str) -> AsyncIterator[None]:
    """Print the time and the loop's lag."""
    lag = Lag()
    task = asyncio.create_task(lag.run())
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - began
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        print(f"{what:<40}{seconds:8.1f} s   {lag}", flush=True)


async def live(pipeline: IngestPipeline, accepted: list[float]) -> None:
    """Send events at a constant rate, and note how long each takes to be accepted."""
    number = 0
    while True:
        click = SlimAction(
            f"click {number}", f"User clicked {number}", timestamp_start=float(number)
        )
        payload = ActionsPayload("acme", f"live {number % 50}", actions=[click])
        before = time.perf_counter()
        await pipeline.on_actions(payload)
        accepted.append(time.perf_counter() - before)
        number += 1
        await asyncio.sleep(1 / _RATE)


async def main(count: int, folder: Path) -> None:
    chunks, vectors = corpus(count)
    store = ChromaStore(folder / "chroma")
    await store.start(RandomEmbedder.model)
    for start in range(0, count, _BATCH):
        part = slice(start, start + _BATCH)
        await store.upsert(chunks[part], vectors[part])
    await store.aclose()
    lost = [chunk.id for chunk in chunks[: count // 50]]
    del chunks, vectors
    gc.collect()
    options: dict[str, Any] = {"journal": folder / "journal.db", "batch_window": 1.0}
    async with IngestPipeline(store, RandomEmbedder(), adopt=True, **options) as pipeline:
        print(f"{count:,} chunks", flush=True)
        await asyncio.sleep(5)
        async with measured("nothing"):
            await asyncio.sleep(5)
        async with measured("verify"):
            assert (await pipeline.verify()).clean
        accepted: list[float] = []
        events = asyncio.create_task(live(pipeline, accepted))
        async with measured(f"verify at {_RATE} events/s"):
            report = await pipeline.verify()
        assert report.clean, report
        print(f"    accepted within {max(accepted) * 1000:.0f} ms")
        accepted.clear()
        async with measured(f"backup at {_RATE} events/s"):
            made = await pipeline.backup(folder / "backup")
        print(f"    {made.size >> 20} MB, writes to the store paused for {made.paused:.1f} s")
        print(f"    accepted within {max(accepted) * 1000:.0f} ms")
        events.cancel()
        await asyncio.wait([events])
        await store.delete(lost)
        async with measured(f"verify --repair, {len(lost):,} missing"):
            report = await pipeline.verify(repair=True)
            await pipeline.drain()
        assert report.missing == report.queued == len(lost)
    began = time.perf_counter()
    new = folder / "new"
    restore(folder / "backup", journal=new / "journal.db", store=new / "chroma")
    print(f"{'restore':<40}{time.perf_counter() - began:8.1f} s")
    options["journal"] = new / "journal.db"
    async with IngestPipeline(ChromaStore(new / "chroma"), RandomEmbedder(), **options) as pipeline:
        await pipeline.drain()
        assert (await pipeline.verify()).clean


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=20_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made_here:
        asyncio.run(main(given.chunks, Path(made_here)))

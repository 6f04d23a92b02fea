"""What searches wait while a Chroma collection of mostly deleted chunks is written anew.

python -m benchmarks.compacting                     6,000 of 20,000 chunks are left, about a minute
python -m benchmarks.compacting --chunks 100000     some minutes
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import Awaitable
from itertools import count as numbers
from pathlib import Path

import numpy as np

from autoplay_rag.stores import ChromaStore, Chunk, Filter

_SIZE = 384
_LEFT = 0.3
"""The share of the chunks that is not deleted."""
_CLUSTERS = 200
_FEW_SECONDS = 10.0
_PAUSE_SECONDS = 0.05
_QUESTIONS = 10
"""Each is compared with all vectors, in seconds."""


class Chunks:
    """Chunks whose vectors form clusters, as those of real texts do."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(1)
        self._centres = self._random.normal(size=(_CLUSTERS, _SIZE)).astype(np.float32)

    def vectors(self, count: int) -> np.ndarray:
        """Return some vectors."""
        centres = self._centres[self._random.integers(0, _CLUSTERS, count)]
        found: np.ndarray = centres + self._random.normal(size=(count, _SIZE), scale=0.7)
        return found.astype(np.float32)

    async def store(self, store: ChromaStore, first: int, count: int) -> None:
        """Store some chunks."""
        texts = (
            f"User clicked button {n} of page {n % 997} in the report {n * 7919}"
            for n in range(first, first + count)
        )
        chunks = [
            Chunk(
                f"c{first + i}", text, {"session_id": f"s{(first + i) // 10}", "ended_at": 1.0 * i}
            )
            for i, text in enumerate(texts)
        ]
        await store.upsert(chunks, list(self.vectors(count)))


def index_bytes(folder: Path) -> int:
    """The bytes of the indexes, without their copies."""
    return sum(
        path.stat().st_size for one in folder.glob("*/header.bin") for path in one.parent.iterdir()
    )


class Traffic:
    """Searches and small upserts, one after another, and the seconds of each."""

    def __init__(self, store: ChromaStore, chunks: Chunks) -> None:
        self._store = store
        self._chunks = chunks
        self._ids = numbers(10_000_000, 5)
        self.searches: list[float] = []
        self.upserts: list[float] = []

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._repeat(self.searches, self._search))
            group.create_task(self._repeat(self.upserts, self._upsert))

    async def _repeat(self, taken: list[float], work: object) -> None:
        while True:
            began = time.perf_counter()
            made: Awaitable[object] = work()  # type: ignore[operator]
            await made
            taken.append(time.perf_counter() - began)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _search(self) -> object:
        return await self._store.query(self._chunks.vectors(1)[0], 10, Filter())

    async def _upsert(self) -> object:
        return await self._chunks.store(self._store, next(self._ids), 5)

    def report(self, name: str) -> tuple[float, float]:
        """Print the waits since the last report; return the longest of each kind."""
        longest = max(self.searches), max(self.upserts)
        for kind, taken in (("search", self.searches), ("upsert of 5", self.upserts)):
            ordered = sorted(taken)
            print(
                f"    {name}: {kind}: median {ordered[len(ordered) // 2] * 1000:.0f} ms, 99 % "
                f"{ordered[len(ordered) * 99 // 100] * 1000:.0f} ms, slowest "
                f"{ordered[-1] * 1000:.0f} ms of {len(ordered)}",
                flush=True,
            )
            taken.clear()
        return longest


async def recall(store: ChromaStore, chunks: Chunks) -> float:
    """Return the share of the ten nearest chunks that a search finds."""
    ids = [chunk.id async for page in store.scan() for chunk in page]
    found = 0
    for question in chunks.vectors(_QUESTIONS):
        scores = await store.score(question, ids)
        nearest = set(sorted(scores, key=scores.__getitem__)[-10:])
        found += len(nearest & {hit.id for hit in await store.query(question, 10, Filter())})
    return found / (10 * _QUESTIONS)


async def main(count: int, folder: Path) -> None:
    store = ChromaStore(folder)
    await store.start("random")
    chunks = Chunks()
    began = time.perf_counter()
    for first in range(0, count, 500):
        await chunks.store(store, first, 500)
    print(f"{count:,} chunks stored in {time.perf_counter() - began:.0f} s", flush=True)
    few = [f"c{n}" for n in range(0, count, 100)]
    began = time.perf_counter()
    await store.delete(few)
    print(f"{len(few):,} chunks deleted in {time.perf_counter() - began:.1f} s", flush=True)
    print(f"    recall@10: {await recall(store, chunks):.3f}", flush=True)
    began = time.perf_counter()
    await store.erase()
    erased = time.perf_counter() - began
    await store.query(chunks.vectors(1)[0], 10, Filter())
    took = time.perf_counter() - began
    print(f"erased in {erased:.1f} s, the next search {took - erased:.2f} s later")
    print(f"    recall@10: {await recall(store, chunks):.3f}", flush=True)

    order = random.Random(1).sample(range(count), count)
    gone = [f"c{n}" for n in order[int(count * _LEFT) :]]
    for first in range(0, len(gone), 500):
        await store.delete(gone[first : first + 500])
    before = index_bytes(folder)
    print(f"{await store.count():,} of {count:,} chunks are left: indexes of {before >> 20} MB")
    print(f"    recall@10: {await recall(store, chunks):.3f}", flush=True)
    traffic = Traffic(store, chunks)
    running = asyncio.create_task(traffic.run())
    await asyncio.sleep(_FEW_SECONDS)
    usual = traffic.report("without")
    began = time.perf_counter()
    assert await store.compact()
    took = time.perf_counter() - began
    during = traffic.report("rewriting")
    running.cancel()
    await asyncio.wait([running])
    after = index_bytes(folder)
    print(
        f"written anew in {took:.0f} s: indexes of {after >> 20} MB, {after / before:.2f} of before; "
        f"slowest search {during[0] / usual[0]:.1f} times, slowest upsert "
        f"{during[1] / usual[1]:.1f} times those without"
    )
    print(f"    recall@10: {await recall(store, chunks):.3f}", flush=True)
    running = asyncio.create_task(traffic.run())
    began = time.perf_counter()
    await store.sibling("large").start("random")
    left = await store.count()
    await store.exchange("large")
    await store.sibling("large").drop()
    took = time.perf_counter() - began
    traffic.report("dropping")
    running.cancel()
    await asyncio.wait([running])
    print(f"{left:,} chunks dropped in {took:.1f} s")
    await store.aclose()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=20_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made_here:
        asyncio.run(main(given.chunks, Path(made_here)))

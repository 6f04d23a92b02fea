"""Measure how soon full text finds a payload while the embedder is slow.

200 events a second arrive, and each request to the embedder takes 2 s. The benchmark searches for
every fifth payload. It measures from the call of `accept` until `search(mode="text")` has returned
the payload.

    python -m benchmarks.findable            for 10 s
    python -m benchmarks.findable 60
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from array import array
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from autoplay_rag import IngestPipeline
from autoplay_rag.embedders.base import Embedder
from autoplay_rag.stores import MemoryStore
from benchmarks.pipeline import decoded
from benchmarks.table import Figure, percentile, show

PER_SECOND = 200
EVERY = 5
SECONDS = 10
LATENCY = 2.0
SESSIONS = 1_000
BAR_MS = 100


class TwoSeconds(Embedder):
    """A service that takes two seconds for each request."""

    model = "slow"
    max_inputs = 64

    async def embed(self, texts: Sequence[str]) -> list[array]:
        await asyncio.sleep(LATENCY)
        return [array("f", [1.0, 0.0])] * len(texts)


class Times(NamedTuple):
    """Times in milliseconds, and the number of payloads found before they were embedded."""

    found: list[float]
    accepted: list[float]
    unembedded: int


def marked(payload, number: int):
    """Add a unique word to a payload. Returns the payload and the word."""
    word = f"report-{number:06}x"
    action = msgspec.structs.replace(payload.actions[0], description=f"User clicked {word}")
    return msgspec.structs.replace(payload, actions=[action, *payload.actions[1:]]), word


async def measure(seconds: float = SECONDS) -> Times:
    count = int(seconds * PER_SECOND)
    times = Times([], [], 0)
    unembedded = 0
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory() as folder, decoded(count, SESSIONS) as payloads:
        async with IngestPipeline(
            MemoryStore(), TwoSeconds(), journal=f"{folder}/journal.db", batch_window=1.0
        ) as pipeline:

            async def probe(payload, word: str) -> None:
                nonlocal unembedded
                started = time.perf_counter()
                await pipeline.accept(payload)
                times.accepted.append((time.perf_counter() - started) * 1e3)
                while not (hits := await found(word)):
                    await asyncio.sleep(0.001)
                times.found.append((time.perf_counter() - started) * 1e3)
                unembedded += not hits[0].embedded

            async def found(word: str):
                hits = await pipeline.search(word, 1, mode="text")
                return [hit for hit in hits if word in hit.text]

            async with asyncio.TaskGroup() as tasks:
                started = loop.time()
                for number, payload in enumerate(payloads):
                    await asyncio.sleep(started + number / PER_SECOND - loop.time())
                    if number % EVERY:
                        pipeline.accept(payload)
                    else:
                        tasks.create_task(probe(*marked(payload, number)))
    return times._replace(unembedded=unembedded)


def main(seconds: float = SECONDS) -> list[Figure]:
    times = asyncio.run(measure(seconds))
    p50, p99 = percentile(times.found, 0.5), percentile(times.found, 0.99)
    return [
        Figure(
            f"from `accept` to found by its words: {PER_SECOND} events a second, {LATENCY:g} s an embedding request",
            f"p50 {p50:.1f} ms, p99 {p99:.1f} ms ({times.unembedded} of {len(times.found)} before they were embedded)",
            f"accepted: p50 {percentile(times.accepted, 0.5):.1f} ms, p99 {percentile(times.accepted, 0.99):.1f} ms",
            f"p99 under {BAR_MS} ms", p99 < BAR_MS,
        )
    ]  # fmt: skip


if __name__ == "__main__":
    show(main(float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS))

"""Count the embedding requests of a pipeline; and parts that other benchmarks share."""

from __future__ import annotations

import asyncio
import json
import random
from array import array
from collections.abc import Sequence
from contextlib import asynccontextmanager, contextmanager

from autoplay_rag.embedders.base import Embedder
from benchmarks.streams import events
from benchmarks.table import Figure, show

DIMENSION = 384
LATENCY = 0.05
EVENTS = 2_000


def vector(text: str) -> array:
    source = random.Random(text)
    return array("f", (source.uniform(-1, 1) for _ in range(DIMENSION)))


class SlowService(Embedder):
    """An embedding service with a network round trip: 50 ms per request."""

    model = "bench"
    max_inputs = 2048

    def __init__(self) -> None:
        self.requests = 0
        self._vectors = [vector(str(number)) for number in range(64)]

    async def embed(self, texts: Sequence[str]) -> list[array]:
        self.requests += 1
        await asyncio.sleep(LATENCY)
        return [self._vectors[hash(text) % 64] for text in texts]


@asynccontextmanager
async def lag_of_the_loop():
    """Collect what a callback that is due at any moment waits for the loop, in ms.

    A task wants to run every millisecond. When it was late, the turns that it missed count too, each
    with its own wait. Otherwise a loop that is blocked for 100 ms would count as one late turn.
    """
    late: list[float] = []

    async def watch() -> None:
        loop = asyncio.get_running_loop()
        while True:
            wanted = loop.time() + 0.001
            await asyncio.sleep(0.001)
            wait = max(0.0, (loop.time() - wanted) * 1e3)
            late.extend(wait - missed for missed in range(int(wait) + 1))

    task = asyncio.create_task(watch())
    try:
        yield late
    finally:
        task.cancel()
        await asyncio.wait([task])


@contextmanager
def decoded(count: int, sessions: int):
    from autoplay_rag.decoding import decode

    yield [decode(json.dumps(event)) for event in events(count, sessions)]


async def _requests() -> dict:
    """Embedding requests for 2,000 events of 100 sessions that arrive within a second."""
    from autoplay_rag import IngestPipeline
    from autoplay_rag.stores import MemoryStore

    embedder = SlowService()
    with decoded(EVENTS, 100) as payloads:
        async with IngestPipeline(MemoryStore(), embedder) as pipeline:
            loop = asyncio.get_running_loop()
            started = loop.time()
            for number, payload in enumerate(payloads):
                await asyncio.sleep(max(0.0, started + number / EVENTS - loop.time()))
                pipeline.accept(payload)
            while pipeline.ledger.stored < EVENTS:  # windows close on their own
                await asyncio.sleep(0.1)
            took = loop.time() - started
        return {"requests": embedder.requests, "seconds": took}


def main() -> list[Figure]:
    offered = asyncio.run(_requests())
    return [
        Figure(
            f"embedding requests for {EVENTS:,} events of 100 sessions offered within 1 s, 50 ms a request",
            f"{offered['requests']} (all stored after {offered['seconds']:.1f} s)",
            f"one for each event: {EVENTS:,}", "at most 40", offered["requests"] <= 40,
        )
    ]  # fmt: skip


if __name__ == "__main__":
    show(main())

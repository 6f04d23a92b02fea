"""Compare the pipeline with the public SDK's: events stored per second, requests, loop lag."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Sequence
from contextlib import asynccontextmanager, contextmanager

from autoplay_rag.embedders.base import Embedder
from benchmarks.streams import events
from benchmarks.table import Figure, show

DIMENSION = 384
LATENCY = 0.05
PEER_EVENTS = 200


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


async def _ours(count: int, journal: bool) -> dict:
    """A backlog of `count` events of 100 sessions, ingested into Chroma on disk."""
    from autoplay_rag import IngestPipeline
    from autoplay_rag.stores import ChromaStore

    embedder = SlowService()
    with tempfile.TemporaryDirectory() as folder, decoded(count, 100) as payloads:
        path = f"{folder}/journal.db" if journal else None
        async with IngestPipeline(
            ChromaStore(f"{folder}/chroma"), embedder, journal=path
        ) as pipeline:
            async with lag_of_the_loop() as late:
                started = time.perf_counter()
                for start in range(0, count, 200):
                    await asyncio.gather(*map(pipeline.on_actions, payloads[start : start + 200]))
                await pipeline.drain()
                took = time.perf_counter() - started
            assert pipeline.ledger.stored == count
            assert pipeline.ledger.balanced
    late.sort()
    return {
        "per_second": count / took,
        "p99": late[int(len(late) * 0.99)],
        "max": late[-1],
        "requests": embedder.requests,
    }


async def _peer() -> dict:
    """The same through the SDK's pipeline: one request and one Chroma upsert per payload."""
    import chromadb
    from autoplay_sdk import ActionsPayload, AsyncRagPipeline

    with tempfile.TemporaryDirectory() as folder:
        collection = chromadb.PersistentClient(folder).create_collection(
            "bench", embedding_function=None
        )
        requests = 0

        async def embed(text: str) -> list[float]:
            nonlocal requests
            requests += 1
            await asyncio.sleep(LATENCY)
            return list(vector(text))

        async def upsert(id: str, found: list[float], metadata: dict) -> None:
            clean = {
                key: value
                for key, value in metadata.items()
                if isinstance(value, str | int | float)
            }
            collection.upsert(
                ids=[id], embeddings=[found], metadatas=[clean or {"source": "bench"}]
            )

        pipeline = AsyncRagPipeline(embed=embed, upsert=upsert)
        payloads = [ActionsPayload.from_dict(event) for event in events(PEER_EVENTS, 100)]
        started = time.perf_counter()
        for payload in payloads:  # sequentially, as the SDK's client calls it
            await pipeline.on_actions(payload)
        took = time.perf_counter() - started
        return {"per_second": PEER_EVENTS / took, "requests": requests}


async def _requests() -> dict:
    """Embedding requests for 2,000 events of 100 sessions that arrive within a second."""
    from autoplay_rag import IngestPipeline
    from autoplay_rag.stores import MemoryStore

    embedder = SlowService()
    with decoded(2_000, 100) as payloads:
        async with IngestPipeline(MemoryStore(), embedder) as pipeline:
            loop = asyncio.get_running_loop()
            started = loop.time()
            for number, payload in enumerate(payloads):
                await asyncio.sleep(max(0.0, started + number / 2_000 - loop.time()))
                pipeline.accept(payload)
            while pipeline.ledger.stored < 2_000:  # windows close on their own
                await asyncio.sleep(0.1)
            took = loop.time() - started
        return {"requests": embedder.requests, "seconds": took}


_RUNS = {
    "ours": lambda: _ours(10_000, journal=False),
    "ours-journal": lambda: _ours(10_000, journal=True),
    "peer": _peer,
    "requests": _requests,
}


def _run(name: str) -> dict:
    command = [sys.executable, "-m", "benchmarks.pipeline", name]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(found.stdout.splitlines()[-1])


def main() -> list[Figure]:
    peer = _run("peer")
    rounds = [_run("ours-journal") for _ in range(3)]
    rate = statistics.median(r["per_second"] for r in rounds)
    p99 = statistics.median(r["p99"] for r in rounds)
    worst = max(r["max"] for r in rounds)
    offered = _run("requests")
    ratio = rate / peer["per_second"]
    return [
        Figure(
            "events stored a second: backlog of 10,000, 100 sessions, 50 ms a request, Chroma and journal on disk",
            f"{rate:,.0f} = {ratio:.0f} times the SDK's", f"{peer['per_second']:.1f}",
            "at least 60 times", ratio >= 60,
        ),
        Figure(
            "event-loop lag meanwhile, wanting to run every ms",
            f"p99 {p99:.1f} ms, max {worst:.1f} ms", "-", "p99 10 ms, max 50 ms", p99 <= 10 and worst <= 50,
        ),
        Figure(
            "embedding requests for 2,000 events of 100 sessions offered within 1 s",
            f"{offered['requests']} (all stored after {offered['seconds']:.1f} s)",
            f"{peer['requests'] * 10:,}", "at most 40", offered["requests"] <= 40,
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(asyncio.run(_RUNS[sys.argv[1]]())))
    else:
        show(main())

"""How long a move to another model takes, beside a live ingest into Chroma and searches.

python -m benchmarks.reembedding                    20,000 chunks, some minutes

The figures of "before" are the baseline: the same stream and the same searches without a move.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from autoplay_rag import ActionsPayload, IngestPipeline, SlimAction
from autoplay_rag.embedders import Embedder
from autoplay_rag.maintenance import Progress
from autoplay_rag.stores import ChromaStore

_DIMENSION = 384
_LATENCY_SECONDS = 0.05
_SEARCHES = 5
"""Searches a second."""
_LIVE_SESSIONS = 100
_BASELINE_SECONDS = 20.0
_TELL_EVERY = 20


class WaitingEmbedder(Embedder):
    """Answers after the time of a request to a service, with vectors that a text decides."""

    max_inputs = 64

    def __init__(self, model: str, dimension: int) -> None:
        import numpy as np

        self.model = model
        self._dimension = dimension
        self._numpy = np

    async def embed(self, texts: Sequence[str]) -> list[array[float]]:
        await asyncio.sleep(_LATENCY_SECONDS)
        return [self._vector(text) for text in texts]

    def _vector(self, text: str) -> array[float]:
        source = self._numpy.random.default_rng(abs(hash(text)))
        return array("f", source.standard_normal(self._dimension, dtype="float32").tobytes())


def payload(number: int, sessions: int) -> ActionsPayload:
    """A payload of one action."""
    at = 1.7e9 + number
    text = f"User clicked button {number} of page {number % 997} in the report {number * 7919}"
    click = SlimAction(f"click {number}", text, f"https://app.test/{number % 997}", 0, "click", at)
    session = number % sessions
    return ActionsPayload("acme", f"s{session}", f"user {session % 100}", None, [click], 1, at)


async def doubled_or_lost(store: ChromaStore, sent: int) -> int:
    """How many events the store does not hold exactly once."""
    found = Counter[str]()
    async for page in store.scan():
        for chunk in page:
            found.update(re.findall(r"button (\d+) of", chunk.text))
    return sum(found[str(number)] != 1 for number in range(sent))


class Live:
    """A stream at a constant rate, and searches.

    Attributes:
        sent: The payloads sent so far.
        searches: Seconds of each search.
        failed: Searches without an answer of the store.
        accepts: Seconds until each payload was accepted.
    """

    def __init__(self, pipeline: IngestPipeline, first: int, rate: float) -> None:
        self._pipeline = pipeline
        self._rate = rate
        self.sent = first
        self.searches: list[float] = []
        self.accepts: list[float] = []
        self.failed = 0

    @asynccontextmanager
    async def running(self):
        tasks = [asyncio.create_task(self._stream()), asyncio.create_task(self._search())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _stream(self) -> None:
        began, first = time.perf_counter(), self.sent
        while True:
            before = time.perf_counter()
            await self._pipeline.on_actions(payload(self.sent, _LIVE_SESSIONS))
            self.accepts.append(time.perf_counter() - before)
            self.sent += 1
            due = began + (self.sent - first) / self._rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))

    async def _search(self) -> None:
        number = 0
        while True:
            number += 97
            before = time.perf_counter()
            hits = await self._pipeline.search(f"button {number % 10_000}", k=5, mode="dense")
            self.failed += not hits
            self.searches.append(time.perf_counter() - before)
            await asyncio.sleep(1 / _SEARCHES)

    def told(self) -> str:
        """The figures so far, which begin anew."""
        text = (
            f"searches {len(self.searches)}, unanswered {self.failed}, "
            f"p50 {_part(self.searches, 50):.0f} ms, p99 {_part(self.searches, 99):.0f} ms; "
            f"accept p99 {_part(self.accepts, 99):.0f} ms"
        )
        self.searches, self.accepts, self.failed = [], [], 0
        return text


def _part(seconds: list[float], percent: int) -> float:
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] * 1000


async def main(count: int, rate: float, folder: Path) -> None:
    store = ChromaStore(folder / "chroma")
    options = {"journal": folder / "journal.db", "batch_window": 5.0, "drain_timeout": 300.0}
    async with IngestPipeline(store, WaitingEmbedder("old", _DIMENSION), **options) as pipeline:
        began = time.perf_counter()
        for number in range(count):
            task = pipeline.accept(payload(number, count))
            if number % 1000 == 999:
                await task
        await pipeline.drain()
        print(f"{count:,} chunks stored in {time.perf_counter() - began:.0f} s", flush=True)
        live = Live(pipeline, count, rate)
        async with live.running():
            await asyncio.sleep(_BASELINE_SECONDS)
            print(f"before, {rate:g} events/s: {live.told()}", flush=True)
            told: list[Progress] = []

            def tell(progress: Progress) -> None:
                told.append(progress)
                if len(told) % _TELL_EVERY == 1:
                    print(f"    {progress}", flush=True)

            report = await pipeline.reembed(
                WaitingEmbedder("new", 2 * _DIMENSION), on_progress=tell
            )
            print(f"{report}", flush=True)
            print(f"during: {live.told()}", flush=True)
            await asyncio.sleep(_BASELINE_SECONDS)
            print(f"after: {live.told()}", flush=True)
        await pipeline.drain()
        ledger, verified = pipeline.ledger, await pipeline.verify()
        wrong = await doubled_or_lost(store, live.sent)
        print(f"sent {live.sent:,}; {ledger}")
        print(f"lost or doubled: {wrong:,}; {verified}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=20_000)
    parser.add_argument("--rate", type=float, default=200.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made_here:
        asyncio.run(main(given.chunks, given.rate, Path(made_here)))

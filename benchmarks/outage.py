"""Measure an embedder outage of a minute while the stream continues.

    python -m benchmarks.outage [--down 60] [--rate 200] [--sessions 200]

The connector runs in its own process. The pipeline has a journal and Chroma on disk. After ten
seconds every embedding request fails; at the end of the outage requests succeed again. Every event
served must be stored, the outage must not pause the reader, and the backlog must be cleared.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise

from autoplay_rag.connector.metrics import ConnectorMetrics
from benchmarks.pipeline import SlowService
from benchmarks.streams import events, served
from benchmarks.table import Figure, show

BEFORE = 10.0
AFTER = 20.0
WINDOW = 5.0


class FailingService(SlowService):
    """A `SlowService` whose requests fail, after the usual latency, while it is down."""

    down = False

    async def embed(self, texts):
        found = await super().embed(texts)
        if self.down:
            raise ConnectionError("the embedder is down")
        return found


class Pauses(ConnectorMetrics):
    """Seconds during which the reader paused because the client held too much."""

    seconds = 0.0

    def paused(self, seconds: float) -> None:
        self.seconds += seconds


@dataclass
class Outcome:
    """The result.

    Attributes:
        served: Events that the connector served.
        stored: Events stored at the end.
        waiting: Payloads pending at the end of the outage.
        paused: Seconds during which the reader paused.
        gap: The longest time between two reads during the outage, in seconds.
        behind: The most payloads that the client held.
        caught_up: Seconds from the end of the outage until no more were pending than before it.
    """

    served: int
    stored: int
    waiting: int
    paused: float
    gap: float
    behind: int
    caught_up: float


async def _measure(url: str, total: int, down: float, folder: str) -> Outcome:
    from autoplay_rag import IngestPipeline
    from autoplay_rag.connector.client import AsyncConnectorClient
    from autoplay_rag.stores import ChromaStore

    service = FailingService()
    read_at: list[float] = []
    pauses = Pauses()

    def select(_payload) -> bool:
        read_at.append(time.monotonic())
        return True

    async with IngestPipeline(
        ChromaStore(f"{folder}/chroma"),
        service,
        journal=f"{folder}/journal.db",
        batch_window=WINDOW,
        select=select,
        drain_timeout=120.0,
    ) as pipeline:
        client = pipeline.attach(AsyncConnectorClient(url, token="bench", metrics=pauses))
        client.run_in_background()
        await client.wait_connected(10)
        behind = usual = 0

        async def watch(seconds: float) -> None:
            nonlocal behind, usual
            ends = time.monotonic() + seconds
            while time.monotonic() < ends:
                behind = max(behind, client.pending)
                if not service.down:
                    usual = max(usual, pipeline.ledger.pending)
                await asyncio.sleep(0.05)

        await watch(BEFORE)
        service.down = True
        went_down = time.monotonic()
        await watch(down)
        service.down = False
        back = time.monotonic()
        waiting = pipeline.ledger.pending
        while pipeline.ledger.pending > usual:
            await asyncio.sleep(0.05)
        caught_up = time.monotonic() - back
        while client.counts.received < total:
            await watch(0.1)
        client.stop()
        await pipeline.drain()
        during = [at for at in read_at if went_down <= at <= back]
        assert pipeline.ledger.balanced
        return Outcome(
            served=total,
            stored=pipeline.ledger.stored,
            waiting=waiting,
            paused=pauses.seconds,
            gap=max(b - a for a, b in pairwise(during)),
            behind=behind,
            caught_up=caught_up,
        )


def main(argv: list[str] | None = None) -> list[Figure]:
    """Run the benchmark; the arguments are those of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.outage")
    parser.add_argument("--down", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--sessions", type=int, default=200)
    options = parser.parse_args(argv or [])
    total = int(options.rate * (BEFORE + options.down + AFTER))
    stream = events(total, options.sessions)
    with served(stream, options.rate) as url, tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(_measure(url, total, options.down, folder))
    return [
        Figure(
            f"events lost, embedder down for {options.down:.0f} s at {options.rate:.0f} events a second",
            f"{found.served - found.stored:,} of {found.served:,}",
            f"{found.waiting:,} waited at its end",
            "0", found.served == found.stored,
        ),
        Figure(
            "seconds the reader paused meanwhile",
            f"{found.paused:.1f}, longest gap between two events {found.gap * 1e3:,.0f} ms",
            f"{found.behind:,} payloads in the client at most", "0", found.paused == 0,
        ),
        Figure(
            "seconds from its end until all was caught up", f"{found.caught_up:.1f}", "-",
            "under a minute", found.caught_up < 60,
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    figures = main(sys.argv[1:])
    show(figures)
    sys.exit(0 if all(figure.met for figure in figures) else 1)

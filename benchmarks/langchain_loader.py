"""Measure the LangChain integration: the loader's CPU and delay, and loop lag on langchain-chroma."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import aclosing

from autoplay_rag.decoding import decode
from benchmarks.pipeline import DIMENSION, decoded, lag_of_the_loop, vector
from benchmarks.streams import events, served
from benchmarks.table import Figure, show

EVENTS = 10_000
DELAYS = 100
LOTS = 20
LOT = 64
INTERVAL = 0.5
ROUNDS = 5


async def _cpu_of_the_client(url: str) -> float:
    """Microseconds of CPU per event with a callback that does nothing."""
    from autoplay_rag import AsyncConnectorClient

    done = asyncio.Event()
    seen = 0
    started = 0.0

    async def on_actions(payload) -> None:
        nonlocal seen, started
        seen += 1
        if seen == 1:
            started = time.process_time()
        if seen == EVENTS:
            done.set()

    client = AsyncConnectorClient(url).on_actions(on_actions)
    async with client:
        client.run_in_background()
        await done.wait()
        return (time.process_time() - started) / (EVENTS - 1) * 1e6


async def _cpu_of_the_loader(url: str) -> float:
    """Microseconds of CPU per document of the loader."""
    from langchain_autoplay import AutoplayLoader

    loader = AutoplayLoader(url, max_documents=EVENTS, max_pending=EVENTS)
    started = 0.0
    async with aclosing(loader.alazy_load()) as documents:
        async for _ in documents:
            started = started or time.process_time()
        spent = time.process_time() - started
    assert loader.dropped == 0
    return spent / (EVENTS - 1) * 1e6


async def _delay(_: str) -> list[float]:
    """Milliseconds from sending an event to its document. The connector runs in its own thread."""
    from langchain_autoplay import AutoplayLoader

    from autoplay_rag.devserver import LocalConnector
    from autoplay_rag.testing import RunningConnector

    connector = RunningConnector(LocalConnector([]))
    payloads = [decode(json.dumps(event)) for event in events(DELAYS, 10)]
    sent = asyncio.Queue()

    def send() -> None:
        connector.wait_subscribers(1)
        for payload in payloads:
            time.sleep(0.01)
            sent.put_nowait(time.perf_counter())
            connector.send(payload)

    sending = asyncio.create_task(asyncio.to_thread(send))
    loader = AutoplayLoader(connector.url, max_documents=DELAYS)
    async with aclosing(loader.alazy_load()) as documents:
        late = [(time.perf_counter() - sent.get_nowait()) * 1e3 async for _ in documents]
    await sending
    await asyncio.to_thread(connector.close)
    return late


def _chroma(folder: str):
    import chromadb
    from langchain_chroma import Chroma
    from langchain_core.embeddings import Embeddings

    vectors = [list(vector(str(number))) for number in range(64)]

    class Ready(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [vectors[hash(text) % 64] for text in texts]

        def embed_query(self, text: str) -> list[float]:
            return self.embed_documents([text])[0]

    assert len(vectors[0]) == DIMENSION
    return Chroma("bench", embedding_function=Ready(), client=chromadb.PersistentClient(folder))


async def _paced(hand_over) -> list[float]:
    """Loop lag while a batch is handed over every `INTERVAL`: the same work and pace for all."""
    loop = asyncio.get_running_loop()
    async with lag_of_the_loop() as late:
        started = loop.time()
        for number in range(LOTS):
            await hand_over(number * LOT)
            await asyncio.sleep(max(0.0, started + (number + 1) * INTERVAL - loop.time()))
    return late


async def _lag_of_its_own_calls(folder: str) -> list[float]:
    """`aadd_documents` of langchain-chroma, with prepared documents."""
    from langchain_core.documents import Document

    store = _chroma(folder)
    metadata = {"session_id": "session-000001", "user_id": "user-1", "started_at": 1.7e9}
    documents = [
        Document(f"clicked {n} " * 10, id=str(n), metadata=metadata) for n in range(LOTS * LOT)
    ]

    async def hand_over(start: int) -> None:
        await store.aadd_documents(
            documents[start : start + LOT], ids=[d.id for d in documents[start : start + LOT]]
        )

    return await _paced(hand_over)


async def _lag_of_the_pipeline(folder: str) -> list[float]:
    """The same number of documents through a pipeline into `LangChainStore`."""
    from langchain_autoplay import LangChainStore

    from autoplay_rag import IngestPipeline

    with decoded(LOTS * LOT, LOTS * LOT) as payloads:
        async with IngestPipeline(LangChainStore(_chroma(folder)), batch_window=0) as pipeline:

            async def hand_over(start: int) -> None:
                await asyncio.gather(*map(pipeline.on_actions, payloads[start : start + LOT]))

            late = await _paced(hand_over)
            await pipeline.drain()
            assert pipeline.ledger.stored == LOTS * LOT
    return late


_MEASURES = {
    "client": _cpu_of_the_client,
    "loader": _cpu_of_the_loader,
    "delay": _delay,
    "bare": _lag_of_its_own_calls,
    "pipeline": _lag_of_the_pipeline,
}


def _measure(name: str, argument: str = ""):
    """Run one measurement in a new process, so that it does not affect others."""
    command = [sys.executable, "-m", "benchmarks.langchain_loader", name, argument]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(found.stdout.splitlines()[-1])


def _lag(name: str) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        late = sorted(_measure(name, folder))
    return late[int(len(late) * 0.99)], late[-1]


def main() -> list[Figure]:
    with served(events(EVENTS, 1_000)) as url:
        rounds = [(_measure("loader", url), _measure("client", url)) for _ in range(ROUNDS)]
    loader, client = (statistics.median(side) for side in zip(*rounds, strict=True))
    delays = sorted(_measure("delay"))
    lags = [(_lag("pipeline"), _lag("bare")) for _ in range(ROUNDS)]
    p99, most, bare_p99, bare_most = (
        statistics.median(one[side][which] for one in lags) for side in (0, 1) for which in (0, 1)
    )
    return [
        Figure(
            f"CPU per event through `alazy_load`, {EVENTS:,} events of 3 actions",
            f"{loader:.1f} µs = {loader / client:.2f} of the bare client's",
            f"{client:.1f} µs",
            "at most 2",
            loader <= 2 * client,
        ),
        Figure(
            f"from an event to its document, {DELAYS} events",
            f"first {delays[0]:.1f} ms, slowest {delays[-1]:.1f} ms",
            "-",
            "within 50 ms",
            delays[-1] <= 50,
        ),
        Figure(
            f"loop lag over langchain-chroma, {LOT} documents every {INTERVAL:g} s",
            f"p99 {p99:.1f} ms, max {most:.0f} ms",
            f"p99 {bare_p99:.1f} ms, max {bare_most:.0f} ms",
            "p99 at most 5 ms above a bare loop of its own calls",
            p99 - bare_p99 <= 5,
        ),
    ]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(asyncio.run(_MEASURES[sys.argv[1]](sys.argv[2]))))
    else:
        show(main())

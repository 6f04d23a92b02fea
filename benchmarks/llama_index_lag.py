"""Compare loop lag on LlamaIndex's Chroma store: ours, and a bare loop of the store's own calls.

The store holds the GIL while it writes, so both lag. The bar applies to what we add. Run it on an
idle machine: with fewer free cores than threads, all figures are noise.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.pipeline import DIMENSION, SlowService, decoded, lag_of_the_loop, vector
from benchmarks.table import Figure, show

LOTS = 40
LOT = 64
INTERVAL = 0.25
ROUNDS = 3


async def _paced(hand_over) -> list[float]:
    """Loop lag while a batch is handed over every `INTERVAL`: the same work and pace for all."""
    loop = asyncio.get_running_loop()
    async with lag_of_the_loop() as late:
        started = loop.time()
        for number in range(LOTS):
            await hand_over(number * LOT)
            await asyncio.sleep(max(0.0, started + (number + 1) * INTERVAL - loop.time()))
    return late


def _chroma(folder: str):
    import chromadb
    from llama_index.vector_stores.chroma import ChromaVectorStore

    collection = chromadb.PersistentClient(folder).create_collection("bench")
    return ChromaVectorStore(chroma_collection=collection)


async def _bare(folder: str) -> list[float]:
    """LlamaIndex's own call, with nodes created and embedded in advance."""
    from llama_index.core.schema import TextNode

    store = _chroma(folder)
    metadata = {"session_id": "session-000001", "user_id": "user-1", "started_at": 1.7e9}
    nodes = [
        TextNode(text=f"clicked {n} " * 10, metadata=metadata, embedding=list(vector(str(n))))
        for n in range(LOTS * LOT)
    ]

    async def hand_over(start: int) -> None:
        await store.async_add(nodes[start : start + LOT])

    return await _paced(hand_over)


async def _bare_pipeline(folder: str) -> list[float]:
    """LlamaIndex's own ingestion of documents: it splits, embeds and writes."""
    from llama_index.core import Document, MockEmbedding
    from llama_index.core.ingestion import IngestionPipeline
    from llama_index.core.node_parser import SentenceSplitter

    metadata = {"session_id": "session-000001", "user_id": "user-1", "started_at": 1.7e9}
    documents = [Document(text=f"clicked {n} " * 10, metadata=metadata) for n in range(LOTS * LOT)]
    pipeline = IngestionPipeline(
        transformations=[SentenceSplitter(), MockEmbedding(embed_dim=DIMENSION)],
        vector_store=_chroma(folder),
        disable_cache=True,
    )

    async def hand_over(start: int) -> None:
        await pipeline.arun(documents=documents[start : start + LOT])

    return await _paced(hand_over)


async def _store(folder: str) -> list[float]:
    """A pipeline into `LlamaIndexStore`."""
    from llama_index.readers.autoplay import LlamaIndexStore

    from autoplay_rag import IngestPipeline

    store = LlamaIndexStore(_chroma(folder))
    async with IngestPipeline(store, SlowService(), batch_window=0) as pipeline:
        return await _through(pipeline)


async def _stream(folder: str) -> list[float]:
    """`stream_into` a `VectorStoreIndex`, including its splitter."""
    from llama_index.core import MockEmbedding, VectorStoreIndex
    from llama_index.readers.autoplay import AutoplayReader, stream_into

    nothing = Path(folder) / "nothing.jsonl"
    nothing.touch()
    index = VectorStoreIndex.from_vector_store(_chroma(folder), MockEmbedding(embed_dim=DIMENSION))
    reader = AutoplayReader.from_recording(nothing)
    async with stream_into(index, reader, batch_window=0) as live:
        return await _through(live.pipeline)


async def _through(pipeline) -> list[float]:
    with decoded(LOTS * LOT, LOTS * LOT) as payloads:

        async def hand_over(start: int) -> None:
            await asyncio.gather(*map(pipeline.on_actions, payloads[start : start + LOT]))

        late = await _paced(hand_over)
        await pipeline.drain()
    assert pipeline.ledger.stored == LOTS * LOT
    return late


_MEASURES = {
    "bare": _bare,
    "store": _store,
    "bare pipeline": _bare_pipeline,
    "stream": _stream,
}


def _measure(name: str) -> dict[str, float]:
    """Run one measurement in a new process, with Chroma's threads and memory."""
    command = [sys.executable, "-m", "benchmarks.llama_index_lag", name]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(found.stdout.splitlines()[-1])


def main() -> list[Figure]:
    rounds = [{name: _measure(name) for name in _MEASURES} for _ in range(ROUNDS)]
    median = {
        (name, key): statistics.median(one[name][key] for one in rounds)
        for name in _MEASURES
        for key in ("p99", "max")
    }
    return [
        Figure(
            f"loop lag over LlamaIndex's Chroma store, {what}, {LOT} nodes every {INTERVAL:g} s",
            f"p99 {median[name, 'p99']:.1f} ms, max {median[name, 'max']:.0f} ms",
            f"p99 {median[bare, 'p99']:.1f} ms, max {median[bare, 'max']:.0f} ms",
            "p99 at most 5 ms above a bare loop of its own calls",
            median[name, "p99"] - median[bare, "p99"] <= 5,
        )
        for name, bare, what in (
            ("store", "bare", "`LlamaIndexStore` beside `async_add`"),
            ("stream", "bare pipeline", "`stream_into` beside `IngestionPipeline.arun`"),
        )
    ]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        with tempfile.TemporaryDirectory() as folder:
            late = sorted(asyncio.run(_MEASURES[sys.argv[1]](folder)))
        print(json.dumps({"p99": late[int(len(late) * 0.99)], "max": late[-1]}))
    else:
        show(main())

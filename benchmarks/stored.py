"""Compare what it costs to store events: ours, the SDK's, LangChain's, LlamaIndex's, and by hand.

    python -m benchmarks.stored [--rounds 2]

All sides get the same events as a backlog and store them in Chroma on disk, with the bundled model on
this machine, then with vectors that take no time. Each runs in a new process. The CPU time is that of the
process and of its workers, from the first event until all are stored; models and packages are loaded
before. Ours keeps a journal on disk, the others keep nothing for a crash. The others store one document an
event, in the connector's text form, as their users do; ours has its own text and joins events of a session.
No two events are equal, and `PAYLOADS` of `benchmarks.search` says how many a session has.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Sequence
from itertools import chain, islice
from typing import Any

from autoplay_rag.embedders.base import Embedder
from benchmarks.pipeline import lag_of_the_loop, vector
from benchmarks.table import Figure, percentile, show

EVENTS = {"model": 300, "instant": 2_000}
SDK_SHARE = 4
"""The SDK's pipeline gets a quarter of the events: it stores one at a time, at the same cost for each."""
FRAMEWORKS = ("aindex", "llama-index")
NAMES = {
    "ours": "ours",
    "by-hand": "by hand",
    "aindex": "LangChain's `aindex`",
    "llama-index": "LlamaIndex's `IngestionPipeline`",
    "sdk": "the SDK's pipeline",
}
BARS = {"model": 0.8, "instant": 1.5}
"""The most CPU, of that of the cheaper framework."""


def _payloads(count: int) -> list[Any]:
    from benchmarks.search import payloads

    return list(islice(chain.from_iterable(payloads(count)), count))


class _Instant(Embedder):
    """Vectors that take no time. Different texts have different ones, up to 64."""

    model = "bench"
    max_inputs = 1_000

    def __init__(self) -> None:
        self._vectors = [vector(str(number)) for number in range(64)]

    def embed_sync(self, texts: Sequence[str]) -> list[array]:
        return [self._vectors[hash(text) % 64] for text in texts]

    async def embed(self, texts: Sequence[str]) -> list[array]:
        return self.embed_sync(texts)


def _embedder(which: str):
    if which == "instant":
        return _Instant()
    from autoplay_rag.embedders import LocalEmbedder

    return LocalEmbedder()


class _Spent:
    """The CPU time and the wall time since it was made."""

    def __init__(self) -> None:
        from benchmarks.search import cpu_seconds

        self._cpu_seconds = cpu_seconds
        self._cpu, self._wall = cpu_seconds(), time.perf_counter()

    def each(self, count: int) -> dict[str, float]:
        return {
            "cpu": (self._cpu_seconds() - self._cpu) / count * 1e3,
            "per_second": count / (time.perf_counter() - self._wall),
        }


async def _ours(folder: str, which: str, count: int) -> dict[str, float]:
    from autoplay_rag import IngestPipeline
    from autoplay_rag.stores import ChromaStore

    embedder = _embedder(which)
    await embedder.embed(["loads the model"])
    given = _payloads(count)
    async with IngestPipeline(
        ChromaStore(f"{folder}/chroma"), embedder, journal=f"{folder}/journal.db"
    ) as pipeline:
        async with lag_of_the_loop() as late:
            spent = _Spent()
            for start in range(0, count, 200):
                await asyncio.gather(*map(pipeline.on_actions, given[start : start + 200]))
            await pipeline.drain(300)
            found = spent.each(count)
        assert pipeline.ledger.stored == count
        return found | {"p99": percentile(late, 0.99), "chunks": pipeline.ledger.chunks}


async def _served(folder: str, which: str, count: int) -> dict[str, float]:
    """As `_ours`, in a process with the settings of `autoplay-rag serve`.

    With Python's own, the lag is that of one full garbage collection: it walks through all modules.
    """
    from autoplay_rag.cli.serve import _OBJECTS_OF_COLLECTION, _SWITCH_SECONDS
    from autoplay_rag.stores import ChromaStore  # noqa: F401 - a module that lives as long

    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.set_threshold(_OBJECTS_OF_COLLECTION, *gc.get_threshold()[1:])
    gc.collect()
    gc.freeze()
    return await _ours(folder, which, count)


def _collection(folder: str):
    import chromadb

    client = chromadb.PersistentClient(folder)
    return client.create_collection("bench", embedding_function=None)


async def _by_hand(folder: str, which: str, count: int) -> dict[str, float]:
    """One document an event, in requests of 64 to the model and of 500 to Chroma."""
    embedder = _embedder(which)
    embedder.embed_sync(["loads the model"])
    collection, given = _collection(folder), _payloads(count)
    spent = _Spent()
    texts = [payload.to_text() for payload in given]
    vectors = [
        list(one)
        for start in range(0, count, 64)
        for one in embedder.embed_sync(texts[start : start + 64])
    ]
    for start in range(0, count, 500):
        part = slice(start, start + 500)
        collection.upsert(
            ids=[str(number) for number in range(count)][part],
            documents=texts[part],
            embeddings=vectors[part],
            metadatas=[_metadata(payload) for payload in given[part]],
        )
    return spent.each(count)


async def _sdk(folder: str, which: str, count: int) -> dict[str, float]:
    import msgspec
    from autoplay_sdk import ActionsPayload, AsyncRagPipeline

    count //= SDK_SHARE
    embedder, collection = _embedder(which), _collection(folder)
    embedder.embed_sync(["loads the model"])

    async def embed(text: str) -> list[float]:
        return list((await embedder.embed([text]))[0])

    async def upsert(id: str, found: list[float], metadata: dict) -> None:
        clean = {k: v for k, v in metadata.items() if isinstance(v, str | int | float)}
        collection.upsert(ids=[id], embeddings=[found], metadatas=[clean or {"source": "bench"}])

    pipeline = AsyncRagPipeline(embed=embed, upsert=upsert)
    given = [ActionsPayload.from_dict(msgspec.to_builtins(one)) for one in _payloads(count)]
    spent = _Spent()
    for payload in given:  # one after another, as the SDK's client calls it
        await pipeline.on_actions(payload)
    found = spent.each(count)
    assert collection.count() > 0
    return found


async def _aindex(folder: str, which: str, count: int) -> dict[str, float]:
    import chromadb
    from langchain_chroma import Chroma
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.indexing import InMemoryRecordManager, aindex

    embedder = _embedder(which)
    embedder.embed_sync(["loads the model"])

    class Same(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [list(one) for one in embedder.embed_sync(texts)]

        def embed_query(self, text: str) -> list[float]:
            return self.embed_documents([text])[0]

    client = chromadb.PersistentClient(folder)
    store, records = Chroma("bench", Same(), client=client), InMemoryRecordManager("bench")
    records.create_schema()
    given = _payloads(count)
    spent = _Spent()
    documents = [Document(one.to_text(), metadata=_metadata(one)) for one in given]
    done = await aindex(documents, records, store, cleanup=None, key_encoder="sha256")
    found = spent.each(count)
    assert done["num_added"] == count
    return found


async def _llama_index(folder: str, which: str, count: int) -> dict[str, float]:
    from llama_index.core import Document
    from llama_index.core.embeddings import BaseEmbedding
    from llama_index.core.ingestion import IngestionPipeline
    from llama_index.vector_stores.chroma import ChromaVectorStore

    embedder, collection = _embedder(which), _collection(folder)
    embedder.embed_sync(["loads the model"])

    class Same(BaseEmbedding):
        def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
            return [list(one) for one in embedder.embed_sync(texts)]

        def _get_text_embedding(self, text: str) -> list[float]:
            return self._get_text_embeddings([text])[0]

        _get_query_embedding = _get_text_embedding

        async def _aget_query_embedding(self, query: str) -> list[float]:
            return self._get_text_embedding(query)

    pipeline = IngestionPipeline(
        transformations=[Same(embed_batch_size=64)],
        vector_store=ChromaVectorStore(chroma_collection=collection),
        disable_cache=True,
    )
    given = _payloads(count)
    spent = _Spent()
    documents = [Document(text=one.to_text(), metadata=_metadata(one)) for one in given]
    await pipeline.arun(documents=documents)
    found = spent.each(count)
    assert collection.count() == count
    return found


def _metadata(payload) -> dict[str, str | float]:
    return {
        "product_id": payload.product_id,
        "session_id": payload.session_id,
        "user_id": payload.user_id,
        "started_at": payload.actions[0].timestamp_start,
        "ended_at": payload.actions[-1].timestamp_end,
    }


_SIDES = {
    "ours": _ours,
    "by-hand": _by_hand,
    "aindex": _aindex,
    "llama-index": _llama_index,
    "sdk": _sdk,
}


def _run(side: str, which: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.stored", "--side", side, which]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(found.stdout.splitlines()[-1])


def _figures(which: str, rounds: int) -> list[Figure]:
    found = {side: [_run(side, which) for _ in range(rounds)] for side in _SIDES}

    def middle(side: str, name: str = "cpu") -> float:
        return statistics.median(one[name] for one in found[side])

    lag = statistics.median(_run("served", which)["p99"] for _ in range(rounds))
    least = min(FRAMEWORKS, key=middle)
    ratio = middle("ours") / middle(least)
    others = ", ".join(f"{NAMES[side]} {middle(side):.2f}" for side in _SIDES if side != "ours")
    how = {"model": "the bundled model", "instant": "vectors that take no time"}[which]
    count = EVENTS[which]
    return [
        Figure(
            f"CPU s to store 1,000 events, backlog of {count:,} in Chroma on disk, {how}",
            f"{middle('ours'):.2f} with a journal = {ratio:.2f} of {NAMES[least]}",
            others, f"at most {BARS[which]:g} of the cheaper framework", ratio <= BARS[which],
        ),
        Figure(
            f"the same: events a second; {found['ours'][0]['chunks']:,} chunks, the others one document an event",
            f"{middle('ours', 'per_second'):,.0f}",
            ", ".join(
                f"{NAMES[side]} {middle(side, 'per_second'):,.0f}" for side in _SIDES if side != "ours"
            ),
            "more than each", all(
                middle("ours", "per_second") > middle(side, "per_second") for side in (*FRAMEWORKS, "sdk")
            ),
        ),
        Figure(
            f"the same in a process with the settings of `serve`: loop lag, p99, {how}",
            f"{lag:.1f} ms", f"with Python's own {middle('ours', 'p99'):.1f} ms", "at most 10 ms", lag <= 10,
        ),
    ]  # fmt: skip


def main(argv: list[str] | None = None) -> list[Figure]:
    """Run the benchmark; the arguments are those of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stored")
    parser.add_argument("--rounds", type=int, default=2)
    rounds = parser.parse_args(argv or []).rounds
    return [figure for which in EVENTS for figure in _figures(which, rounds)]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            side, which = sys.argv[2:4]
            run = _served if side == "served" else _SIDES[side]
            print(json.dumps(asyncio.run(run(folder, which, EVENTS[which]))))
    else:
        show(main(sys.argv[1:]))

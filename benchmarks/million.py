"""Ingest a million chunks, and measure what the size costs: rate, start, searches, memory and disk.

    python -m benchmarks.million                                 an hour
    python -m benchmarks.million --chunks 200000                 a tenth must be several blocks of 11,000
    python -m benchmarks.million --folder DIR                    keeps all in DIR for the next run

Payloads and vectors are those of `benchmarks.search`: the vectors take no time. All payloads go through
`IngestPipeline` into Chroma on disk, with a journal beside it. Start and searches are measured in a new
process each. So is raw Chroma with its own settings: it fills a new folder with a tenth, and adds to a copy
of the full one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.table import Figure, show

CHUNKS = 1_000_000
QUESTIONS = 100
TENTH = 10
RATE_BAR = 0.7
START_BAR = 5.0
RAW_MORE = 10_000
"""Chunks that raw Chroma adds to the full folder."""
BATCH = 500
CHROMA_THRESHOLD = 1_000
"""Chroma's own `sync_threshold`."""
SEARCH_FACTOR = 3
"""Times the bars of `benchmarks.search` for 100,000 chunks."""
MB = 1e6


class Moment(NamedTuple):
    chunks: int
    wall: float
    cpu: float


def _now(chunks: int) -> Moment:
    from benchmarks.search import cpu_seconds

    return Moment(chunks, time.perf_counter(), cpu_seconds())


async def _build(folder: Path, chunks: int) -> None:
    """Ingest, unless an earlier run did, and keep the moments between the parts."""
    from benchmarks.search import build, is_built, opened

    if is_built(folder):
        return
    moments = [_now(0)]

    def on_stored(count: int) -> None:
        if count * TENTH // chunks > moments[-1].chunks * TENTH // chunks:
            print(f"{count:,} chunks stored", file=sys.stderr, flush=True)
        moments.append(_now(count))

    with opened(folder) as place:
        await build(folder, place, chunks, on_stored=on_stored)
    (folder / "moments.json").write_text(json.dumps(moments))


def _rate(moments: list[Moment], first: int, last: int) -> tuple[float, float]:
    """Chunks per second, and CPU ms per chunk, from about one number of chunks to another."""
    begin = max(one for one in moments if one.chunks <= first)
    end = min(one for one in moments if one.chunks >= last)
    count = end.chunks - begin.chunks
    return count / (end.wall - begin.wall), (end.cpu - begin.cpu) / count * 1e3


async def _start(folder: Path) -> dict[str, float]:
    """Seconds until the pipeline has started, and until its first answer."""
    from autoplay_rag import IngestPipeline
    from autoplay_rag.embedders import LocalEmbedder
    from benchmarks.search import opened

    began = time.perf_counter()
    with opened(folder) as place:
        async with IngestPipeline(
            place.store(), LocalEmbedder(), journal=place.journal
        ) as pipeline:
            started = time.perf_counter() - began
            assert await pipeline.search("exported a report", 1)
            return {"started": started, "answered": time.perf_counter() - began}


async def _searches(folder: Path, chunks: int) -> dict:
    """The p50 of each kind of search, and the resident memory of both processes afterwards."""
    from benchmarks import search

    memory: dict[str, float] = {}

    def say(line: str) -> None:
        # The first line of the last kind is said while the pipeline is open.
        if line.startswith(f"| {list(search.CONDITIONS)[-1]} |") and not memory:
            memory.update(_resident())

    found = await search.measure(folder, chunks, QUESTIONS, say=say)
    return {
        "memory": memory,
        "kinds": {kind: [str(timing), timing.p50] for kind, (timing, _) in found.items()},
    }


def _resident() -> dict[str, float]:
    from benchmarks.search import _children
    from benchmarks.soak import resident_mb

    return {"own": resident_mb(), "chroma": sum(map(resident_mb, _children()))}


async def _raw(folder: Path, chunks: int) -> dict[str, float]:
    """The chunks per second of raw Chroma, from none to a tenth and behind the last."""
    import chromadb

    from benchmarks.search import MadeUpVectors

    def opened(path: Path):
        client = chromadb.PersistentClient(str(path))
        (found,) = (one for one in client.list_collections() if one.count())
        return client, found

    copy, new = folder / "raw-full", folder / "raw-new"
    shutil.copytree(folder / "chroma", copy, ignore=shutil.ignore_patterns("autoplay-rag.*"))
    client, full = opened(copy)
    full.modify(configuration={"hnsw": {"sync_threshold": CHROMA_THRESHOLD}})
    client.close()  # Chroma reads the threshold when it opens the index
    client, full = opened(copy)
    some = full.get(limit=BATCH, include=["documents", "metadatas"])
    first = chromadb.PersistentClient(str(new)).create_collection(
        full.name, embedding_function=None, configuration={"hnsw": {"space": "cosine"}}
    )
    embedder, rates = MadeUpVectors(), {}
    for name, collection, count in (
        ("first", first, chunks // TENTH),
        ("last", full, RAW_MORE),
    ):
        began = 0.0
        # The first batch opens the index.
        for start in range(-BATCH, count, BATCH):
            if start == 0:
                began = time.perf_counter()
            vectors = await embedder.embed(some["documents"])
            collection.upsert(
                ids=[f"raw-{start + number}" for number in range(BATCH)],
                documents=some["documents"],
                metadatas=some["metadatas"],
                embeddings=[list(vector) for vector in vectors],
            )
        rates[name] = count / (time.perf_counter() - began)
    shutil.rmtree(copy)
    shutil.rmtree(new)
    return rates


def _sizes(folder: Path) -> dict[str, float]:
    """MB of the journal and of Chroma's folder."""
    sizes = {file: file.stat().st_size / MB for file in folder.rglob("*") if file.is_file()}
    journal = sum(size for file, size in sizes.items() if file.name.startswith("journal.db"))
    return {"journal": journal, "chroma": sum(sizes.values()) - journal}


def _run(name: str, folder: Path, chunks: int):
    command = [sys.executable, "-m", "benchmarks.million", f"--{name}", "--folder", str(folder)]
    found = subprocess.run(
        [*command, "--chunks", str(chunks)], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(found.stdout.splitlines()[-1])


def measured(folder: Path, chunks: int) -> list[Figure]:
    """Build if needed, measure, and compare with the bars."""
    from benchmarks.search import BARS

    asyncio.run(_build(folder, chunks))
    part = chunks // TENTH
    moments = [Moment(*one) for one in json.loads((folder / "moments.json").read_text())]
    first, first_cpu = _rate(moments, 0, part)
    last, last_cpu = _rate(moments, chunks - part, chunks)
    start, raw = _run("start", folder, chunks), _run("raw", folder, chunks)
    found, sizes = _run("searches", folder, chunks), _sizes(folder)
    memory = found["memory"]
    size = f"{chunks:,} chunks"
    return [
        Figure(
            f"ingest of the last {part:,} of {size}",
            f"{last:,.0f} a second = {last / first:.2f} of the first {part:,}; CPU {last_cpu:.2f} ms a chunk",
            f"the first: {first:,.0f} a second; CPU {first_cpu:.2f} ms; raw Chroma {raw['last']:,.0f} "
            f"of {raw['first']:,.0f} = {raw['last'] / raw['first']:.2f}",
            f"at least {RATE_BAR}", last / first >= RATE_BAR,
        ),
        Figure(
            f"start of a pipeline over {size}",
            f"{start['started']:.2f} s; first answer after {start['answered']:.2f} s", "-",
            f"started within {START_BAR:g} s", start["started"] <= START_BAR,
        ),
        *(
            Figure(
                f"`search_sessions` over {size}: {kind}", told, "-",
                f"p50 at most {SEARCH_FACTOR * BARS[kind][0]} ms",
                p50 <= SEARCH_FACTOR * BARS[kind][0],
            )
            for kind, (told, p50) in found["kinds"].items()
        ),
        Figure(
            f"memory with {size}, after the searches",
            f"{memory['own']:,.0f} MB; Chroma's worker {memory['chroma']:,.0f} MB", "-", "printed", met=True,
        ),
        Figure(
            f"disk with {size}",
            f"journal {sizes['journal']:,.0f} MB; Chroma {sizes['chroma']:,.0f} MB", "-", "printed", met=True,
        ),
    ]  # fmt: skip


def main(argv: list[str] | None = None) -> list[Figure]:
    """Run the benchmark; the arguments are those of the command line."""
    options = _parser().parse_args(argv or [])
    if options.folder:
        return measured(options.folder, options.chunks)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        return measured(Path(folder) / "built", options.chunks)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.million")
    parser.add_argument("--chunks", type=int, default=CHUNKS)
    parser.add_argument("--folder", type=Path, help="keep the chunks here, and use them again")
    parser.add_argument("--start", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--searches", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--raw", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    given = _parser().parse_args()
    if given.start:
        print(json.dumps(asyncio.run(_start(given.folder))))
    elif given.searches:
        print(json.dumps(asyncio.run(_searches(given.folder, given.chunks))))
    elif given.raw:
        print(json.dumps(asyncio.run(_raw(given.folder, given.chunks))))
    else:
        show(main(sys.argv[1:]))

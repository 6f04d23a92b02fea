"""Compare `ChromaStore` with raw Chroma: CPU and bytes written for each chunk that is stored.

    python -m benchmarks.chroma [--chunks 20000] [--rounds 1]

Both store the same chunks and vectors in batches of 500, in a folder on disk, each in a new process.
The CPU time of ours includes its worker. The bytes are those that Chroma's process passes to the operating system.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from pathlib import Path

from benchmarks.filters import corpus
from benchmarks.table import Figure, show

CHUNKS = 20_000
BATCH = 500
CPU_BAR = 1.15
BYTES_BAR = 1.1


def _written(pid: int | str) -> int:
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(fields["wchar"])


async def _ours(folder: str, count: int) -> dict[str, float]:
    from autoplay_rag.stores import ChromaStore
    from benchmarks.search import cpu_seconds

    chunks, vectors = corpus(count)
    store = ChromaStore(folder, timeout=600)
    await store.start("bench")
    pid = store._worker._process._popen.pid  # noqa: SLF001 - to read what it writes
    cpu, written, started = cpu_seconds(), _written(pid), time.perf_counter()
    for start in range(0, count, BATCH):
        part = slice(start, start + BATCH)
        await store.upsert(chunks[part], [array("f", one) for one in vectors[part]])
    found = {
        "cpu": (cpu_seconds() - cpu) / count * 1e3,
        "bytes": (_written(pid) - written) / count,
        "per_second": count / (time.perf_counter() - started),
    }
    assert await store.count() == count
    await store.aclose()
    return found


async def _raw(folder: str, count: int) -> dict[str, float]:
    import chromadb

    chunks, vectors = corpus(count)
    collection = chromadb.PersistentClient(folder).create_collection(
        "bench", embedding_function=None, configuration={"hnsw": {"space": "cosine"}}
    )
    cpu, written, started = time.process_time(), _written("self"), time.perf_counter()
    for start in range(0, count, BATCH):
        part = slice(start, start + BATCH)
        collection.upsert(
            ids=[chunk.id for chunk in chunks[part]],
            documents=[chunk.text for chunk in chunks[part]],
            metadatas=[dict(chunk.metadata) for chunk in chunks[part]],
            embeddings=vectors[part],
        )
    found = {
        "cpu": (time.process_time() - cpu) / count * 1e3,
        "bytes": (_written("self") - written) / count,
        "per_second": count / (time.perf_counter() - started),
    }
    assert collection.count() == count
    return found


_SIDES = {"ours": _ours, "raw": _raw}


def _run(side: str, count: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.chroma", "--side", side, str(count)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(found.stdout.splitlines()[-1])


def main(argv: list[str] | None = None) -> list[Figure]:
    """Run the benchmark; the arguments are those of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chroma")
    parser.add_argument("--chunks", type=int, default=CHUNKS)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args(argv or [])
    turns = [{side: _run(side, options.chunks) for side in _SIDES} for _ in range(options.rounds)]
    middle = {
        (side, name): statistics.median(turn[side][name] for turn in turns)
        for side in _SIDES
        for name in ("cpu", "bytes", "per_second")
    }
    cpu = middle["ours", "cpu"] / middle["raw", "cpu"]
    written = middle["ours", "bytes"] / middle["raw", "bytes"]
    return [
        Figure(
            f"CPU of a chunk into Chroma on disk, {options.chunks:,} chunks in batches of {BATCH}",
            f"{middle['ours', 'cpu']:.2f} ms = {cpu:.2f} of raw Chroma; {middle['ours', 'per_second']:,.0f} a second",
            f"raw Chroma {middle['raw', 'cpu']:.2f} ms; {middle['raw', 'per_second']:,.0f} a second",
            f"at most {CPU_BAR}", cpu <= CPU_BAR,
        ),
        Figure(
            "the same: bytes that Chroma's process writes for a chunk",
            f"{middle['ours', 'bytes'] / 1000:.1f} KB = {written:.2f} of raw Chroma",
            f"raw Chroma {middle['raw', 'bytes'] / 1000:.1f} KB",
            f"at most {BYTES_BAR}", written <= BYTES_BAR,
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            print(json.dumps(asyncio.run(_SIDES[sys.argv[2]](folder, int(sys.argv[3])))))
    else:
        show(main(sys.argv[1:]))

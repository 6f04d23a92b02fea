"""Compare loop lag on LangChain's Chroma: `LangChainStore` with and without a process, and bare calls.

The vector store holds Python's lock while it writes. All sides store the same documents in batches of
100, one after another.

    python -m benchmarks.langchain_lag [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from benchmarks.pipeline import lag_of_the_loop
from benchmarks.table import Figure, percentile, show

LOTS = 60
LOT = 100

Add: TypeAlias = Callable[[int], Awaitable[object]]
Close: TypeAlias = Callable[[], Awaitable[None]]


def make_vectorstore(folder: str):
    from langchain_chroma import Chroma
    from langchain_core.embeddings import DeterministicFakeEmbedding

    return Chroma("bench", DeterministicFakeEmbedding(size=384), persist_directory=folder)


def _bare(folder: str) -> tuple[Add, Close]:
    from langchain_core.documents import Document

    store = make_vectorstore(folder)

    async def add(start: int) -> None:
        documents = [
            Document(f"clicked {n} " * 10, id=str(n), metadata={"session_id": f"s{n % 50}"})
            for n in range(start, start + LOT)
        ]
        await store.aadd_documents(documents)

    return add, _nothing


def _in_this_process(folder: str) -> tuple[Add, Close]:
    from langchain_autoplay import LangChainStore

    return _into(LangChainStore(make_vectorstore(folder)))


def _in_its_own(folder: str) -> tuple[Add, Close]:
    from langchain_autoplay import LangChainStore

    return _into(LangChainStore.in_process(make_vectorstore, folder))


def _into(store) -> tuple[Add, Close]:
    from autoplay_rag import Chunk

    async def add(start: int) -> None:
        await store.add(
            [
                Chunk(str(n), f"clicked {n} " * 10, {"session_id": f"s{n % 50}"})
                for n in range(start, start + LOT)
            ]
        )

    return add, store.aclose


async def _nothing() -> None: ...


_SIDES = {"bare": _bare, "store": _in_this_process, "process": _in_its_own}


async def _measured(side: str) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        add, close = _SIDES[side](folder)
        await add(LOTS * LOT)  # makes the collection
        async with lag_of_the_loop() as late:
            began = loop.time()
            for number in range(LOTS):
                await add(number * LOT)
            took = loop.time() - began
        await close()
    return {"p99": percentile(late, 0.99), "max": max(late), "rate": LOTS * LOT / took}


def _run(side: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.langchain_lag", "--side", side]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(found.stdout.splitlines()[-1])


def main(argv: list[str] | None = None) -> list[Figure]:
    """Run the benchmark; the arguments are those of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.langchain_lag")
    parser.add_argument("--rounds", type=int, default=3)
    rounds = [
        {side: _run(side) for side in _SIDES} for _ in range(parser.parse_args(argv or []).rounds)
    ]
    middle = {
        side: {
            name: statistics.median(one[side][name] for one in rounds)
            for name in ("p99", "max", "rate")
        }
        for side in _SIDES
    }
    told = {
        side: f"{found['p99']:.1f} ms, max {found['max']:.0f} ms; {found['rate']:,.0f} documents/s"
        for side, found in middle.items()
    }
    return [
        Figure(
            f"`LangChainStore.in_process` over langchain-chroma, batches of {LOT}: loop lag, p99",
            told["process"],
            f"`aadd_documents` {told['bare']}; `LangChainStore` {told['store']}",
            "at most 20 ms", middle["process"]["p99"] <= 20,
        )
    ]  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        print(json.dumps(asyncio.run(_measured(sys.argv[2]))))
    else:
        show(main(sys.argv[1:]))

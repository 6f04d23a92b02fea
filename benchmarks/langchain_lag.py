"""Compare loop lag on LangChain's Chroma: `LangChainStore` in batches of 100, and the bare calls.

The vector store holds Python's lock while it writes. Both sides store the same documents at the
same pace.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable

from benchmarks.pipeline import lag_of_the_loop
from benchmarks.table import Figure, percentile, show

LOTS = 40
LOT = 100
INTERVAL = 0.5
ROUNDS = 3


def _vectorstore(folder: str):
    from langchain_chroma import Chroma
    from langchain_core.embeddings import DeterministicFakeEmbedding

    return Chroma("bench", DeterministicFakeEmbedding(size=384), persist_directory=folder)


def _bare(folder: str) -> Callable[[int], Awaitable[object]]:
    from langchain_core.documents import Document

    store = _vectorstore(folder)

    async def add(start: int) -> None:
        documents = [
            Document(f"clicked {n} " * 10, id=str(n), metadata={"session_id": f"s{n % 50}"})
            for n in range(start, start + LOT)
        ]
        await store.aadd_documents(documents)

    return add


def _ours(folder: str) -> Callable[[int], Awaitable[object]]:
    from langchain_autoplay import LangChainStore

    from autoplay_rag import Chunk

    store = LangChainStore(_vectorstore(folder))

    async def add(start: int) -> None:
        await store.add(
            [
                Chunk(str(n), f"clicked {n} " * 10, {"session_id": f"s{n % 50}"})
                for n in range(start, start + LOT)
            ]
        )

    return add


_SIDES = {"bare": _bare, "ours": _ours}


async def _measured(side: str) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        add = _SIDES[side](folder)
        await add(LOTS * LOT)  # makes the collection
        busy = 0.0
        async with lag_of_the_loop() as late:
            began = loop.time()
            for number in range(LOTS):
                at = loop.time()
                await add(number * LOT)
                busy += loop.time() - at
                await asyncio.sleep(max(0.0, began + (number + 1) * INTERVAL - loop.time()))
    return {"p99": percentile(late, 0.99), "rate": LOTS * LOT / busy}


def _run(side: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.langchain_lag", side]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(found.stdout.splitlines()[-1])


def main() -> list[Figure]:
    rounds = [{side: _run(side) for side in _SIDES} for _ in range(ROUNDS)]
    ours, bare = (
        {name: statistics.median(one[side][name] for one in rounds) for name in ("p99", "rate")}
        for side in ("ours", "bare")
    )
    return [
        Figure(
            f"`LangChainStore` over langchain-chroma, batches of {LOT}: loop lag, p99",
            f"{ours['p99']:.1f} ms; {ours['rate']:.0f} documents/s while it stores",
            f"{bare['p99']:.1f} ms; {bare['rate']:.0f} documents/s",
            "at most 20 ms", ours["p99"] <= 20,
        )
    ]  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(asyncio.run(_measured(sys.argv[1]))))
    else:
        show(main())

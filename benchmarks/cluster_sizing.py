"""Measure what a pipeline on PostgreSQL needs: disk for each table, memory, searches a second.

    python -m benchmarks.cluster_sizing [--chunks 50000]

One payload of five actions makes one chunk, of 384 dimensions. Everything grows with the number of
chunks, so larger sizes can be computed; see docs/recipes/postgres-operations.md.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import statistics
import sys
import time
from collections.abc import Sequence

import numpy as np

from autoplay_rag import IngestPipeline
from autoplay_rag.embedders.base import Embedder
from autoplay_rag.payloads import ActionsPayload, SlimAction
from autoplay_rag.stores import PgVectorStore
from benchmarks.postgres import make_vectors
from benchmarks.replicas import Server
from benchmarks.soak import resident_mb

SCHEMA = "sizing"
USERS = 500
_AT_ONCE = 512
_PAGES = ("billing", "invoices", "reports", "settings", "members", "projects", "search", "exports")
_VERBS = ("Opened", "Clicked", "Changed", "Exported", "Deleted", "Filtered", "Sorted", "Invited")


class KnownVectors(Embedder):
    """Takes no time, so that the database is measured."""

    model = "sizing"
    max_inputs = 2048

    def __init__(self, count: int) -> None:
        # The same vector twice would take no place in the index.
        self._vectors = make_vectors(count)[0]
        self._used = 0

    async def embed(self, texts: Sequence[str]) -> list[np.ndarray]:
        first, self._used = self._used, self._used + len(texts)
        return [self._vectors[number % len(self._vectors)] for number in range(first, self._used)]


def payload_of(number: int) -> ActionsPayload:
    source = random.Random(number)
    at = 1.7e9 + number
    actions = []
    for index in range(5):
        verb, page = source.choice(_VERBS), source.choice(_PAGES)
        title = f"{verb} {page} {source.randrange(10_000)}"
        url = f"https://app.example.com/{page}/{source.randrange(1000)}"
        actions.append(SlimAction(title, f"User: {title}", url, index, "click", at, at))
    session = number // 5
    return ActionsPayload("acme", f"s{session}", f"u{session % USERS}", None, actions, 5, at)


async def _searches(
    pipeline: IngestPipeline, at_once: int, seconds: float, **of: str
) -> tuple[float, float]:
    """Return the searches a second, some at once, and the median milliseconds of one."""
    times: list[float] = []
    questions = itertools.count()
    until = time.monotonic() + seconds

    async def ask() -> None:
        while time.monotonic() < until:
            number = next(questions)
            began = time.perf_counter()
            words = f"{_VERBS[number % 8].lower()} {_PAGES[number // 8 % 8]} {number}"
            user = dict.fromkeys(of, f"u{number % USERS}")
            await pipeline.search(words, k=8, **user)
            times.append(1000 * (time.perf_counter() - began))

    await asyncio.gather(*(ask() for _ in range(at_once)))
    return len(times) / seconds, statistics.median(times)


async def _measure(server: Server, count: int) -> None:
    store = PgVectorStore(server.dsn, schema=SCHEMA, index="none")
    async with IngestPipeline(
        store, KnownVectors(count), journal=server.dsn, batch_window=1.0, max_batch_actions=5
    ) as pipeline:
        began = time.monotonic()
        numbers = iter(range(count))

        async def feed() -> None:
            for number in numbers:
                await pipeline.on_actions(payload_of(number))

        await asyncio.gather(*(feed() for _ in range(_AT_ONCE)))
        await pipeline.drain(timeout=300.0)
        print(f"ingest: {count / (time.monotonic() - began):,.0f} payloads a second")
        began = time.monotonic()
        await store.build_index()
        print(f"vector index: built in {time.monotonic() - began:.1f} s")
        await asyncio.to_thread(server.run, "VACUUM ANALYZE")
        for name, of in (("everything", {}), ("one user", {"user_id": ""})):
            for at_once in (1, 4):
                rate, median = await _searches(pipeline, at_once, 8.0, **of)
                print(
                    f"search over {name}, {at_once} at once: {rate:.0f} a second, "
                    f"median {median:.1f} ms"
                )
        print(f"memory of the process: {resident_mb():.0f} MB")
    rows = await asyncio.to_thread(
        server.run,
        "SELECT c.relname, c.reltuples::bigint, pg_table_size(c.oid), pg_indexes_size(c.oid) "
        "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s "
        "AND c.relkind = 'r' AND pg_total_relation_size(c.oid) > 1000000 ORDER BY 3 DESC",
        SCHEMA,
    )
    whole = sum(table + indexes for _, _, table, indexes in rows)
    print("| table | rows | bytes a chunk | of its indexes |\n|---|---|---|---|")
    for name, tuples, table, indexes in rows:
        print(f"| `{name}` | {tuples:,} | {table / count:,.0f} | {indexes / count:,.0f} |")
    print(f"| all | | {whole / count:,.0f} with indexes | |")


def main(argv: list[str] | None = None) -> None:
    """Run the measurement; the arguments are those of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster_sizing")
    parser.add_argument("--chunks", type=int, default=50_000)
    options = parser.parse_args(argv)
    with Server() as server:
        asyncio.run(_measure(server, options.chunks))


if __name__ == "__main__":
    main(sys.argv[1:])

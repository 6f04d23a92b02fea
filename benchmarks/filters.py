"""Measure the CPU time and the recall of filtered searches in `ChromaStore` and `MemoryStore`.

The vectors form clusters in a space of few dimensions, like those of texts. The chunks of one
product form a separate cluster, so that an unfiltered search finds none of them. Raw Chroma answers
the same questions with `where=`, from the same folder.

    python -m benchmarks.filters                     20,000 chunks, about a minute
    python -m benchmarks.filters --chunks 100000     five minutes or more
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
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any
from zlib import crc32

from benchmarks.table import Figure, show

if TYPE_CHECKING:
    from autoplay_rag.stores import Chunk, Filter

CHUNKS = 20_000
LARGE = 100_000
DIMENSION = 384
QUESTIONS = 40
_LATENT = 24
_TOPICS = 200
_START = 1.7e9
_SPAN = 30 * 86_400.0
_BATCH = 500
_TEXT = (
    "Opened the billing page\nChanged the plan from Team to Business\nAdded a payment method\n"
    "Downloaded the invoice of {0}\nInvited a colleague as an editor of project {1}\n"
)


def corpus(count: int, seed: int = 12) -> tuple[list[Chunk], Any]:
    """Make chunks and unit vectors: 2.2 chunks per session, 9 sessions per user. Deterministic."""
    import numpy as np

    from autoplay_rag.stores import Chunk

    random = np.random.default_rng(seed)
    sessions, users = max(1, int(count * 0.45)), max(1, count // 20)
    projection = random.normal(size=(_LATENT, DIMENSION))
    topics = random.normal(size=(_TOPICS, _LATENT))
    latent = topics[random.integers(_TOPICS, size=count)] + 0.5 * random.normal(
        size=(count, _LATENT)
    )
    apart = random.random(count) < 0.03
    latent[apart] = -6.0 + 0.5 * random.normal(size=(int(apart.sum()), _LATENT))
    vectors = latent @ projection + 0.3 * random.normal(size=(count, DIMENSION))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    session_of = np.sort(random.integers(sessions, size=count))
    user_of = random.integers(users, size=sessions)
    chunks = []
    for number in range(count):
        session = int(session_of[number])
        started = _START + _SPAN * number / count
        metadata = {
            "session_id": f"session-{session}",
            "user_id": f"user-{user_of[session]}",
            "product_id": "apart" if apart[number] else "main",
            "kind": "summary" if number % 10 == 0 else "actions",
            "started_at": started,
            "ended_at": started + 60.0,
            "title": f"Billing {number % 1000}",
        }
        chunks.append(Chunk(f"chunk-{number}", _TEXT.format(number, session), metadata))
    return chunks, vectors


@dataclass(frozen=True)
class Case:
    """One kind of question, with its filter and its limits."""

    name: str
    k: int
    bars: tuple[float, float] | None
    """The most CPU ms in `ChromaStore` and in `MemoryStore`."""
    filter_of: Callable[[Any], Filter]
    """Makes a filter from a chunk's metadata."""


def _cases() -> list[Case]:
    from autoplay_rag.stores import Filter

    def at(share: float) -> float:
        return _START + _SPAN * share

    everything = Filter()
    return [
        Case("all", 10, (5, 30), lambda _: everything),
        Case("all", 100, (10, 30), lambda _: everything),
        Case("a session", 10, (5, 10), lambda m: Filter(session_id=m["session_id"])),
        Case("a user", 10, (5, 10), lambda m: Filter(user_id=m["user_id"])),
        Case("a user", 100, (5, 10), lambda m: Filter(user_id=m["user_id"])),
        Case("a user, last half", 10, (5, 10), lambda m: Filter(user_id=m["user_id"], since=at(0.5))),
        Case("product, 97 %", 10, (15, 40), lambda _: Filter(product_id="main")),
        Case("product, 97 %", 100, (15, 40), lambda _: Filter(product_id="main")),
        Case("last half", 10, (15, 40), lambda _: Filter(since=at(0.5))),
        Case("product, last half", 10, (15, 40), lambda _: Filter(product_id="main", since=at(0.5))),
        Case("kind, 10 %", 10, (15, 40), lambda _: Filter(kind="summary")),
        Case("kind, 10 %", 100, None, lambda _: Filter(kind="summary")),
        Case("kind, last tenth", 10, None, lambda _: Filter(kind="summary", since=at(0.9))),
        Case("last hundredth", 10, None, lambda _: Filter(since=at(0.99))),
        Case("first tenth", 10, (15, 40), lambda _: Filter(until=at(0.1))),
        Case("product in a cluster, 3 %", 10, None, lambda _: Filter(product_id="apart")),
        Case("product in a cluster, 3 %", 100, None, lambda _: Filter(product_id="apart")),
    ]  # fmt: skip


@dataclass
class Measured:
    """The times and recalls of one store for the questions of one case."""

    cpu_ms: list[float] = field(default_factory=list)
    wall_ms: list[float] = field(default_factory=list)
    recalls: list[float] = field(default_factory=list)

    def add(self, cpu: float, wall: float, found: Iterable[str], wanted: set[str]) -> None:
        self.cpu_ms.append(cpu * 1e3)
        self.wall_ms.append(wall * 1e3)
        self.recalls.append(len(wanted & set(found)) / len(wanted) if wanted else 1.0)

    @property
    def cpu(self) -> float:
        return statistics.median(self.cpu_ms)

    @property
    def recall(self) -> float:
        return statistics.mean(self.recalls)

    def __str__(self) -> str:
        wall = statistics.median(self.wall_ms)
        return f"{self.cpu:.1f} ms CPU, {wall:.1f} ms, recall {self.recall:.3f}"


def _cpu_of(pid: int) -> float:
    """CPU seconds of all threads of a process. Linux only."""
    found = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(path.read_text().split()[0]) for path in found) / 1e9


@dataclass
class Question:
    """A vector, a filter, and the ids that an exact search finds."""

    vector: list[float]
    filter: Filter
    wanted: list[str]


def _questions(case: Case, chunks: list[Chunk], vectors: Any) -> list[Question]:
    import numpy as np

    random = np.random.default_rng(crc32(f"{case.name} {case.k}".encode()))
    made = []
    for number in random.integers(len(chunks), size=QUESTIONS).tolist():
        near = vectors[number] + 0.03 * random.normal(size=DIMENSION).astype(np.float32)
        passes = case.filter_of(chunks[int(random.integers(len(chunks)))].metadata)
        scores = vectors @ (near / np.linalg.norm(near))
        order = (at for at in np.argsort(-scores).tolist() if passes.matches(chunks[at].metadata))
        made.append(
            Question(near.tolist(), passes, [chunks[at].id for at in islice(order, case.k)])
        )
    return made


async def _ours(store: Any, case: Case, questions: list[Question]) -> Measured:
    worker = getattr(store, "_worker", None)
    pid = worker._process._popen.pid if worker else None  # noqa: SLF001 - to read its CPU time

    def cpu() -> float:
        return time.process_time() + (_cpu_of(pid) if pid else 0.0)

    measured = Measured()
    for question in questions:
        before, started = cpu(), time.perf_counter()
        found = await store.query(question.vector, case.k, question.filter)
        wall, used = time.perf_counter() - started, cpu() - before
        measured.add(used, wall, (match.id for match in found), set(question.wanted))
    return measured


async def _scored(store: Any, chunks: list[Chunk], count: int) -> Measured:
    """Score `count` ids. The recall is the share of ids that got a score."""
    random = Random(count)
    pid = store._worker._process._popen.pid  # noqa: SLF001 - to read its CPU time
    measured = Measured()
    for _ in range(QUESTIONS):
        ids = [chunk.id for chunk in random.sample(chunks, count)]
        vector = [random.gauss(0, 1) for _ in range(DIMENSION)]
        before, started = time.process_time() + _cpu_of(pid), time.perf_counter()
        found = await store.score(vector, ids)
        wall = time.perf_counter() - started
        measured.add(time.process_time() + _cpu_of(pid) - before, wall, found, set(ids))
    return measured


def _raw(folder: str, given: str) -> list[dict]:
    """Answer the same questions with raw Chroma. Runs in a separate process."""
    import chromadb

    collection = chromadb.PersistentClient(folder).get_collection(
        "autoplay", embedding_function=None
    )
    cases = json.loads(Path(given).read_text())
    collection.query(query_embeddings=[cases[0]["questions"][0]["vector"]], n_results=1)
    answers = []
    for case in cases:
        measured = Measured()
        for question in case["questions"]:
            before, started = time.process_time(), time.perf_counter()
            found = collection.query(
                query_embeddings=[question["vector"]],
                n_results=case["k"],
                where=question["where"],
            )
            used, wall = time.process_time() - before, time.perf_counter() - started
            measured.add(used, wall, found["ids"][0], set(question["wanted"]))
        answers.append(asdict(measured))
    return answers


async def _run(count: int, folder: str) -> list[Figure]:
    from autoplay_rag.stores import ChromaStore, MemoryStore
    from autoplay_rag.stores.chroma.store import where_of

    chunks, vectors = corpus(count)
    chroma, memory = ChromaStore(f"{folder}/chroma", timeout=600), MemoryStore()
    if await chroma.count() != count:
        await _fill(chroma, chunks, vectors)
    await _fill(memory, chunks, vectors)
    asked = [(case, _questions(case, chunks, vectors)) for case in _cases()]
    await chroma.query(asked[0][1][0].vector, 1, asked[0][1][0].filter)  # loads the index
    in_chroma = [await _ours(chroma, *each) for each in asked]
    scored = {n: await _scored(chroma, chunks, n) for n in (3, 20, 100, 1000)}
    await chroma.aclose()
    in_memory = [await _ours(memory, *each) for each in asked]
    given = Path(folder) / "questions.json"
    given.write_text(
        json.dumps(
            [
                {
                    "k": case.k,
                    "questions": [
                        {"vector": q.vector, "where": where_of(q.filter), "wanted": q.wanted}
                        for q in questions
                    ],
                }
                for case, questions in asked
            ]
        )
    )
    command = [sys.executable, "-m", "benchmarks.filters", "--raw", f"{folder}/chroma", str(given)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: ASYNC221
    raw = [Measured(**answer) for answer in json.loads(done.stdout.splitlines()[-1])]
    figures = []
    for (case, _), ours, ours_in_memory, theirs in zip(
        asked, in_chroma, in_memory, raw, strict=True
    ):
        most = case.bars or (1.5 * theirs.cpu, 1.5 * in_memory[0].cpu)
        where = f"{count:,} chunks, filter: {case.name}, k={case.k}"
        figures += [
            Figure(
                f"`ChromaStore`, {where}", str(ours), f"{theirs} with raw Chroma",
                f"at most {most[0]:.0f} ms CPU, recall 0.98" if case.bars else "1.5 times the CPU of raw Chroma, recall 0.98",
                ours.cpu <= most[0] and ours.recall >= 0.98,
            ),
            Figure(
                f"`MemoryStore`, {where}", str(ours_in_memory), "-",
                f"at most {most[1]:.0f} ms CPU, recall 1",
                ours_in_memory.cpu <= most[1] and ours_in_memory.recall == 1,
            ),
        ]  # fmt: skip
    for number, measured in scored.items():
        bar = 5 if number <= 20 else number * 0.05
        figures.append(
            Figure(
                f"`ChromaStore.score`, {count:,} chunks, {number} ids", str(measured), "-",
                f"at most {bar:.0f} ms CPU", measured.cpu <= bar,
            )
        )  # fmt: skip
    return figures


async def _fill(store: Any, chunks: list[Chunk], vectors: Any) -> None:
    await store.start("benchmark")
    for start in range(0, len(chunks), _BATCH):
        part = slice(start, start + _BATCH)
        await store.upsert(chunks[part], [array("f", vector) for vector in vectors[part]])


def main(count: int = CHUNKS, folder: str | None = None) -> list[Figure]:
    if folder is not None:
        return asyncio.run(_run(count, folder))
    with tempfile.TemporaryDirectory() as temporary:
        return asyncio.run(_run(count, temporary))


def short() -> list[Figure]:
    """The figures of `ChromaStore` for the ten nearest, and for scores."""
    return [f for f in main() if f.what.startswith("`ChromaStore") and "k=100" not in f.what]


def large() -> list[Figure]:
    return main(LARGE)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--chunks", type=int, default=CHUNKS)
    arguments.add_argument("--folder", help="keep the stores here, and use them again")
    arguments.add_argument("--raw", nargs=2, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.raw:
        print(json.dumps(_raw(*options.raw)))
    else:
        show(main(options.chunks, options.folder))

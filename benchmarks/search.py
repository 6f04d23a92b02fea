"""Measure the latency of searches over many chunks, and of each part of a search.

    python -m benchmarks.search                          100,000 chunks in Chroma
    python -m benchmarks.search --chunks 10000
    python -m benchmarks.search --chunks 1000000 --text-only
    python -m benchmarks.search --postgres               journal and vectors in PostgreSQL

The chunks are synthetic: words of the bundled model's vocabulary with Zipf frequencies, 9 sessions
for each 20 chunks, 9 sessions per user. The questions are embedded with the bundled model. All
payloads go through `IngestPipeline`. Storing 100,000 chunks takes about five minutes of CPU; they
are kept in `.benchmarks/` for the next run. CPU times include Chroma's worker, but not PostgreSQL.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import sys
import tempfile
import time
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial, wraps
from importlib import resources
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np

from autoplay_rag import ActionsPayload, IngestPipeline, SlimAction
from autoplay_rag.embedders import LocalEmbedder
from autoplay_rag.embedders.base import Embedder
from autoplay_rag.journal.schema import SCHEMA
from autoplay_rag.stores import ChromaStore, PgVectorStore, VectorStore
from benchmarks.table import Figure, percentile, show

CACHE = Path(".benchmarks")
CHUNKS = 100_000
SHORT = 5_000
QUESTIONS = 200
"""The number of questions for each kind of search. Each is asked once."""
ASKED = 5_000
SHORT_QUESTIONS = 40
SHORT_KINDS = ("everything", "one user", "one session")
WORDS = 20_000
DAYS = 90
START = 1_750_000_000.0
PAYLOADS = (1, 1, 1, 2, 2, 2, 3, 3, 5)
"""The number of payloads of nine sessions in turn."""
USER_SESSIONS = 9
TOGETHER = 5_000
"""Sessions that are active at the same time."""
BARS = {
    "everything": (80, 200),
    "one user": (60, None),
    "one session": (40, None),
    "last 1 % of the time": (100, None),
    "last half of the time": (100, None),
    "a product that all have": (100, None),
}
"""p50 and p99 in ms."""
POSTGRES_BARS = BARS | {"everything": (60, None), "one user": (30, None)}
TEXT_BAR = 150


# -- the data -------------------------------------------------------------------------------------


def vocabulary() -> list[str]:
    """The whole words of the model's vocabulary, common words first."""
    names = [
        one for one in resources.files("autoplay_rag.embedders").iterdir() if "vocab" in one.name
    ]
    known = names[0].read_text("utf-8").split("\n")
    return [word for word in known if word.isascii() and word.isalpha() and len(word) > 2][:WORDS]


class Words:
    """Words in random order, with Zipf frequencies."""

    def __init__(self, seed: int) -> None:
        self._words = vocabulary()
        self._random = np.random.default_rng(seed)
        weights = 1.0 / (np.arange(len(self._words)) + 3.0)
        self._edges = np.cumsum(weights / weights.sum())
        self._drawn: list[int] = []

    def some(self, count: int) -> str:
        while len(self._drawn) < count:
            self._drawn += np.searchsorted(self._edges, self._random.random(10_000)).tolist()
        last = len(self._words) - 1
        return " ".join(self._words[min(self._drawn.pop(), last)] for _ in range(count))


def payloads(chunks: int) -> Iterator[list[ActionsPayload]]:
    """Yield lists of payloads. No list has two payloads of the same session."""
    words, source = Words(1), random.Random(1)
    sites = [f"app.{words.some(1)}{number}.example" for number in range(60)]
    pages = [words.some(2).replace(" ", "-") for _ in range(400)]
    per = sum(PAYLOADS)
    sessions = max(1, chunks * len(PAYLOADS) // per)
    step = DAYS * 86400.0 / sessions
    given = 0
    for first in range(0, sessions, TOGETHER):
        block = range(first, min(first + TOGETHER, sessions))
        for turn in range(max(PAYLOADS)):
            some = []
            for session in block:
                if PAYLOADS[session % len(PAYLOADS)] > turn and given < chunks:
                    given += 1
                    at = START + session * step + turn * 20.0
                    url = f"https://{sites[session % 60]}/{source.choice(pages)}"
                    actions = [
                        _action(words, source, url, at + i) for i in range(source.randint(1, 5))
                    ]
                    some.append(
                        ActionsPayload(
                            "bench",
                            f"session-{session:07}",
                            f"user-{session * 7919 % max(1, sessions // USER_SESSIONS)}",
                            actions=actions,
                            forwarded_at=at + 10,
                        )
                    )
            if some:
                yield some


def _action(words: Words, source: random.Random, url: str, at: float) -> SlimAction:
    match source.randrange(4):
        case 0:
            told = f'User typed "{words.some(source.randint(1, 4))}" into "{words.some(2)}" field'
        case 1:
            told = f'User selected "{words.some(2)}" from "{words.some(1)}" dropdown'
        case _:
            told = f'User clicked the "{words.some(source.randint(1, 4))}" button'
    return SlimAction(
        told[5:60], told, url, type="click", raw_url=url, timestamp_start=at, timestamp_end=at + 0.5
    )


class MadeUpVectors(Embedder):
    """Has the name of the bundled model, but takes no time.

    The vectors form clusters, like those of texts.
    """

    model = LocalEmbedder.model
    max_inputs = 1000

    def __init__(self) -> None:
        self._random = np.random.default_rng(2)
        self._topics = self._random.normal(size=(200, 24))
        self._projection = self._random.normal(size=(24, 384))

    async def embed(self, texts: Sequence[str]) -> list[array]:
        topics = self._topics[self._random.integers(len(self._topics), size=len(texts))]
        found = (topics + 0.5 * self._random.normal(size=topics.shape)) @ self._projection
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        return [array("f", row.tobytes()) for row in found.astype(np.float32)]


class Nowhere(VectorStore):
    """A store that takes no time and finds nothing."""

    async def upsert(self, chunks, vectors): ...

    async def query(self, vector, k, filter):  # noqa: ARG002 - finds nothing
        return []

    async def delete(self, ids): ...

    async def count(self):
        return 0


@dataclass(frozen=True)
class Place:
    """Where the chunks are.

    Attributes:
        store: Makes the store.
        journal: A file, or the address of a journal in PostgreSQL.
    """

    store: Callable[[], VectorStore]
    journal: Path | str


@contextmanager
def opened(folder: Path, *, text_only: bool = False, postgres: bool = False) -> Iterator[Place]:
    """The place that has its files in this folder, which exists."""
    if not postgres:
        make = Nowhere if text_only else partial(ChromaStore, folder / "chroma")
        yield Place(make, folder / "journal.db")
        return
    from benchmarks.replicas import Server

    with Server(folder.resolve() / "data") as server:
        # The index is built after the backfill, and before searches.
        yield Place(partial(PgVectorStore, server.dsn, index="none"), server.dsn)


def is_built(folder: Path) -> bool:
    """Whether an earlier run has ingested the payloads. Otherwise the folder is made empty."""
    if (folder / "done").exists():
        return True
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return False


async def build(
    folder: Path, place: Place, chunks: int, *, on_stored: Callable[[int], None] = lambda _: None
) -> None:
    """Ingest the payloads. `on_stored` gets the number after each part."""
    done = folder / "done"
    source = random.Random(3)
    wanted = set(source.sample(range(chunks), min(chunks, ASKED)))
    asked: list[Asked] = []
    started, cpu = time.perf_counter(), time.process_time()
    store = place.store()
    async with IngestPipeline(
        store,
        MadeUpVectors(),
        journal=place.journal,
        batch_window=0,
        drain_timeout=600,
    ) as pipeline:
        count = 0
        for some in payloads(chunks):
            for start in range(0, len(some), 500):
                await asyncio.gather(*map(pipeline.on_actions, some[start : start + 500]))
            await pipeline.drain(600)
            asked += [question(one, source) for n, one in enumerate(some, count) if n in wanted]
            count += len(some)
            on_stored(count)
        assert pipeline.ledger.stored == count == pipeline.ledger.chunks, pipeline.ledger
        if isinstance(store, PgVectorStore):
            await store.build_index()
            await asyncio.to_thread(vacuum, place.journal)
    source.shuffle(asked)
    (folder / "questions.json").write_text(json.dumps(asked))
    took, cpu = time.perf_counter() - started, time.process_time() - cpu
    done.write_text(f"{count:,} chunks in {took:.0f} s, {cpu:.0f} CPU s without Chroma's worker\n")
    print(done.read_text(), end="", file=sys.stderr, flush=True)


def vacuum(dsn: Path | str) -> None:
    """Do what the server's own autovacuum does within some minutes."""
    import psycopg

    with psycopg.connect(str(dsn), autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")


class Asked(NamedTuple):
    question: str
    session_id: str
    user_id: str


def question(payload: ActionsPayload, source: random.Random) -> Asked:
    """Make a question from some words of a payload."""
    said = " ".join(action.description for action in payload.actions).replace('"', " ")
    words = [word for word in said.split() if word not in _OWN_WORDS]
    source.shuffle(words)
    first, second = " ".join(words[:3]), " ".join(words[3 : source.randint(4, 6)])
    text = source.choice(_FORMS).format(first, second)
    return Asked(text, payload.session_id, payload.user_id)


_OWN_WORDS = {
    "User",
    "typed",
    "into",
    "field",
    "selected",
    "from",
    "dropdown",
    "clicked",
    "the",
    "button",
}
_FORMS = (
    "how did someone {} and {}",
    "who wanted {} in {}?",
    "find the visit with {} or {}",
    "{} {}",
)


# -- measuring ------------------------------------------------------------------------------------


def cpu_seconds() -> float:
    """CPU seconds of this process and its running children."""
    return time.process_time() + sum(map(_cpu_of, _children()))


def _children() -> list[int]:
    found = []
    for task in Path("/proc/self/task").iterdir():
        try:
            found += [int(pid) for pid in (task / "children").read_text().split()]
        except OSError:  # the thread has ended
            continue
    return found


def _cpu_of(pid: int) -> float:
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except OSError:
            continue
    return total / 1e9


class Parts:
    """Wall and CPU ms of each part of a search. Parts may run concurrently."""

    def __init__(self) -> None:
        self.now: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.all: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def next(self) -> None:
        for name, (wall, cpu) in self.now.items():
            self.all[name].append((wall, cpu))
        self.now.clear()

    def cell(self, name: str, count: int) -> str:
        some = self.all.get(name)
        if not some:
            return "-"
        wall = percentile([wall for wall, _ in some], 0.5)
        return f"{wall:.1f} ({sum(cpu for _, cpu in some) / count:.1f})"

    def _add(self, name: str, wall: float, cpu: float) -> None:
        self.now[name][0] += wall * 1e3
        self.now[name][1] += cpu * 1e3

    def blocking(self, name, function):
        @wraps(function)
        def timed(*args, **options):
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                return function(*args, **options)
            finally:
                self._add(name, time.perf_counter() - wall, time.thread_time() - cpu)

        return timed

    def awaited(self, name, function):
        @wraps(function)
        async def timed(*args, **options):
            wall, cpu = time.perf_counter(), cpu_seconds()
            try:
                return await function(*args, **options)
            finally:
                self._add(name, time.perf_counter() - wall, cpu_seconds() - cpu)

        return timed


@contextmanager
def measured(pipeline: IngestPipeline) -> Iterator[Parts]:
    """Measure the parts of the pipeline's searches.

    The CPU time of an awaited part includes everything that runs at the same time.
    """
    from autoplay_rag.journal.finding import Finder
    from autoplay_rag.search import searcher

    parts = Parts()
    running = pipeline._open_run().searcher  # noqa: SLF001
    store, embedder = type(running.store), type(running.serving.embedder)
    blocking = [
        (Finder, "scope", "scope"),
        (Finder, "find", "full text"),
        (Finder, "lanes_of", "sessions of chunks"),
        (Finder, "chunk_ids", "chunks of sessions"),
        (Finder, "recent_lanes", "sessions of chunks"),
        (Finder, "passages", "passages"),
        (Finder, "chunks", "making hits"),
        (Finder, "visits", "making hits"),
        (searcher, "fused", "scoring"),
        (searcher, "matched", "marking"),
    ]
    awaited = [
        (embedder, "embed_query", "embedding"),
        (store, "query", "dense"),
        (store, "score", "dense"),
    ]
    kept = []
    for wrap, some in ((parts.blocking, blocking), (parts.awaited, awaited)):
        for owner, name, part in some:
            if function := getattr(owner, name, None):
                kept.append((owner, name, function))
                setattr(owner, name, wrap(part, function))
    try:
        yield parts
    finally:
        for owner, name, function in kept:
            setattr(owner, name, function)


class Timing(NamedTuple):
    """Milliseconds."""

    p50: float
    p99: float
    cpu: float

    def __str__(self) -> str:
        return f"p50 {self.p50:.1f} ms, p99 {self.p99:.1f} ms, CPU {self.cpu:.1f} ms"


_END = START + DAYS * 86400.0
CONDITIONS: dict[str, dict] = {
    "everything": {},
    "one user": {"user_id": None},
    "one session": {"session_id": None},
    "last 1 % of the time": {"since": _END - DAYS * 864.0},
    "last half of the time": {"since": _END - DAYS * 43200.0},
    "a product that all have": {"product_id": "bench"},
}
"""The conditions of each kind of search. None stands for the value of the question."""


async def run(search, asked: Iterable[Asked], given: dict, parts: Parts, **options) -> Timing:
    walls = []
    cpu = cpu_seconds()
    for one in asked:
        own = {
            name: getattr(one, name) if value is None else value for name, value in given.items()
        }
        started = time.perf_counter()
        await search(one.question, 5, **own, **options)
        walls.append((time.perf_counter() - started) * 1e3)
        parts.next()
    spent = (cpu_seconds() - cpu) * 1e3 / len(walls)
    return Timing(percentile(walls, 0.5), percentile(walls, 0.99), spent)


async def measure(
    folder: Path,
    chunks: int,
    count: int,
    *,
    text_only: bool = False,
    postgres: bool = False,
    kinds: Iterable[str] | None = None,
    say=print,
) -> dict:
    """Search, and return the timing of each kind, of `search_sessions` and of `search`."""
    built = is_built(folder)
    with opened(folder, text_only=text_only, postgres=postgres) as place:
        if not built:
            await build(folder, place, chunks)
        return await measure_in(
            folder, place, chunks, count, text_only=text_only, kinds=kinds, say=say
        )


async def measure_in(
    folder: Path,
    place: Place,
    chunks: int,
    count: int,
    *,
    text_only: bool,
    kinds: Iterable[str] | None,
    say,
) -> dict:
    asked = cycle(Asked(*one) for one in json.loads((folder / "questions.json").read_text()))
    mode = {"mode": "text"} if text_only else {}
    embedder = MadeUpVectors() if text_only else LocalEmbedder()
    found: dict[str, tuple[Timing, Timing]] = {}
    shares: dict[str, Parts] = {}
    async with IngestPipeline(place.store(), embedder, journal=place.journal) as pipeline:
        say(f"\n{chunks:,} chunks, {count} questions of each, load {os.getloadavg()[0]:.1f}\n")
        say("| over | `search_sessions` | `search` |\n|---|---|---|")
        cold = time.perf_counter()
        await pipeline.search_sessions(next(asked).question, **mode)
        cold = time.perf_counter() - cold
        for one in islice(asked, 20):  # caches of the file and of frequencies
            await pipeline.search(one.question, **mode)
        for kind in kinds or CONDITIONS:
            given = CONDITIONS[kind]
            with measured(pipeline) as parts:
                sessions = await run(
                    pipeline.search_sessions, islice(asked, count), given, parts, **mode
                )
            shares[kind] = parts
            with measured(pipeline) as parts:
                single = await run(pipeline.search, islice(asked, count), given, parts, **mode)
            found[kind] = sessions, single
            say(f"| {kind} | {sessions} | {single} |")
    say(f"\nThe first search, which loads the model: {cold:.2f} s.\n")
    names = list(dict.fromkeys(name for parts in shares.values() for name in parts.all))
    say("Parts of `search_sessions`, p50 ms of wall (mean of CPU):\n")
    say(f"| over | {' | '.join(names)} |\n|---{'|---' * len(names)}|")
    for kind, parts in shares.items():
        say(f"| {kind} | {' | '.join(parts.cell(name, count) for name in names)} |")
    return found


def _quiet(_: str) -> None: ...


def main() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(
            measure(Path(folder) / "built", SHORT, SHORT_QUESTIONS, kinds=SHORT_KINDS, say=_quiet)
        )
    figures = []
    for kind in SHORT_KINDS:
        timing, bar = found[kind][0], BARS[kind][0]
        figures.append(
            Figure(
                f"`search_sessions`, {SHORT:,} chunks in Chroma, the question's embedding included: {kind}",
                str(timing), "-", f"p50 at most {bar} ms", timing.p50 <= bar,
            )
        )  # fmt: skip
    return figures


def bars(
    found: dict[str, tuple[Timing, Timing]], *, text_only: bool, postgres: bool
) -> list[Figure]:
    figures = []
    known = POSTGRES_BARS if postgres else BARS
    for kind, timings in found.items():
        p50, p99 = (TEXT_BAR, None) if text_only else known[kind]
        for name, timing in zip(("search_sessions", "search"), timings, strict=True):
            met = timing.p50 <= p50 and (p99 is None or timing.p99 <= p99)
            bar = f"p50 {p50} ms" + (f", p99 {p99} ms" if p99 else "")
            figures.append(Figure(f"`{name}`: {kind}", str(timing), "-", bar, met))
    return figures


def large(
    chunks: int = CHUNKS,
    questions: int = QUESTIONS,
    *,
    text_only: bool = False,
    postgres: bool = False,
    say=_quiet,
) -> list[Figure]:
    """Search many chunks, which are kept for the next run."""
    # A different journal schema needs a new build.
    kind = "postgres" if postgres else "text" if text_only else "search"
    name = f"{kind}-{chunks}-{crc32(SCHEMA.encode()):08x}"
    found = asyncio.run(
        measure(CACHE / name, chunks, questions, text_only=text_only, postgres=postgres, say=say)
    )
    where = " in PostgreSQL" if postgres else ""
    return [
        replace(figure, what=f"{figure.what}, {chunks:,} chunks{where}")
        for figure in bars(found, text_only=text_only, postgres=postgres)
    ]


large_in_postgres = partial(large, postgres=True)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search")
    parser.add_argument("--chunks", type=int, default=CHUNKS, help="(%(default)s)")
    parser.add_argument("--questions", type=int, default=QUESTIONS, help="(%(default)s)")
    parser.add_argument("--text-only", action="store_true", help="full text alone, without a store")
    parser.add_argument("--postgres", action="store_true", help="journal and vectors in PostgreSQL")
    options = parser.parse_args()
    figures = large(
        options.chunks,
        options.questions,
        text_only=options.text_only,
        postgres=options.postgres,
        say=partial(print, flush=True),
    )
    print()
    show(figures)

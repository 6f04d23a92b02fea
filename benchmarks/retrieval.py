"""Measure how often a search finds the right session.

    python -m benchmarks.retrieval                                 the shipped samples
    python -m benchmarks.retrieval RECORDING QUERIES ...           other data, in pairs of files
    python -m benchmarks.retrieval --typos RECORDING QUERIES
    python -m benchmarks.retrieval --embedder local:int8

A recording has one payload per line. Each line of the queries is an object with `session_id` and
`query` (or `question`), the goal of the person. R@1 and R@5 are the shares of questions for which
the session is the first result, or among the first five, with 95 % intervals (Wilson).

The payloads go through `IngestPipeline` in two ways. "In windows": as from a live stream, one batch
per 15 s of `forwarded_at`. "Replayed": all payloads at once. The SDK's scheme stores one document
per payload, in the text form of the wire format, without batches.

Questions about exact strings (codes, ids, addresses, phrases) are those of `exact_questions.jsonl`
for the samples. For other data they are generated from strings that only one session has.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import re
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple, TypeAlias

from autoplay_rag import ActionsPayload, IngestPipeline
from autoplay_rag.content.render import Render, render
from autoplay_rag.decoding import decode
from autoplay_rag.embedders.named import EMBEDDER_NAMES, make_embedder
from autoplay_rag.payloads import Payload
from autoplay_rag.stores import MemoryStore

WINDOW = 15.0
EXACT = Path(__file__).with_name("exact_questions.jsonl")
GENERATED = 20
"""The number of generated questions about exact strings."""
TYPO_SHARE = 1 / 3
SHIPPED = resources.files("autoplay_rag.devserver")
SAMPLES = Path(str(SHIPPED / "samples.jsonl")), Path(str(SHIPPED / "questions.jsonl"))

Sessions: TypeAlias = dict[str, list[Payload]]
Asked: TypeAlias = tuple[str, str]
"""Session id and question."""
Search: TypeAlias = Callable[[IngestPipeline, str], Awaitable[list[str | None]]]


# -- the data -------------------------------------------------------------------------------------


def read(recording: Path, queries: Path) -> tuple[Sessions, list[Asked]]:
    """Read the sessions with their payloads, and the questions about them."""
    sessions: Sessions = {}
    for line in recording.read_bytes().splitlines():
        payload = decode(line)
        if isinstance(payload, ActionsPayload) and payload.session_id:
            sessions.setdefault(payload.session_id, []).append(payload)
    return sessions, [asked for asked in read_questions(queries) if asked[0] in sessions]


def read_questions(queries: Path) -> list[Asked]:
    found = map(json.loads, queries.read_text("utf-8").splitlines())
    return [(one["session_id"], one.get("query") or one["question"]) for one in found]


def windows(payloads: Sequence[Payload], seconds: float) -> Iterator[list[Payload]]:
    """Split one session's payloads into windows. Each window starts at its first payload."""
    window: list[Payload] = []
    for payload in payloads:
        if window and payload.forwarded_at >= window[0].forwarded_at + seconds:
            yield window
            window = []
        window.append(payload)
    if window:
        yield window


def wire(payloads: Sequence[Payload]) -> str:
    """The text form of the wire format."""
    return "\n".join(payload.to_text() for payload in payloads)


def with_typos(questions: Sequence[Asked], seed: int = 7) -> list[Asked]:
    """Add one typo to a third of the words: two letters swapped, or one omitted or replaced."""
    source = random.Random(seed)
    return [
        (session, " ".join(_slip(word, source) for word in text.split()))
        for session, text in questions
    ]


def _slip(word: str, source: random.Random) -> str:
    if len(word) <= 3 or source.random() > TYPO_SHARE:
        return word
    at = source.randrange(1, len(word) - 1)
    match source.randrange(3):
        case 0:
            return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        case 1:
            return word[:at] + word[at + 1 :]
        case _:
            return word[:at] + source.choice("abcdefghijklmnopqrstuvwxyz") + word[at + 1 :]


_TYPED = re.compile(r'(?:typed|selected) "([^"]{4,60})"')
_QUOTED = re.compile(r'"([^"]{10,80})"')
_CODE = re.compile(r"(?=\S*[\d@_])[\w@#/:.-]{5,40}(?<![.:-])")


def exact_questions(sessions: Sessions, count: int = GENERATED, seed: int = 5) -> list[Asked]:
    """Make questions about strings of only one session: codes, typed values, phrases in turn."""
    texts = {
        session: " \n ".join(
            action.description or ""
            for payload in payloads
            if isinstance(payload, ActionsPayload)
            for action in payload.actions
        ).casefold()
        for session, payloads in sessions.items()
    }
    source = random.Random(seed)
    drawn = [
        _drawn(texts, _CODE, "who entered {}?", source),
        _drawn(texts, _TYPED, "who entered {}?", source),
        _drawn(texts, _QUOTED, 'who came across "{}"?', source),
    ]
    turns = [one for turn in zip_longest(*drawn) for one in turn if one]
    return list({session + question: (session, question) for session, question in turns}.values())[
        :count
    ]


def _drawn(
    texts: dict[str, str], pattern: re.Pattern[str], form: str, source: random.Random
) -> list[Asked]:
    owners: dict[str, list[str]] = defaultdict(list)
    for session, text in texts.items():
        for found in {found.strip() for found in pattern.findall(text)}:
            owners[found].append(session)
    unique = [
        (owner, form.format(found))
        for found, (owner, *others) in sorted(owners.items())
        if not others and sum(found in text for text in texts.values()) == 1
    ]
    source.shuffle(unique)
    return unique


# -- storing and searching ------------------------------------------------------------------------


@asynccontextmanager
async def stored(
    sessions: Sessions, window: float, text_of: Render = render, embedder: str = "local"
) -> AsyncIterator[IngestPipeline]:
    """A pipeline that stored these sessions in windows of `window` seconds."""
    with tempfile.TemporaryDirectory() as folder:
        async with IngestPipeline(
            MemoryStore(),
            make_embedder(embedder),
            journal=f"{folder}/journal.db",
            batch_window=600,
            render=text_of,
        ) as pipeline:
            cut = [list(windows(payloads, window)) for payloads in sessions.values()]
            for turn in zip_longest(*cut, fillvalue=()):
                await asyncio.gather(*(pipeline.accept(one) for part in turn for one in part))
                await pipeline.drain(600)
            yield pipeline


def by_session(mode: str) -> Search:
    async def search(pipeline: IngestPipeline, text: str) -> list[str | None]:
        return [hit.session_id for hit in await pipeline.search_sessions(text, 5, mode=mode)]

    return search


def by_chunk(mode: str) -> Search:
    async def search(pipeline: IngestPipeline, text: str) -> list[str | None]:
        return [hit.session_id for hit in await pipeline.search(text, 5, mode=mode)]

    return search


ROWS: dict[str, Search] = {
    "sessions, hybrid": by_session("hybrid"),
    "chunks, hybrid": by_chunk("hybrid"),
    "sessions, words alone": by_session("text"),
    "sessions, meaning alone": by_session("dense"),
    "chunks, meaning alone": by_chunk("dense"),
}
BEST = "sessions, hybrid"
SDK = "the SDK's scheme: a document per payload, meaning alone"


class Miss(NamedTuple):
    question: str
    wanted: str
    first: str | None
    rank: int | None


class Found(NamedTuple):
    """How many sessions were first, how many among the first five, and the number of questions."""

    first: int
    among: int
    count: int
    misses: list[Miss]

    def __str__(self) -> str:
        return f"{share(self.first, self.count)} | {share(self.among, self.count)}"


async def ask(pipeline: IngestPipeline, questions: Sequence[Asked], search: Search) -> Found:
    first = among = 0
    misses = []
    for session, question in questions:
        found = await search(pipeline, question)
        first += found[:1] == [session]
        among += session in found
        if found[:1] != [session]:
            rank = found.index(session) + 1 if session in found else None
            misses.append(Miss(question, session, found[0] if found else None, rank))
    return Found(first, among, len(questions), misses)


def wilson(found: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share."""
    if not count:
        return 0.0, 1.0
    z = 1.96
    middle = (found + z * z / 2) / (count + z * z)
    half = z / (count + z * z) * math.sqrt(found * (count - found) / count + z * z / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


def share(found: int, count: int) -> str:
    low, high = wilson(found, count)
    return f"{found / (count or 1):.3f} [{low:.3f}, {high:.3f}]"


# -- the tables -----------------------------------------------------------------------------------


async def measure(
    sessions: Sessions,
    questions: Sequence[Asked],
    exact: Sequence[Asked],
    *,
    typos: bool = False,
    embedder: str = "local",
) -> dict[str, dict[str, Found]]:
    """Measure each row of the table, in windows and replayed."""
    found: dict[str, dict[str, Found]] = defaultdict(dict)
    for arrival, window in (("in windows", WINDOW), ("replayed", math.inf)):
        async with stored(sessions, window, embedder=embedder) as pipeline:
            for row, search in ROWS.items():
                found[row][arrival] = await ask(pipeline, questions, search)
            if typos:
                slips = with_typos(questions)
                found[f"{BEST}, with typos"][arrival] = await ask(pipeline, slips, ROWS[BEST])
            found[f"{BEST}, exact strings"][arrival] = await ask(pipeline, exact, ROWS[BEST])
    async with stored(sessions, 0.0, wire, embedder) as pipeline:
        found[SDK]["in windows"] = await ask(pipeline, questions, by_chunk("dense"))
    return found


def show(found: dict[str, dict[str, Found]]) -> None:
    print("| search | R@1 in windows | R@5 | R@1 replayed | R@5 |\n|---|---|---|---|---|")
    for row, by_arrival in found.items():
        replayed = by_arrival.get("replayed", "- | -")
        print(f"| {row} | {by_arrival['in windows']} | {replayed} |")


def show_misses(found: Found, sessions: Sessions) -> None:
    """Print each miss, with the session that ranked first."""
    for miss in found.misses:
        place = f"rank {miss.rank}" if miss.rank else "not among five"
        print(f"\n- {miss.question}\n  wanted {miss.wanted} ({place}), first was {miss.first}:")
        for session in (miss.wanted, miss.first):
            text = render(sessions[session]) if session in sessions else "nothing"
            print(f"    {session}: {' / '.join(text.split(chr(10)))[:700]}")


async def run(recording: Path, queries: Path, *, typos: bool, misses: str, embedder: str) -> None:
    sessions, questions = read(recording, queries)
    samples = (recording, queries) == SAMPLES
    exact = read_questions(EXACT) if samples else exact_questions(sessions)
    print(
        f"\n{recording.name}: {len(sessions)} sessions, {len(questions)} questions, "
        f"{len(exact)} about exact strings\n",
        flush=True,
    )
    found = await measure(sessions, questions, exact, typos=typos, embedder=embedder)
    show(found)
    if misses:
        for row, by_arrival in found.items():
            if misses in row:
                print(f"\nMisses of {row}, in windows:")
                show_misses(by_arrival["in windows"], sessions)


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retrieval")
    parser.add_argument("files", nargs="*", type=Path, metavar="RECORDING QUERIES")
    parser.add_argument("--typos", action="store_true", help="also with typos in the questions")
    parser.add_argument("--misses", default="", metavar="ROW", help="list the misses of these rows")
    parser.add_argument("--embedder", default="local", metavar=EMBEDDER_NAMES)
    options = parser.parse_args()
    files = options.files or list(SAMPLES)
    if len(files) % 2:
        parser.error("give a recording and its queries, in pairs")
    for recording, queries in zip(files[::2], files[1::2], strict=True):
        await run(
            recording,
            queries,
            typos=options.typos,
            misses=options.misses,
            embedder=options.embedder,
        )


if __name__ == "__main__":
    asyncio.run(main())

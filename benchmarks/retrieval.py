"""Measure how the text form of a chunk and the batch window affect search.

    python -m benchmarks.retrieval RECORDING.jsonl QUERIES.jsonl [--renders default,wire]

The recording holds one payload per line. Each line of the queries is an object with `session_id`
and `query` (or `question`): what that person wanted to do. A search with the query should find the
session. R@1 and R@5 are the shares of queries for which the session is the first, or among the
first five sessions found. Sessions are cut into windows by `forwarded_at`, and into chunks as the
pipeline does it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from autoplay_rag import ActionsPayload, SlimAction
from autoplay_rag.content.chunks import Accepted, draft_chunks
from autoplay_rag.content.render import render
from autoplay_rag.decoding import decode
from autoplay_rag.embedders import LocalEmbedder
from autoplay_rag.payloads import Payload

WINDOWS = {"payload": 0.0, "15 s": 15.0, "30 s": 30.0, "session": math.inf}


def wire(payloads: Sequence[Payload]) -> str:
    """The text form of the wire format."""
    return "\n".join(payload.to_text() for payload in payloads)


def described(payloads: Sequence[Payload]) -> str:
    """The descriptions only, as the connector words them."""
    return "\n".join(action.description or "-" for action in actions_of(payloads)) or "-"


def no_page(payloads: Sequence[Payload]) -> str:
    """The default without the page's URL; shows the effect of `on reports` and the site's name."""
    bare = [SlimAction(a.title, a.description, type=a.type) for a in actions_of(payloads)]
    return render([ActionsPayload(actions=bare)]) if bare else render(payloads)


def actions_of(payloads: Sequence[Payload]) -> list[SlimAction]:
    return [a for p in payloads if isinstance(p, ActionsPayload) for a in p.actions]


RENDERS = {"wire": wire, "described": described, "no page": no_page, "default": render}


class Result(NamedTuple):
    first: float
    among_five: float
    chunks: int
    seconds: float


def windows(payloads: Sequence[Payload], seconds: float) -> Iterator[list[Payload]]:
    """Cut one session's payloads, in order, into windows that each open with their first payload."""
    window: list[Payload] = []
    for payload in payloads:
        if window and payload.forwarded_at >= window[0].forwarded_at + seconds:
            yield window
            window = []
        window.append(payload)
    if window:
        yield window


async def measure(
    sessions: dict[str, list[Payload]],
    queries: Sequence[tuple[str, str]],
    text_of: Callable[[Sequence[Payload]], str],
    *,
    window: float,
    max_actions: int,
    embedder: LocalEmbedder,
) -> Result:
    texts: list[str] = []
    owners: list[str] = []
    for session, payloads in sessions.items():
        for part in windows(payloads, window):
            accepted = [Accepted(i, f"{i:032x}", payload) for i, payload in enumerate(part)]
            for draft in draft_chunks(accepted, max_actions):
                texts.append(text_of(draft.payloads))
                owners.append(session)
    start = time.perf_counter()
    chunks = np.array(await embedder.embed(texts))
    seconds = time.perf_counter() - start
    asked = np.array(await embedder.embed([query for _, query in queries]))
    ranks = []
    for (session, _), order in zip(queries, np.argsort(-asked @ chunks.T, axis=1), strict=True):
        found = list(dict.fromkeys(owners[i] for i in order))
        ranks.append(found.index(session))
    among = np.array(ranks)
    return Result(float((among < 1).mean()), float((among < 5).mean()), len(texts), seconds)


def read(recording: Path, queries: Path) -> tuple[dict[str, list[Payload]], list[tuple[str, str]]]:
    sessions: dict[str, list[Payload]] = {}
    for line in recording.read_bytes().splitlines():
        payload = decode(line)
        if isinstance(payload, ActionsPayload) and payload.session_id:
            sessions.setdefault(payload.session_id, []).append(payload)
    asked = []
    for query in queries.read_text("utf-8").splitlines():
        found = json.loads(query)
        if found["session_id"] in sessions:
            asked.append((found["session_id"], found.get("query") or found["question"]))
    return sessions, asked


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retrieval")
    parser.add_argument("recording", type=Path)
    parser.add_argument("queries", type=Path)
    parser.add_argument("--renders", default=",".join(RENDERS), help="default: all of %(default)s")
    parser.add_argument("--max-actions", type=int, default=20, help="in a chunk (%(default)s)")
    arguments = parser.parse_args()
    sessions, queries = read(arguments.recording, arguments.queries)
    print(f"{len(sessions)} sessions, {len(queries)} queries\n")
    print("| text | batch | chunks | R@1 | R@5 | seconds to embed |\n|---|---|---|---|---|---|")
    embedder = LocalEmbedder()
    await embedder.embed(["load the model"])
    for name in arguments.renders.split(","):
        for batch, window in WINDOWS.items():
            found = await measure(
                sessions,
                queries,
                RENDERS[name],
                window=window,
                max_actions=arguments.max_actions,
                embedder=embedder,
            )
            print(
                f"| {name} | {batch} | {found.chunks} | {found.first:.3f} "
                f"| {found.among_five:.3f} | {found.seconds:.1f} |",
                flush=True,
            )
    await embedder.aclose()


if __name__ == "__main__":
    asyncio.run(main())

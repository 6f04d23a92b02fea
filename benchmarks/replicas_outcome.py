"""Events that are sent to replicas in order, and what the database has of them at the end."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import time
from collections import Counter
from dataclasses import dataclass

from benchmarks.replicas import Replicas, Server

_NUMBER = re.compile(r"\b(s\d+)-(\d+)")
"""Session and number of an event in its text; see `title_of`."""


@dataclass
class Outcome:
    """What the database has at the end.

    Attributes:
        stored: The events in the texts of stored chunks.
        out_of_order: Sessions that were stored in another order than they were sent.
        times: For each partition, when its events were stored, in order.
        came: For each session, when its events were taken in, in order.
        left: Plans and rows that should be gone.
    """

    stored: Counter[str]
    out_of_order: int
    times: dict[int, list[float]]
    came: dict[str, list[float]]
    left: int


async def send(
    replicas: Replicas, session: str, count: int, interval: float, source: random.Random
) -> int:
    """Send a session's events in their order, at fixed times. Returns the number of attempts."""
    started = time.monotonic() + source.uniform(0, interval)
    attempts = 0
    for number in range(count):
        await asyncio.sleep(max(0.0, started + number * interval - time.monotonic()))
        attempts += await replicas.accept(session, number, source)
    return attempts


def read_outcome(server: Server, schema: str) -> Outcome:
    """Read the outcome, after all replicas have drained."""
    stored: Counter[str] = Counter()
    rows = server.run(
        f"SELECT c.text FROM {schema}.chunk c "
        f"JOIN {schema}.store_chunk_1 s ON s.id = c.id AND s.text = c.text"
    )
    for (text,) in rows:
        stored.update(text.split("\n"))
    times: dict[int, list[float]] = {}
    came: dict[str, list[float]] = {}
    sessions: dict[int, list[tuple[int, float, int]]] = {}
    for lane, part, text, at, ended, chunk in server.run(
        f"SELECT p.lane, p.part, t.text, p.at, p.ended, c.chunk FROM {schema}.payload p "
        f"JOIN {schema}.passage t USING (seq) JOIN {schema}.chunk_payload c USING (seq) "
        "ORDER BY p.lane, p.seq"
    ):
        found = _NUMBER.search(text)
        assert found is not None, text
        number = int(found[2])
        came.setdefault(found[1], []).append(at)
        sessions.setdefault(lane, []).append((number, ended, chunk))
        times.setdefault(part, []).append(ended)
    ((plans,),) = server.run(f"SELECT count(*) FROM {schema}.plan")
    ((vectors,),) = server.run(f"SELECT count(*) FROM {schema}.store_vector_1")
    return Outcome(
        stored,
        sum(not _in_order(found) for found in sessions.values()),
        {part: sorted(some) for part, some in times.items()},
        came,
        plans + abs(vectors - len(rows)),
    )


def _in_order(found: list[tuple[int, float, int]]) -> bool:
    """Whether a session's events were accepted, stored and put into chunks in their order."""
    numbers = [number for number, _, _ in found]
    times = [ended for _, ended, _ in found]
    chunks = [chunk for chunk, _ in itertools.groupby(found, key=lambda row: row[2])]
    return (
        numbers == list(range(len(numbers)))
        and times == sorted(times)
        and len(chunks) == len(set(chunks))
    )

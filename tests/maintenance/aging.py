"""Shared by the tests of retention: a clock of their own, runs on demand, and what a journal holds."""

from __future__ import annotations

import dataclasses
import sqlite3
from contextlib import closing

from autoplay_rag.journal.bodies import unpack
from autoplay_rag.payloads import ActionsPayload, SlimAction

DAY = 24 * 3600.0
NOW = 1_000 * DAY


class Clock:
    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def at_time(pipeline, clock):
    """Let a pipeline use a clock."""
    pipeline._settings = dataclasses.replace(pipeline._settings, clock=clock)
    return pipeline


async def sweep(pipeline, *, complete=False):
    """Store everything, delete what is old, and wait until the store has done so."""
    await pipeline.drain(30)
    work = pipeline._run.retention
    await work.wait()
    if complete:
        work._looked_at_all = None
    work.wake()
    await work.wait()
    await pipeline.drain(30)


def actions(session, *titles, at, user=None):
    made = [
        SlimAction(title, f"User clicked {title}", "https://app.test/p", i, "click", at, at)
        for i, title in enumerate(titles)
    ]
    return ActionsPayload("acme", session, user, None, made, len(made), at)


def contents(path) -> str:
    """All texts in all tables of a journal, and its bodies unpacked."""
    found = []
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        tables = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'words%'"
        ).fetchall()
        for (table,) in tables:
            for row in connection.execute(f"SELECT * FROM {table}"):
                found += [value for value in row if isinstance(value, str)]
        for (body,) in connection.execute("SELECT body FROM payload WHERE body IS NOT NULL"):
            found.append((unpack(body) or b"").decode())
        connection.execute("CREATE VIRTUAL TABLE temp.terms USING fts5vocab(main, words, row)")
        found += [term for (term,) in connection.execute("SELECT term FROM temp.terms")]
    return "\n".join(found)

"""Checks after every test: no task is left running, and every journal's counts are correct."""

from __future__ import annotations

import asyncio
import inspect
import sqlite3
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from autoplay_rag.journal.file import JournalFile
from autoplay_rag.journal.ledger import COUNTERS, Ledger
from autoplay_rag.journal.schema import ChunkState, PayloadState

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode does not add folders to the path

from broker import broker, topic  # noqa: F401 - fixtures for all
from embedding_server import embedding_server  # noqa: F401 - a fixture for all
from pipelines import (  # noqa: F401 - fixtures for all
    embedder,
    eventually,
    make_actions_fixture,
    make_pipeline,
    scripted_embedder,
    titles_fixture,
)
from postgres import make_pg_store, postgres  # noqa: F401 - fixtures for all

# No deadline and no check for slow generation: both measure the load of the machine.
ANY_SPEED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("quick", max_examples=50, **ANY_SPEED)
settings.register_profile("thorough", max_examples=500, **ANY_SPEED)
settings.load_profile("quick")  # `--hypothesis-profile=thorough` replaces it


@pytest.fixture(autouse=True)
def _tasks_are_checked(request):
    """Run only in async tests. Set up first, so that all other fixtures end before the check."""
    if inspect.iscoroutinefunction(getattr(request.node, "obj", None)):
        request.getfixturevalue("no_leaked_tasks")


@pytest.fixture
async def no_leaked_tasks():
    """Fail a test that leaves a task running."""
    yield
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    if tasks:
        # Give tasks that are about to end some time, for example a server's connections.
        _, tasks = await asyncio.wait(tasks, timeout=10)
    assert not tasks, f"tasks left running: {tasks}"


@pytest.fixture(autouse=True)
def _ledgers_are_checked(monkeypatch):
    """Fail a test if the counts of a journal that it closed do not match the tables."""
    close = JournalFile.close
    wrong: list[str] = []

    def checked_close(file):
        try:
            wrong.extend(faults_of(file))
        except sqlite3.DatabaseError as error:
            if "malformed" not in str(error):  # some tests damage a journal
                wrong.append(str(error))
        close(file)

    monkeypatch.setattr(JournalFile, "close", checked_close)
    yield
    assert not wrong


def faults_of(file: JournalFile) -> list[str]:
    """Return the contradictions in a journal."""
    counts = file.counts
    held = {
        state.name: file.scalar("SELECT count(*) FROM payload WHERE state = ?", state)
        for state in PayloadState
    }
    size = file.scalar(
        "SELECT coalesce(sum(size), 0) FROM payload WHERE state IN (?, ?)",
        PayloadState.WAITING,
        PayloadState.DEAD,
    )
    planned = file.scalar(
        "SELECT count(*) FROM payload WHERE state <> ? AND seq IN (SELECT seq FROM chunk_payload "
        "JOIN chunk ON number = chunk WHERE chunk.state = ?)",
        PayloadState.WAITING,
        ChunkState.PLANNED,
    )
    # Payloads that were adopted, stored by an older format, or forgotten in memory have no number of
    # this ledger.
    stored = file.scalar("SELECT count(*) FROM payload WHERE state = ? AND seq > 0", 1)
    orphans = file.scalar(
        "SELECT count(*) FROM chunk_payload WHERE chunk NOT IN (SELECT number FROM chunk)"
    )
    not_found = file.scalar(
        "SELECT count(*) FROM payload WHERE state = ? AND seq NOT IN (SELECT seq FROM passage)",
        PayloadState.WAITING,
    )
    passages, indexed = (
        file.connection.execute(f"SELECT {column} FROM {table} ORDER BY 1").fetchall()
        for column, table in (("seq", "passage"), ("id", "words_docsize"))
    )
    visits = file.scalar(
        "SELECT count(*) FROM visit LEFT JOIN (SELECT lane, count(*) AS n, sum(actions) AS a, "
        "min(started) AS f, max(ended) AS l FROM passage GROUP BY lane) AS p USING (lane) "
        "WHERE (coalesce(p.n, 0), coalesce(p.a, 0)) <> (payloads, visit.actions) "
        # What was planned or read from a store may be older or newer.
        "OR first > p.f OR last < p.l OR (seen IS NULL AND (p.f, p.l) IS NOT (first, last))"
    )
    expired = file.scalar(
        "SELECT count(*) FROM payload WHERE state = ? AND (body IS NOT NULL "
        "OR seq IN (SELECT seq FROM passage) OR seq IN (SELECT seq FROM chunk_payload))",
        PayloadState.EXPIRED,
    )
    claims = {
        "the ledger balances": Ledger(**{name: counts[name] for name in COUNTERS}).balanced,
        "what is pending waits": held["WAITING"] == counts["pending"],
        "what is dead stands among the dead": held["DEAD"] == counts["dead"],
        "no stored payload is invented": stored <= counts["stored"],
        "no plan is for what does not wait": planned == 0,
        "no chunk is missing": orphans == 0,
        "the bytes are counted right": size == counts["bytes"],
        "what waits is found by its words": not_found == 0 or file.meta("index_below") is not None,
        "every passage is indexed once": passages == indexed,
        "every visit sums up its passages": visits == 0,
        "nothing but its key is left of what expired": expired == 0,
    }
    return [f"not so: {claim} ({counts}, {held})" for claim, holds in claims.items() if not holds]

"""What holds for every test: no task may outlive it, and every journal's counts must be true."""

from __future__ import annotations

import asyncio
import inspect
import sqlite3
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, settings

from autoplay_rag.ingest.journal_db import JournalDb
from autoplay_rag.ingest.ledger import Ledger
from autoplay_rag.ingest.plan import Batch

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode puts nothing on the path

from embedding_server import embedding_server  # noqa: F401 - a fixture for all

# No deadline and no check for slow generation: both measure the load of the machine.
ANY_SPEED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("quick", max_examples=50, **ANY_SPEED)
settings.register_profile("thorough", max_examples=500, **ANY_SPEED)
settings.load_profile("quick")  # `--hypothesis-profile=thorough` replaces it


@pytest.fixture(autouse=True)
def _tasks_are_checked(request):
    """For async tests alone; set up first, so that all other fixtures end before it looks."""
    if inspect.iscoroutinefunction(getattr(request.node, "obj", None)):
        request.getfixturevalue("no_leaked_tasks")


@pytest.fixture
async def no_leaked_tasks():
    """Fails a test that leaves a task behind."""
    yield
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    if tasks:
        # Those that are ending anyway (a server's connections, say) get a moment.
        _, tasks = await asyncio.wait(tasks, timeout=10)
    assert not tasks, f"tasks left running: {tasks}"


@pytest.fixture(autouse=True)
def _ledgers_are_checked(monkeypatch):
    """Fails a test in which a journal was closed whose counts are not what its tables hold."""
    close = JournalDb.close
    wrong: list[str] = []

    def checked_close(db):
        try:
            wrong.extend(faults_of(db))
        except sqlite3.DatabaseError as error:
            if "malformed" not in str(error):  # a test may damage a journal
                wrong.append(str(error))
        close(db)

    monkeypatch.setattr(JournalDb, "close", checked_close)
    yield
    assert not wrong


def faults_of(db: JournalDb) -> list[str]:
    """What in a journal contradicts itself."""
    counts = db.counters
    held = {
        "pending": db._scalar("SELECT count(*) FROM queue"),
        "dead": db._scalar("SELECT count(*) FROM dead"),
    }
    known = counts["pending"] + counts["dead"] + counts["stored"] + counts["discarded"]
    planned = {
        seq
        for (record,) in db._connection.execute(
            "SELECT record FROM batches WHERE acknowledged IS NULL"
        )
        for chunk in msgspec.msgpack.decode(record, type=Batch).chunks
        for seq, _ in chunk.sources
    }
    waiting = {seq for seq, _ in db.waiting(0, 2**62)}
    catalogued = db._scalar(
        "SELECT count(*) FROM catalog WHERE key IN (SELECT key FROM queue UNION ALL SELECT key FROM dead)"
    )
    claims = {
        "the ledger balances": Ledger(**counts).balanced,
        "what is pending stands in the queue": held["pending"] == counts["pending"],
        "what is dead stands among the dead": held["dead"] == counts["dead"],
        "every key waiting or dead is known": catalogued == held["pending"] + held["dead"],
        "no key was forgotten": db._scalar("SELECT count(*) FROM catalog") == known,
        "no plan is for what does not wait": planned <= waiting,
        "the bytes are counted right": db._bytes == db._count_bytes(),
    }
    return [f"not so: {claim} ({counts}, {held})" for claim, holds in claims.items() if not holds]

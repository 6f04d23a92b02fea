"""Shared by the journal's tests: its tables without a writer, and simulated crashes."""

from __future__ import annotations

import shutil
import sqlite3
from itertools import count

import pytest

from autoplay_rag.ingest.intake import Intake
from autoplay_rag.ingest.planner import Planner
from autoplay_rag.journal.base import Acknowledgement
from autoplay_rag.journal.catalog import CatalogTables
from autoplay_rag.journal.file import JournalFile
from autoplay_rag.journal.ledger import COUNTERS
from autoplay_rag.journal.queue import QueueTables

MANY = 2**30


class Tables:
    """A journal's tables without a writer: every call has its own transaction."""

    def __init__(self, path, durability="normal", *, max_bytes=MANY, keep_payloads=True):
        self.file = JournalFile(path, durability)
        self.catalog = CatalogTables(self.file)
        self.queue = QueueTables(
            self.file,
            self.catalog,
            durability,
            max_bytes=max_bytes,
            keep_payloads=keep_payloads and path is not None,
            model="m",
        )
        self.connection = self.file.connection

    def __getattr__(self, name):
        operation = getattr(self.queue, name, None) or getattr(self.catalog, name)

        def run(*arguments):
            with self.file.transaction():
                result = operation(*arguments)
            self.index()
            return result

        return run

    def index(self):
        """Write what is accepted into the full-text index, as the writer does."""
        if buffer := self.queue.fulltext.buffer:
            with self.file.transaction():
                buffer.write(seqs := buffer.seqs)
            buffer.drop(seqs)

    @property
    def counts(self):
        return {name: self.file.counts[name] for name in COUNTERS if self.file.counts[name]}

    @property
    def bytes(self):
        return self.file.counts["bytes"]

    def scalar(self, sql, *parameters):
        return self.file.scalar(sql, *parameters)

    def close(self):
        self.file.close()

    def kill(self):
        """Close as `kill -9` does: without recording anything."""
        self.connection.close()

    @property
    def is_closed(self):
        try:
            self.connection.total_changes  # noqa: B018 - it raises or it does not
        except sqlite3.ProgrammingError:
            return True
        return False


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.db"


@pytest.fixture
def opened(path):
    """Open the journal at `path`; close what a test leaves open."""
    found = []

    def open_(durability="normal", path=path, **options):
        found.append(Tables(path, durability, **options))
        return found[-1]

    yield open_
    for tables in found:
        if not tables.is_closed:
            tables.close()


@pytest.fixture
def copied(tmp_path):
    """Copy a journal as it is on disk: what a crash at this moment would leave."""
    numbers = count()

    def copy(path):
        folder = tmp_path / f"copy-{next(numbers)}"
        folder.mkdir()
        for part in path.parent.glob(f"{path.name}*"):
            shutil.copy(part, folder / part.name)
        return folder / path.name

    return copy


@pytest.fixture(scope="session")
def entry():
    """Make a journal entry from a payload, as the pipeline does."""

    def make(payload, seq, *, select=None, redact=None, include_email=False):
        return Intake(select, redact, include_email=include_email).entry(payload, seq)

    return make


@pytest.fixture(scope="session")
def entries(entry):
    """Make entries with consecutive numbers."""
    return lambda *payloads, first=1: [entry(p, seq) for seq, p in enumerate(payloads, first)]


@pytest.fixture
def planner(titles):
    return Planner(titles, len, max_actions=20, include_email=False)


@pytest.fixture
def plan(planner):
    """Plan payloads as one batch and record the plan."""

    def make(tables, *seqs, number=1):
        waiting = tables.read(seqs, MANY)
        made, session = planner.plan(number, waiting, None)
        tables.record_plans([made], [session] if session else [])
        return made

    return make


@pytest.fixture
def store(plan):
    """Plan payloads as one batch and acknowledge it."""

    def make(tables, *seqs, number=1, dead=None):
        made = plan(tables, *seqs, number=number)
        tables.acknowledge([Acknowledgement(made, {**made.unplanned, **(dead or {})})])
        return made

    return make

"""A journal that is copied from a file into PostgreSQL, and back."""

from __future__ import annotations

import asyncio
import sqlite3
from uuid import uuid4

import pytest

from autoplay_rag import IngestPipeline, SummaryPayload
from autoplay_rag.cli.app import run
from autoplay_rag.cluster import JournalAddress, copy_journal
from autoplay_rag.errors import ConfigurationError, JournalError, JournalLockedError
from autoplay_rag.journal.ledger import COUNTERS
from autoplay_rag.stores import MemoryStore, PgVectorStore

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def address(postgres):
    found = JournalAddress(postgres.dsn, f"j_{uuid4().hex[:12]}")
    yield found
    postgres.run(f"DROP SCHEMA IF EXISTS {found.schema} CASCADE")


async def fill(pipeline, make_actions) -> None:
    """Store, summarise, forget, and leave payloads waiting."""
    for number in range(12):
        user = f"u{number % 3}"
        await pipeline.on_actions(
            make_actions(f"s{number % 3}", f"Zürich t{number}", user=user, at=1000.0 + number)
        )
    await pipeline.on_summary(SummaryPayload("acme", "s1", "bought nothing", 2, 2000.0))
    await pipeline.drain()
    await pipeline.forget(user_id="u2")


def durable(ledger) -> list[int]:
    """The counts that a journal keeps."""
    return [getattr(ledger, name) for name in COUNTERS]


def content_of(path) -> dict[str, list[tuple]]:
    """All rows of a file, without what belongs to the file itself."""
    with sqlite3.connect(path) as connection:
        tables = (
            "payload", "chunk", "chunk_payload", "model", "refused", "passage", "visit", "belongs",
            "claim", "erasure", "counts",
        )  # fmt: skip
        found = {
            name: sorted(connection.execute(f"SELECT * FROM {name}"), key=repr) for name in tables
        }
        found["words"] = connection.execute(
            "SELECT rowid FROM words WHERE words MATCH 'zurich' ORDER BY 1"
        ).fetchall()
        kept = "('journal_id', 'acknowledged', 'refused_scopes', 'refused_secret', 'adopted')"
        found["meta"] = sorted(
            connection.execute(f"SELECT name, value FROM meta WHERE name IN {kept}"), key=repr
        )
    connection.close()
    return found


async def test_there_and_back_nothing_changes(
    make_pipeline, make_actions, address, tmp_path, postgres
):
    store = MemoryStore()
    async with make_pipeline(store, journal=tmp_path / "old.db", summaries="replace") as pipeline:
        await fill(pipeline, make_actions)
        before = pipeline.ledger
    report = await copy_journal(tmp_path / "old.db", address)
    assert (report.payloads, report.waiting) == (before.stored - 4, 0)
    await copy_journal(address, tmp_path / "new.db")
    assert content_of(tmp_path / "new.db") == content_of(tmp_path / "old.db")
    # A store takes it for the same journal, and it goes on.
    async with make_pipeline(store, journal=tmp_path / "new.db") as pipeline:
        assert durable(pipeline.ledger) == durable(before)
        assert (await pipeline.verify()).clean
        await pipeline.on_actions(make_actions("s0", "Zürich t0", user="u0", at=1000.0))
        await pipeline.drain()
        assert pipeline.ledger.duplicate == before.duplicate + 1


async def test_the_copy_in_postgres_goes_on(make_pipeline, make_actions, address, tmp_path):
    store = MemoryStore()
    async with make_pipeline(store, journal=tmp_path / "old.db") as pipeline:
        await fill(pipeline, make_actions)
        before = pipeline.ledger
    await copy_journal(tmp_path / "old.db", address)
    pipeline = make_pipeline(store, journal=address.dsn)
    object.__setattr__(pipeline._settings, "journal", address)
    async with pipeline:
        assert pipeline.ledger.stored == before.stored
        assert (await pipeline.verify()).clean
        # Known, refused, and new.
        await pipeline.on_actions(make_actions("s0", "Zürich t0", user="u0", at=1000.0))
        await pipeline.on_actions(make_actions("s9", "again", user="u2", at=1000.0))
        await pipeline.on_actions(make_actions("s0", "later", user="u0", at=5000.0))
        await pipeline.drain()
        assert pipeline.ledger.duplicate == before.duplicate + 1
        assert pipeline.ledger.refused == before.refused + 1
        assert pipeline.ledger.stored == before.stored + 1
        assert pipeline.ledger.balanced
        (hit,) = await pipeline.search("later", k=1)
        assert hit.session_id == "s0"


async def test_what_is_refused(make_pipeline, make_actions, address, tmp_path):
    async with make_pipeline(MemoryStore(), journal=tmp_path / "old.db") as pipeline:
        await pipeline.on_actions(make_actions("s", "t"))
        await pipeline.drain()
        with pytest.raises(JournalLockedError, match="in use by process"):
            await copy_journal(tmp_path / "old.db", address)
    await copy_journal(tmp_path / "old.db", address)
    with pytest.raises(ConfigurationError, match="has content already"):
        await copy_journal(tmp_path / "old.db", address)
    with pytest.raises(ConfigurationError, match="from a file into PostgreSQL, or back"):
        await copy_journal(tmp_path / "old.db", tmp_path / "new.db")
    with pytest.raises(ConfigurationError, match="no journal found"):
        await copy_journal(tmp_path / "none.db", address)
    with pytest.raises(JournalError, match="cannot be opened"):
        await copy_journal(tmp_path / "old.db", JournalAddress(f"postgresql:///x?host={tmp_path}"))


async def test_a_schema_in_use_is_refused(make_pipeline, make_actions, address, tmp_path):
    pipeline = make_pipeline(MemoryStore(), journal=address.dsn)
    object.__setattr__(pipeline._settings, "journal", address)
    async with pipeline:
        await pipeline.on_actions(make_actions("s", "t"))
        await pipeline.drain()
        with pytest.raises(JournalLockedError, match="in use by other processes"):
            await copy_journal(address, tmp_path / "new.db")


@pytest.mark.slow
def test_the_command_moves_both_there_and_back(
    postgres, tmp_path, monkeypatch, make_actions, capsys
):
    from autoplay_rag.embedders import LocalEmbedder
    from autoplay_rag.stores import ChromaStore

    postgres.run("DROP SCHEMA IF EXISTS autoplay CASCADE")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOPLAY_RAG_POSTGRES_DSN", postgres.dsn)

    async def use(store, journal, count: int) -> None:
        async with IngestPipeline(store, LocalEmbedder(), journal=journal) as pipeline:
            assert pipeline.ledger.stored == count
            await pipeline.on_actions(make_actions("s", f"Exported report {count}", at=count * 9.0))
            await pipeline.drain()
            assert (await pipeline.verify()).clean

    asyncio.run(use(ChromaStore("old"), "old.db", 0))
    there = ["copy", "--from", "chroma:old", "--to", "postgresql:", "--journal", "old.db"]
    assert run([*there, "--to-journal", "postgresql:"]) == 0
    asyncio.run(use(PgVectorStore("postgresql:"), "postgresql:", 1))
    back = ["copy", "--from", "postgresql:", "--to", "chroma:new", "--journal", "postgresql:"]
    assert run([*back, "--to-journal", "new.db"]) == 0
    asyncio.run(use(ChromaStore("new"), "new.db", 2))
    assert run(back) == 2
    assert "copy it too" in " ".join(capsys.readouterr().err.split())
    postgres.run("DROP SCHEMA IF EXISTS autoplay CASCADE")

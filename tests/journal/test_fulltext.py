"""Full-text search finds accepted payloads, and does not find removed ones."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag import IngestPipeline
from autoplay_rag.content.words import lookups
from autoplay_rag.ingest.intake import Intake
from autoplay_rag.journal.catalog import CatalogTables
from autoplay_rag.journal.file import JournalFile
from autoplay_rag.journal.finding import Finder
from autoplay_rag.journal.queue import QueueTables
from autoplay_rag.journal.schema import SCHEMA_VERSION
from autoplay_rag.payloads import ActionsPayload, SlimAction, SummaryPayload
from autoplay_rag.stores import MemoryStore
from autoplay_rag.stores.base import Filter

pytestmark = pytest.mark.timeout(60)


def seqs_of(db, question, **conditions):
    finder = Finder(db.connection)
    found = finder.find(lookups(question), (), Filter(**conditions).conditions(), 100)
    return sorted(seq for seq, _ in found.passages)


def test_a_payload_is_found_as_soon_as_it_is_accepted(opened, make_actions, entries):
    db = opened()
    db.accept(
        entries(
            make_actions("s1", "export the report", user="ann", at=1000.0),
            make_actions("s2", "pay the invoice", user="bob", at=2000.0),
            SummaryPayload("acme", "s1", "Exported a report twice.", 1, forwarded_at=3000.0),
        )
    )
    assert seqs_of(db, "exported reports") == [1, 3]
    assert seqs_of(db, "invoices") == [2]
    assert seqs_of(db, "report", user_id="ann") == [1, 3]
    assert seqs_of(db, "report", user_id="bob") == []
    assert seqs_of(db, "report", session_id="s1", kind="summary") == [3]
    assert seqs_of(db, "report", since=2500.0) == [3]
    assert seqs_of(db, "report", until=1500.0) == [1]
    assert seqs_of(db, "report", product_id="other") == []


def test_of_common_words_alone_the_latest_matches_are_ranked(
    opened, make_actions, entries, monkeypatch
):
    for name, value in (("_COMMON_SHARE", 0.0), ("_COMMON_LEAST", 2), ("_MOST_COMMON", 3)):
        monkeypatch.setattr(f"autoplay_rag.journal.finding.{name}", value)
    db = opened()
    texts = ["export the invoice", *["export"] * 5, "invoice"]
    db.accept(entries(*(make_actions("s", text, at=1000.0 + i) for i, text in enumerate(texts))))
    assert seqs_of(db, "export") == [4, 5, 6]
    assert seqs_of(db, "export", user_id="nobody") == []
    assert seqs_of(db, "export", until=1000.5) == [1]  # few of the latest pass the filter
    assert seqs_of(db, "export an invoice") == [1, 7]  # by the rare word
    found = Finder(db.connection).find(lookups("export"), ("the invoice",), [], 100)
    assert len(found.passages) == 6


def test_a_discarded_payload_is_not_found(opened, make_actions, entries, entry):
    db = opened()

    def refuse(_payload):
        raise RuntimeError

    db.accept(entries(make_actions("s1", "export"), make_actions("s1", "exporting", at=2000.0)))
    db.accept([entry(make_actions("s2", "exported", at=3000.0), 3, select=refuse)])
    assert seqs_of(db, "exports") == [1, 2, 3]
    db.discard(None)
    assert seqs_of(db, "exports") == [1, 2]
    assert db.scalar("SELECT count(*) FROM visit") == 1


QUESTIONS = [
    '"', '""', "'", "AND", "OR NOT", "NEAR(a b)", "a*", "*", "^a", "a:b", "text:a", "-a", "+", "(",
    "a AND (b", "{a b}", "\\", "\0", "🙂", "a\nb", "%_", "export" * 1000, "の", "\u0627",
]  # fmt: skip


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_question_is_plain_text(opened, make_actions, entries, question):
    db = opened()
    db.accept(entries(make_actions("s1", "export")))
    finder = Finder(db.connection)
    finder.find({question: (question,)}, (question,), [], 10)
    finder.find(lookups(question), (question,), [], 10)


@given(st.text())
def test_any_text_is_accepted_and_looked_up(text):

    file = JournalFile(None, "normal")
    try:
        tables = QueueTables(
            file, CatalogTables(file), "normal", max_bytes=2**20, keep_payloads=False, model="m"
        )
        action = SlimAction(text, text, "https://app.test/p")
        payload = ActionsPayload(text, text or "s", text or None, actions=[action])
        entry = Intake(None, None).entry(payload, 1)
        with file.transaction():
            assert tables.accept([entry]) == ["accepted"]
        found = Finder(file.connection).find(lookups(text), (text,), [], 10)
        assert len(found.passages) <= 1
        with file.transaction():
            tables.fulltext.remove([1])
        for table in ("passage", "visit", "belongs", "words_docsize"):
            assert file.scalar(f"SELECT count(*) FROM {table}") == 0
        with file.transaction():
            file.connection.execute("DELETE FROM payload")
            file.counts.update(received=0, pending=0, bytes=0)
    finally:
        file.close()


def word(number):
    """A unique word for each number. Without digits, because digits are looked up separately."""
    return "zq" + "".join(chr(ord("a") + int(digit)) for digit in f"{number:03}")


async def until_found(pipeline, question):
    async with asyncio.timeout(30):
        while not await pipeline.search(question, mode="text"):  # noqa: ASYNC110 - it is in the journal
            await asyncio.sleep(0.01)


def downgrade(path):
    """Convert a journal to format 3, which has no full text."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "CREATE TABLE session (lane INTEGER PRIMARY KEY, product TEXT NOT NULL, session TEXT "
            "NOT NULL, user TEXT, conversation TEXT, ambiguous INTEGER NOT NULL DEFAULT 0, "
            "first REAL, last REAL, seen REAL)"
        )
        connection.execute(
            "INSERT INTO session SELECT lane, product, session, user, conversation, ambiguous, "
            "first, last, seen FROM visit WHERE seen IS NOT NULL"
        )
        connection.execute(
            "UPDATE chunk SET metadata = json_set(coalesce(metadata, '{}'), '$.forwarded_at', "
            "forwarded, '$.action_count', actions)"
        )
        for column in ("linked", "forwarded", "actions"):
            connection.execute(f"ALTER TABLE chunk DROP COLUMN {column}")
        connection.execute("DROP INDEX chunk_retired")
        connection.execute("ALTER TABLE payload ADD COLUMN forwarded_at REAL")
        for table in ("words", "passage", "visit", "belongs", "outdated", "claim"):
            connection.execute(f"DROP TABLE {table}")
        connection.execute("PRAGMA user_version = 3")


@pytest.mark.parametrize("keep_payloads", [True, False])
async def test_a_journal_of_format_3_is_indexed_in_the_background(
    tmp_path, embedder, make_actions, keep_payloads
):
    path = tmp_path / "j.db"
    options = {"journal": path, "keep_payloads": keep_payloads, "batch_window": 0.0}
    store = MemoryStore()
    async with IngestPipeline(store, embedder, **options) as pipeline:
        for number in range(450):
            one = make_actions(f"s{number}", f"event {word(number)}", user=f"u{number}")
            await pipeline.on_actions(one)
        await pipeline.drain()
    downgrade(path)
    async with IngestPipeline(store, embedder, **options) as pipeline:
        await pipeline.on_actions(make_actions("new", "event brandnew"))
        await until_found(pipeline, word(0))  # the oldest comes last
        for name, session in ((word(0), "s0"), (word(449), "s449"), ("brandnew", "new")):
            (hit,) = await pipeline.search(name, mode="text")
            assert hit.session_id == session
        (hit,) = await pipeline.search("event", 1, mode="text", user_id="u7")
        assert (hit.session_id, hit.metadata["user_id"]) == ("s7", "u7")
        assert (await pipeline.search("event", user_id="u7")).scope_known
        assert not (await pipeline.search("event", user_id="u999")).scope_known
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        meta = dict(connection.execute("SELECT name, value FROM meta"))
        assert "index_below" not in meta


async def test_interrupted_indexing_continues(tmp_path, embedder, make_actions):
    path = tmp_path / "j.db"
    options = {"journal": path, "batch_window": 0.0}
    store = MemoryStore()
    async with IngestPipeline(store, embedder, **options) as pipeline:
        for number in range(300):
            await pipeline.on_actions(make_actions(f"s{number}", word(number)))
        await pipeline.drain()
    downgrade(path)
    for attempt in range(20):
        pipeline = IngestPipeline(store, embedder, **options)
        await pipeline.start()
        await asyncio.sleep(0.002 * attempt)
        await pipeline.aclose()
    async with IngestPipeline(store, embedder, **options) as pipeline:
        await until_found(pipeline, word(0))  # the oldest comes last
        for number in range(300):
            (hit,) = await pipeline.search(word(number), 2, mode="text")
            assert hit.session_id == f"s{number}"

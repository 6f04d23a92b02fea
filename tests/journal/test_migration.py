"""Upgrades of a journal that an earlier version wrote.

The version of commit ce0e29a wrote `format-2.db`. Its process ended with `os._exit` while plans were
in progress, with `durability="full"`, `max_attempts=1` and the renderer of these tests. Then its
write-ahead log was copied into it. It holds

- stored: three actions and a summary of s1, 25 actions of s2 (two chunks), one without a session,
  one each of two batches of s4; all of them acknowledged in the minutes before the end;
- dead: one refused by `select` (a retry of it is requested), one by `redact`, one by the embedder;
- discarded: one refused by the embedder; received but not kept: a duplicate, and a filtered one;
- planned: two batches of s5 in one chunk, and one of s1; their embedding did not end;
- waiting: one of s1, a summary of s2, one without a session.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import sqlite3
import stat
import time
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from autoplay_rag.errors import JournalError, JournalVersionError, StoreMismatchError
from autoplay_rag.journal import migration
from autoplay_rag.journal.bodies import decoded
from autoplay_rag.journal.reader import JournalReader
from autoplay_rag.journal.sqlite import SqliteJournal
from autoplay_rag.payloads import ActionsPayload, SlimAction, SummaryPayload
from autoplay_rag.stores import MemoryStore
from autoplay_rag.stores.base import Chunk

OLD = Path(__file__).with_name("format-2.db")
MANY = 2**30


def actions(session, *titles, at, user=None):
    made = [
        SlimAction(title, title, "https://app.example.com/p", i, "click", at + i, at + i)
        for i, title in enumerate(titles)
    ]
    email = f"{user}@example.com" if user else None
    return ActionsPayload("acme", session, user, email, made, len(made), at + 10)


PARTS = [f"part {i}" for i in range(25)]
STORED = [
    actions("s1", "stored one", at=1000.0, user="ann"),
    actions("s1", "stored two", "stored three", at=1100.0, user="ann"),
    SummaryPayload("acme", "s1", "Stored a summary.", 2, 1200.0),
    actions("s2", *PARTS, at=1300.0, user="bob"),
    actions(None, "stored alone", at=1400.0),
    actions("s4", "stored four", at=1810.0),
    actions("s4", "stored five", at=1910.0),
]
DEAD = {
    8: actions("s3", "rule", at=1600.0, user="cid"),
    10: actions("s3", "poison", at=1800.0, user="cid"),
}
UNKEPT = actions("s3", "secret", at=1700.0)
DISCARDED = actions("s3", "poison discarded", at=1900.0, user="cid")
UNWANTED = actions("s1", "unwanted", at=1500.0)
WAITING = {
    14: actions("s5", "hang one", at=2000.0, user="dan"),
    15: actions("s5", "hang two", at=2100.0, user="dan"),
    16: actions("s1", "hang three", at=2200.0),
    17: actions("s1", "waits one", at=2300.0),
    18: SummaryPayload("acme", "s2", "Waits as a summary.", 3, 2400.0),
    19: actions(None, "waits alone \U0001f600", at=2500.0),
}
COUNTS = {
    "received": 19, "stored": 7, "pending": 6, "dead": 3, "discarded": 1, "duplicate": 1,
    "filtered": 1,
}  # fmt: skip
TEXTS = {
    "1196bf67813157aa2311691f2c14f9ae": "stored one\nstored two\nstored three",
    "27b4ae3cd9081ed3f25ad1bf89a4078b": "Stored a summary.",
    "a7080b2d9bb4a6fe86664f9d2b31ea70": "\n".join(PARTS[:20]),
    "31e4f844172f495da0e5d6d911904e44": "\n".join(PARTS[20:]),
    "0b75504ab06aab1fe15d5df926fe8b32": "stored alone",
    "2bef624b97085c26f822a95c923fb6b7": "stored four",
    "4d084bab680e683d10b21e39ee1552cc": "stored five",
}
"""The contents of the store, by the ids of the old version."""
SESSION_OF = dict(zip(TEXTS, ("s1", "s1", "s2", "s2", None, "s4", "s4"), strict=True))


@pytest.fixture
def old(path):
    """A copy of the journal of format 2, at the path that the tests open."""
    shutil.copy(OLD, path)
    path.chmod(0o644)
    return path


@pytest.fixture
def aged(old):
    """The same journal some minutes later: acknowledged payloads are dropped."""
    with closing(sqlite3.connect(old, isolation_level=None)) as connection:
        connection.execute("DELETE FROM batches WHERE acknowledged IS NOT NULL")
    return old


@pytest.fixture
async def opened_journal(path):
    """Open the journal at `path`; close what a test leaves open."""
    journals = []

    async def open_(path=path, **options):
        journal = SqliteJournal(
            path,
            model="scripted",
            on_entry=lambda entry, outcome: None,
            on_returned=lambda back: None,
            **options,
        )
        await journal.open()
        journals.append(journal)
        return journal

    yield open_
    for journal in journals:
        await journal.close()


@pytest.fixture
async def old_store(embedder):
    """A store with the chunks that the old version stored, and without an identity."""
    return await filled(MemoryStore(), embedder)


async def filled(store, embedder, model="scripted"):
    await store.start(model)
    chunks = [
        Chunk(one, text, metadata_of(SESSION_OF[one], started=1000.0 + i))
        for i, (one, text) in enumerate(TEXTS.items())
    ]
    await store.upsert(chunks, [embedder.vector(text) for text in TEXTS.values()])
    return store


def metadata_of(session, started):
    found = {"product_id": "acme", "kind": "actions", "started_at": started, "ended_at": started}
    if session:
        found |= {"session_id": session, "user_id": f"user of {session}"}
    return found


def version_of(path):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("PRAGMA user_version").fetchone()[0]


def held(counts):
    return {name: value for name, value in counts.items() if value and name != "bytes"}


def copy_of(path):
    return path.with_name(f"{path.name}.format-2")


async def texts_of(store):
    return {chunk.id: chunk.text async for page in store.scan() for chunk in page}


# -- contents after the upgrade ---------------------------------------------------------------


async def test_all_payloads_are_there(old, opened_journal):
    journal = await opened_journal()
    assert journal.upgraded_from == 2
    assert held(journal.counts) == COUNTS
    waiting = await journal.read(list(WAITING), MANY)
    assert {one.seq: decoded(one.body) for one in waiting} == WAITING
    assert [seq for seq, _, _ in await journal.waiting(0, 99)] == list(WAITING)
    rule, secret, poison = await journal.dead_letters(9)
    assert [rule.id, secret.id, poison.id] == [8, 9, 10]
    assert (rule.kind, rule.session_id, rule.payload) == ("actions", "s3", DEAD[8])
    assert (poison.kind, poison.session_id, poison.payload) == ("actions", "s3", DEAD[10])
    assert rule.error == "select failed: RuntimeError"
    assert poison.error == "embedder: ValueError: poison is refused"
    assert (secret.kind, secret.session_id, secret.payload) == ("unknown", None, None)
    assert secret.error == "redact failed: RuntimeError"
    assert 1.7e9 < poison.died_at < 1.9e9
    bodies = [body(payload) for payload in (*WAITING.values(), *DEAD.values())]
    assert journal.counts["bytes"] == sum(map(len, bodies))
    known = await journal.known()
    assert (known.seq, known.batch, known.acknowledged) == (19, 10, 0)
    assert known.chunks == 7


def body(payload):
    return msgspec.json.encode(payload)


async def test_plans_are_replayed_as_they_were_recorded(old, opened_journal):
    journal = await opened_journal()
    five, one = await journal.plans()
    assert (five.number, five.seqs, one.number, one.seqs) == (9, [14, 15], 10, [16])
    assert [planned.chunk.text for planned in five.chunks] == ["hang one\nhang two"]
    assert five.chunks[0].chunk.metadata == {
        "product_id": "acme", "session_id": "s5", "user_id": "dan", "kind": "actions",
        "started_at": 2000.0, "ended_at": 2100.0, "forwarded_at": 2110.0, "action_count": 2,
        "urls": "https://app.example.com/p",
    }  # fmt: skip
    # Known from the payloads stored before.
    assert one.chunks[0].chunk.metadata["user_id"] == "ann"


async def test_what_was_known_is_a_duplicate(old, opened_journal, entries):
    journal = await opened_journal()
    known = [*STORED, *WAITING.values(), *DEAD.values(), UNKEPT, DISCARDED]
    outcomes = [await journal.accept(one) for one in entries(*known, first=20)]
    assert outcomes == ["duplicate"] * len(known)
    (new,) = entries(UNWANTED, first=99)
    assert await journal.accept(new) == "accepted"


async def test_a_discarded_key_is_known_as_long_as_it_was(
    old, opened_journal, entries, monkeypatch
):
    with closing(sqlite3.connect(old)) as connection:
        (expires,) = connection.execute(
            "SELECT expires FROM catalog WHERE expires IS NOT NULL"
        ).fetchone()
    journal = await opened_journal()
    first, second = entries(DISCARDED, DISCARDED, first=20)
    monkeypatch.setattr(time, "time", lambda: expires - 60)
    await journal.tidy()
    assert await journal.accept(first) == "duplicate"
    monkeypatch.setattr(time, "time", lambda: expires + 60)
    await journal.tidy()
    assert await journal.accept(second) == "accepted"


async def test_sessions_and_requests_are_there(old, opened_journal):
    journal = await opened_journal()
    lanes = [lane for _, lane, _ in await journal.waiting(0, 99)]
    sessions = (await journal.sessions(lanes)).values()
    assert {(one.product_id, one.session_id, one.people.user_id) for one in sessions} == {
        ("acme", "s5", "dan"),
        ("acme", "s1", "ann"),
        ("acme", "s2", "bob"),
    }
    back = await journal.carry_out_requests()
    assert [seq for _, seq in back] == [8]
    assert [letter.id for letter in await journal.dead_letters(9)] == [9, 10]


async def test_full_durability_stores_again_what_was_acknowledged_lately(old, opened_journal):
    journal = await opened_journal(durability="full")
    assert await journal.queue_unconfirmed() == 7
    assert {one.chunk.id: one.chunk.text for one in await journal.queued(0, 99)} == TEXTS
    assert await journal.queue_unconfirmed() == 0


# -- the file ---------------------------------------------------------------------------------


async def test_a_copy_is_kept_until_the_upgrade_is_done(old, opened_journal, monkeypatch):
    seen = []
    run = migration._Upgrade.run

    def watched(upgrade):
        run(upgrade)
        seen.append((version_of(copy_of(old)), stat.S_IMODE(copy_of(old).stat().st_mode)))

    monkeypatch.setattr(migration._Upgrade, "run", watched)
    await opened_journal()
    assert seen == [(2, 0o600)]
    assert not list(old.parent.glob("*format-2*"))


async def test_an_upgraded_journal_is_private_with_all_its_files(old, opened_journal):
    await opened_journal()
    files = list(old.parent.iterdir())
    assert {file.name for file in files} == {
        "journal.db", "journal.db-wal", "journal.db-shm", "journal.db.lock"
    }  # fmt: skip
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


@pytest.mark.parametrize("keep_addresses", [False, True])
async def test_addresses_stay_only_where_they_may(old, opened_journal, keep_addresses):
    """Format 2 kept addresses regardless of `include_email`."""
    assert b"dan@example.com" in old.read_bytes()
    journal = await opened_journal(keep_addresses=keep_addresses)
    (first,) = await journal.read([14], MANY)
    (letter,) = [one for one in await journal.dead_letters(9) if one.id == 10]
    emails = [decoded(first.body).email, letter.payload.email]
    assert emails == (["dan@example.com", "cid@example.com"] if keep_addresses else [None, None])
    await journal.close()
    # The old text is not in free pages either.
    assert b"@example.com" not in old.read_bytes()


async def test_an_upgrade_that_fails_leaves_the_file_as_it_was(old, opened_journal, monkeypatch):
    def fail(upgrade):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(migration._Upgrade, "_stored", fail)
        with pytest.raises(JournalError, match="cannot be opened: database or disk is full"):
            await opened_journal()
    assert version_of(old) == 2
    with closing(sqlite3.connect(old)) as now, closing(sqlite3.connect(OLD)) as before:
        assert list(now.iterdump()) == list(before.iterdump())
    journal = await opened_journal()
    assert held(journal.counts) == COUNTS
    assert not copy_of(old).exists()


async def test_a_crash_in_the_middle_of_an_upgrade_undoes_it(
    old, opened_journal, copied, monkeypatch
):
    run = migration._Upgrade.run
    left = []

    def crash(upgrade):
        run(upgrade)
        left.append(copied(old))

    with monkeypatch.context() as patched:
        patched.setattr(migration._Upgrade, "run", crash)
        await opened_journal()
    (copy,) = left
    assert copy_of(copy).exists()
    assert version_of(copy) == 2
    journal = await opened_journal(path=copy)
    assert journal.upgraded_from == 2
    assert held(journal.counts) == COUNTS
    assert not copy_of(copy).exists()


async def test_a_bug_in_the_upgrade_leaves_no_lock(old, opened_journal, monkeypatch):
    def fail(upgrade):
        raise RuntimeError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr(migration._Upgrade, "run", fail)
        with pytest.raises(RuntimeError, match="a bug"):
            await opened_journal()
    assert version_of(old) == 2
    assert (await opened_journal()).upgraded_from == 2


async def test_a_damaged_plan_costs_only_the_plan(old, opened_journal, caplog):
    with closing(sqlite3.connect(old, isolation_level=None)) as connection:
        connection.execute("UPDATE batches SET record = x'ff00' WHERE id = 9")
    journal = await opened_journal()
    assert [plan.number for plan in await journal.plans()] == [10]
    assert [seq for seq, _, _ in await journal.waiting(0, 99)] == list(WAITING)
    assert "damaged plan" in caplog.text


@pytest.mark.parametrize(
    ("version", "remedy"),
    [(99, "install the newer version"), (1, "drain it with the version that wrote it")],
)
async def test_another_format_is_refused_untouched(old, opened_journal, version, remedy):
    with closing(sqlite3.connect(old, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = old.read_bytes()
    with pytest.raises(JournalVersionError, match=f"format {version}.*{remedy}"):
        await opened_journal()
    assert old.read_bytes() == before
    assert not list(old.parent.glob("*.format-*"))


async def test_a_reader_asks_for_the_upgrade(old, opened_journal):
    with pytest.raises(JournalVersionError, match="start a pipeline with it once to upgrade it"):
        JournalReader(old)
    journal = await opened_journal()
    await journal.close()
    status = JournalReader(old).status()
    assert (status.ledger.stored, status.ledger.pending, status.watermark) == (7, 6, 13)


async def test_a_large_queue_is_upgraded_row_by_row(path, opened_journal, make_actions):
    """The whole queue may not fit into memory."""
    shutil.copy(OLD, path)
    payloads = [make_actions("s9", f"{i}") for i in range(3000)]
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executemany(
            "INSERT INTO queue VALUES (?, ?, 5, ?)",
            [(100 + i, f"{i:032x}", body(p).decode()) for i, p in enumerate(payloads)],
        )
        connection.executemany(
            "INSERT INTO catalog (key, chunk, session, at) VALUES (?, ?, 's9', 1.0)",
            [(f"{i:032x}", f"chunk {i}" if i >= 3000 else None) for i in range(6000)],
        )
        connection.execute("UPDATE counters SET value = value + 3000 WHERE name = 'pending'")
        connection.execute("UPDATE counters SET value = value + 3000 WHERE name = 'stored'")
        connection.execute("UPDATE counters SET value = value + 6000 WHERE name = 'received'")
    journal = await opened_journal()
    assert len(await journal.waiting(0, 99_999)) == 3006
    assert (await journal.known()).chunks == 7 + 3000
    assert await journal.missing_texts() == 3000


# -- with a store -----------------------------------------------------------------------------


@pytest.fixture
def run(make_pipeline, old, embedder):
    """Make pipelines on the old journal that refuse what was refused then."""

    def refuse(texts):
        if any("poison" in text for text in texts):
            raise ValueError("poison is refused")

    embedder.script = refuse
    return lambda store, **options: make_pipeline(store, journal=old, **options)


NEW_TEXTS = {
    "hang one\nhang two", "hang three", "waits one", "Waits as a summary.",
    "waits alone \U0001f600", "rule",
}  # fmt: skip


@pytest.mark.parametrize("durability", ["normal", "full"])
async def test_the_store_is_adopted_and_what_waited_is_stored(
    run, old_store, durability, eventually
):
    async with asyncio.timeout(30):
        pipeline = run(old_store, durability=durability)
        async with pipeline:
            for payload in STORED:
                await (
                    pipeline.on_summary(payload)
                    if isinstance(payload, SummaryPayload)
                    else pipeline.on_actions(payload)
                )
            # The request to retry "rule" is carried out within a second.
            await eventually(lambda: pipeline.ledger.dead == 2)
            await pipeline.drain()
            ledger = pipeline.ledger
            assert (ledger.received, ledger.duplicate) == (19 + 7, 1 + 7)
            assert (ledger.stored, ledger.pending, ledger.dead) == (7 + 7, 0, 2)
            assert str(pipeline.health) == "ok"
    texts = await texts_of(old_store)
    assert texts.items() >= TEXTS.items()
    assert {text for one, text in texts.items() if one not in TEXTS} == NEW_TEXTS
    identity = await old_store.identity()
    with closing(sqlite3.connect(pipeline._settings.journal)) as connection:
        notes = dict(connection.execute("SELECT name, value FROM meta"))
    assert (identity.journal_id, identity.store_id) == (notes["journal_id"], notes["store_id"])


async def test_texts_are_filled_from_the_store(run, aged, old_store, opened_journal):
    async with run(old_store):
        pass
    journal = await opened_journal()
    assert journal.upgraded_from is None
    assert await journal.missing_texts() == 0
    await journal.queue_all()
    queued = {one.chunk.id: one.chunk for one in await journal.queued(0, 99)}
    # Format 2 did not know the second chunk of the 25 actions.
    assert {one: queued[one].text for one in TEXTS} == TEXTS
    assert queued["0b75504ab06aab1fe15d5df926fe8b32"].metadata["kind"] == "actions"
    four = queued["2bef624b97085c26f822a95c923fb6b7"].metadata
    assert (four["session_id"], four["user_id"]) == ("s4", "user of s4")


async def test_an_empty_store_is_a_mismatch_that_names_the_way_out(run, old_store):
    with pytest.raises(StoreMismatchError, match=r"none of the 7 chunks.*rebuild=True"):
        await run(Emptied()).start()
    # Nothing was lost: the right store is still accepted.
    async with run(old_store) as pipeline:
        assert pipeline.ledger.stored >= 7


class Emptied(MemoryStore):
    """A store that outlives its process but is empty."""

    persistent = True


async def test_a_store_that_lost_some_chunks_is_taken(run, aged, old_store, caplog):
    await old_store.delete(["2bef624b97085c26f822a95c923fb6b7"])
    with caplog.at_level(logging.WARNING):
        async with run(old_store) as pipeline:
            await pipeline.drain()
    assert "does not have 1 chunks" in caplog.text

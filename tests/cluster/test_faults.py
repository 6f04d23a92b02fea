"""Lost connections, servers that stop, roles without rights, and what errors say."""

from __future__ import annotations

import asyncio
import logging
import struct
import threading
from uuid import uuid4

import psycopg
import pytest
from postgres import PostgresServer

from autoplay_rag.cluster import PostgresJournal
from autoplay_rag.cluster.connection import PostgresConnection
from autoplay_rag.errors import ConfigurationError, JournalError, JournalVersionError
from autoplay_rag.ingest.intake import Intake
from autoplay_rag.journal.ledger import COUNTERS
from autoplay_rag.payloads import ActionsPayload, SlimAction


def _entry(title: str, seq: int):
    action = SlimAction(title, title, "https://app.test/p", 0, "click", 1000.0, 1000.0)
    payload = ActionsPayload("acme", "s", None, None, [action], 1, 1010.0)
    return Intake(None, None).entry(payload, seq)


def _journal(dsn: str, schema: str, outcomes: list | None = None) -> PostgresJournal:
    told = [] if outcomes is None else outcomes
    return PostgresJournal(
        dsn,
        schema=schema,
        on_entry=lambda entry, outcome: told.append((entry.seq, outcome)),
        on_returned=lambda back: None,
    )


@pytest.fixture
def schema():
    return f"t_{uuid4().hex[:12]}"


@pytest.fixture
async def journal(postgres, schema):
    journal = _journal(postgres.dsn, schema)
    await journal.open()
    yield journal
    await journal.close()


def _end_connections(postgres, of: str = "autoplay-rag") -> None:
    postgres.run(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = %s",
        of,
    )


async def test_a_lost_connection_is_replaced(journal, postgres):
    assert await journal.accept(_entry("a", 1)) == "accepted"
    await journal.timeline.last_seq()
    _end_connections(postgres)
    assert await journal.accept(_entry("b", 2)) == "accepted"
    assert await journal.timeline.last_seq() == 2
    assert journal.problem is None
    assert journal.counts["received"] == 2


@pytest.mark.parametrize("committed", [True, False])
async def test_a_connection_that_is_lost_at_the_commit(journal, monkeypatch, committed):
    """Whether the server has committed is not known then. It is asked, and nothing is done twice."""
    commit = PostgresConnection.commit
    losses = []

    def lose(self):
        if not losses:
            losses.append(1)
            if committed:
                commit(self)
            self.close()
            raise psycopg.OperationalError("server closed the connection unexpectedly")
        commit(self)

    monkeypatch.setattr(PostgresConnection, "commit", lose)
    assert await journal.accept(_entry("a", 1)) == "accepted"
    assert losses
    counts = {name: journal.counts[name] for name in COUNTERS if journal.counts[name]}
    assert counts == {"received": 1, "pending": 1}
    await journal.settled_of(0)
    counts = {name: journal.counts[name] for name in COUNTERS if journal.counts[name]}
    assert counts == {"received": 1, "pending": 1}


@pytest.mark.slow
async def test_writes_wait_while_the_server_is_stopped(schema, caplog):
    server = PostgresServer()
    try:
        outcomes: list = []
        journal = _journal(server.dsn, schema, outcomes)
        await journal.open()
        await journal.accept(_entry("a", 1))
        server.stop()
        with caplog.at_level(logging.WARNING):
            futures = [journal.accept(_entry(str(seq), seq)) for seq in range(2, 30)]
            while journal.problem is None:  # noqa: ASYNC110 - another thread sets it
                await asyncio.sleep(0.01)
        assert "cannot be reached" in journal.problem
        with pytest.raises(JournalError, match="cannot be read"):
            await journal.timeline.last_seq()
        server.start()
        assert await asyncio.gather(*futures) == ["accepted"] * 28
        assert journal.problem is None
        assert "writes wait" in caplog.text
        assert outcomes == [(seq, "accepted") for seq in range(1, 30)]
        assert await journal.timeline.last_seq() == 29
        await journal.close()
    finally:
        server.close()


async def test_closing_does_not_wait_for_a_server_that_is_gone(schema, monkeypatch, postgres):
    outcomes: list = []
    journal = _journal(postgres.dsn, schema, outcomes)
    await journal.open()

    def refuse(self, *more, options=""):
        self.close()
        raise psycopg.OperationalError("connection refused")

    monkeypatch.setattr(PostgresConnection, "begin", refuse)
    lost = journal.accept(_entry("a", 1))
    while journal.problem is None:  # noqa: ASYNC110 - another thread sets it
        await asyncio.sleep(0.01)
    await journal.close()
    with pytest.raises(JournalError, match="connection refused"):
        await lost
    assert outcomes == [(1, None)]


async def test_nothing_shows_the_password(postgres, caplog):
    dsn = f"postgresql://nobody:s3cret@/postgres?host={postgres.socket_folder}"
    journal = _journal(dsn, "autoplay")
    with caplog.at_level(logging.DEBUG), pytest.raises(JournalError) as raised:
        await journal.open()
    shown = f"{raised.value} {raised.value!r} {journal!r} {caplog.text} {raised.value.__cause__!r}"
    assert "s3cret" not in shown
    assert "nobody" in str(raised.value)


async def test_an_error_shows_no_value_of_a_row(journal, schema, postgres):
    postgres.run(f"ALTER TABLE {schema}.payload ADD CHECK (session IS NOT NULL)")
    with pytest.raises(JournalError, match="violates check constraint") as raised:
        await journal.accept(_entry("very private", 1))
    assert "private" not in f"{raised.value} {raised.value.__cause__!r}"
    assert raised.value.__cause__ is None


async def test_a_role_without_rights_is_told_what_to_run(postgres, schema):
    postgres.run("DO $$ BEGIN CREATE ROLE poor LOGIN; EXCEPTION WHEN duplicate_object THEN END $$")
    dsn = f"postgresql://poor@/postgres?host={postgres.socket_folder}"
    with pytest.raises(ConfigurationError, match=f'CREATE SCHEMA IF NOT EXISTS "{schema}"'):
        await _journal(dsn, schema).open()
    postgres.run(f"CREATE SCHEMA {schema} AUTHORIZATION poor")
    journal = _journal(dsn, schema)
    await journal.open()
    assert await journal.accept(_entry("a", 1)) == "accepted"
    await journal.close()


@pytest.fixture
async def passwords():
    """A server on TCP that asks for a password, and then refuses it. Yields its port.

    The server from the package index trusts each role.
    """
    asks, refusal = b"R" + struct.pack("!ii", 8, 3), b"SFATAL\0C28P01\0Mwrong password\0\0"

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def message(head: int) -> None:
            size = (await reader.readexactly(head))[-4:]
            await reader.readexactly(int.from_bytes(size) - 4)

        await message(4)
        writer.write(asks)
        await message(5)
        writer.write(b"E" + struct.pack("!i", 4 + len(refusal)) + refusal)
        assert await reader.read() == b""  # it has closed the connection
        closed.set()
        writer.close()

    closed = asyncio.Event()
    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    await closed.wait()
    server.close()
    await server.wait_closed()


async def _leaves_nothing(dsn: str, schema: str, match: str) -> None:
    before = set(threading.enumerate())
    journal = _journal(dsn, schema)
    with pytest.raises((JournalError, ConfigurationError), match=match):
        await journal.open()
    async with asyncio.timeout(30):
        await journal.close()
    for thread in set(threading.enumerate()) - before:
        await asyncio.to_thread(thread.join, 30)
        assert not thread.is_alive(), thread


async def test_an_unreachable_server_leaves_nothing(schema, tmp_path):
    await _leaves_nothing(f"postgresql:///postgres?host={tmp_path}", schema, "cannot be opened")


async def test_a_wrong_password_leaves_nothing(schema, passwords):
    dsn = f"postgresql://ann:wrong@127.0.0.1:{passwords}/postgres?sslmode=disable"
    await _leaves_nothing(dsn, schema, "cannot be opened: .*wrong password")


async def test_a_role_without_rights_leaves_nothing(postgres, schema):
    postgres.run("DO $$ BEGIN CREATE ROLE poor LOGIN; EXCEPTION WHEN duplicate_object THEN END $$")
    dsn = (
        f"postgresql://poor@/postgres?host={postgres.socket_folder}&application_name=poor-{schema}"
    )
    await _leaves_nothing(dsn, schema, "may not create")
    async with asyncio.timeout(30):
        while postgres.run(  # noqa: ASYNC110 - the server notices closed connections by itself
            "SELECT 1 FROM pg_stat_activity WHERE application_name = %s", f"poor-{schema}"
        ):
            await asyncio.sleep(0.02)


async def test_a_newer_form_is_refused(journal, postgres, schema):
    postgres.run(f"UPDATE {schema}.meta SET value = '99' WHERE name = 'format'")
    with pytest.raises(JournalVersionError, match="format 99"):
        await _journal(postgres.dsn, schema).open()


async def test_several_processes_may_create_the_tables_at_once(postgres, schema):
    journals = [_journal(postgres.dsn, schema) for _ in range(4)]
    await asyncio.gather(*(journal.open() for journal in journals))
    notes = [await journal.notes() for journal in journals]
    assert len({one.journal_id for one in notes}) == 1
    for journal in journals:
        await journal.close()


async def test_names_are_quoted(postgres):
    schema = f'my "own" sche\'ma {uuid4().hex[:6]}'
    journal = _journal(postgres.dsn, schema)
    await journal.open()
    assert await journal.accept(_entry('it\'s; a "test" %s', 1)) == "accepted"
    found = await journal.finder.find({"test": ("test",)}, ["it's; a"], (), 9)
    assert [seq for seq, _ in found.passages] == [1]
    await journal.close()

"""`autoplay-rag ingest`, and the output of `search` and `status` afterwards."""

import asyncio
import json
import os
import shutil
import signal
import stat
import time
from pathlib import Path

import pytest

from autoplay_rag.cli.options import default_journal
from autoplay_rag.devserver import LocalConnector
from autoplay_rag.errors import JournalError
from autoplay_rag.journal.reader import JournalReader
from autoplay_rag.payloads import ActionsPayload, SlimAction, SummaryPayload


def visit(session_id, user_id, *descriptions):
    actions = [
        SlimAction(text, f"User {text}", "https://app.acme.example/", n, "click", 1000.0 + n)
        for n, text in enumerate(descriptions)
    ]
    return ActionsPayload("acme", session_id, user_id, None, actions, len(actions), 1010.0)


VISITS = [
    visit("s1", "u1", "opened the billing page", "saw the message card declined"),
    visit("s2", "u2", "clicked the export button", "downloaded a spreadsheet"),
    visit("s3", "u1", "changed the language to Portuguese\x1b[2J"),
    SummaryPayload("acme", "s1", "The user could not pay by credit card.", 2, 1020.0),
]


@pytest.mark.parametrize(
    ("store", "journal"),
    [
        ("chroma", "chroma-journal.db"),
        ("./data/chroma/", "data/chroma-journal.db"),
        (".", "{here}-journal.db"),
        ("..", "{here.parent}-journal.db"),
        ("data/..", "{here}-journal.db"),
        ("/", "/-journal.db"),
    ],
)
def test_the_journal_lies_beside_the_store(store, journal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(default_journal(Path(store))) == journal.format(here=tmp_path)


@pytest.mark.slow
async def test_redact_removes_personal_data(ended, tmp_path):
    personal = visit("s1", "u1", "mailed ann@acme.test about the card 4111 1111 1111 1111")
    async with LocalConnector([personal]) as connector:
        code, out, _ = await ended(
            "ingest", connector.url, "--redact", "pii", "--idle-seconds", "5"
        )
    assert (code, out) == (0, "received 1 · pending 0 · stored 1\n")
    code, out, _ = await ended("search", "who got mail?")
    assert (code, "mailed <email> about the card <card>" in out) == (0, True)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"ann@acme" not in content, path
            assert b"4111 1111" not in content, path


@pytest.mark.slow
async def test_retention_deletes_what_is_old(ended, tmp_path):
    new = visit("s9", "u9", "printed an invoice")
    for action in new.actions:
        action.timestamp_start = time.time()
    async with LocalConnector([*VISITS, new]) as connector:
        code, out, _ = await ended("ingest", connector.url, "--idle-seconds", "5")
    assert (code, out) == (0, "received 5 · pending 0 · stored 5\n")
    async with LocalConnector([new]) as connector:
        options = ("--retention-days", "7", "--idle-seconds", "5")
        code, out, _ = await ended("ingest", connector.url, *options)
    assert (code, "stored 5" in out) == (0, True)
    _, out, _ = await ended("sessions", "--json")
    assert [one["session_id"] for one in json.loads(out)["sessions"]] == ["s9"]
    _, out, _ = await ended("search", "billing page card declined invoice", "--json")
    assert "printed an invoice" in out
    assert "billing" not in out
    code, out, _ = await ended("status", "--json")
    found = json.loads(out)
    assert (found["stored"], found["duplicate"]) == (5, 1)
    assert found["store_bytes"] > 0


@pytest.mark.slow
async def test_a_stream_is_stored_and_found_again(started, ended, eventually, tmp_path):
    journal = tmp_path / "chroma-journal.db"
    async with LocalConnector(VISITS) as connector:
        # Connecting counts as idle time and is slow on a busy machine.
        code, out, err = await ended("ingest", connector.url, "--idle-seconds", "5")
        assert (code, out) == (0, "received 4 · pending 0 · stored 4\n")
        assert err.splitlines()[0] == "journal: chroma-journal.db", "it lies beside the store"
        assert "error" not in err

        async with started("ingest", connector.url) as running:
            await eventually(lambda: received(journal) == 8)
            running.interrupt()
            code, out, _ = await running.end()
        assert (code, out) == (0, "received 8 · pending 0 · stored 4 · duplicate 4\n")

    code, out, err = await ended("search", "whose payment failed?", "--k", "1", "--json")
    (hit,) = json.loads(out)
    assert (code, err, hit["session_id"]) == (0, "", "s1")
    assert hit["metadata"]["product_id"] == "acme"

    code, out, _ = await ended("search", "language", "--user", "u1", "--k", "9")
    rows = [line.split("\t") for line in out.splitlines()]
    assert {row[2] for row in rows} == {"u1"}
    assert rows[0][1] == "s3"
    assert "\x1b" not in out
    assert len(rows[0]) == 5

    code, out, err = await ended("search", " ")
    assert (code, out, err) == (2, "", "error: the question is empty\n")

    code, out, err = await ended("search", "anything", "--session", "nobody")
    assert (code, out) == (0, "")
    assert (
        err == "nothing found: no such session or user was ever seen\nanswered by text and dense\n"
    )

    code, out, _ = await ended("status", "chroma-journal.db", "--json")
    status = json.loads(out)
    assert (status["received"], status["stored"], status["running"]) == (8, 4, False)
    code, out, _ = await ended("status", "chroma-journal.db")
    assert ["stored", "4"] in [line.split() for line in out.splitlines()]
    assert out.splitlines()[-2:] == ["pipeline     not running", "health                ok"]


@pytest.mark.slow
async def test_ctrl_c_stores_what_was_received(started, eventually, tmp_path):
    journal = tmp_path / "mine.db"
    async with LocalConnector(VISITS) as connector:
        args = ("ingest", connector.url, "--store", "chroma:store", "--journal", journal)
        async with started(*args) as running:
            await eventually(lambda: received(journal) == 4)
            running.interrupt()
            code, out, err = await running.end()
    assert (code, out) == (0, "received 4 · pending 0 · stored 4\n")
    assert "Ctrl-C again to exit at once" in err
    assert "Traceback" not in err


@pytest.mark.slow
async def test_a_terminal_that_closes_is_no_loss(started_on_terminal, eventually, tmp_path):
    journal = tmp_path / "chroma-journal.db"
    async with LocalConnector(VISITS) as connector:
        process, terminal = started_on_terminal("ingest", connector.url)
        try:
            await eventually(lambda: received(journal) == 4)
            os.close(terminal)
            process.send_signal(signal.SIGHUP)
            process.send_signal(signal.SIGHUP)
            await asyncio.to_thread(process.wait, 30)
        finally:
            process.kill()
            process.wait()
    ledger = JournalReader(journal).status().ledger
    assert (ledger.stored, ledger.pending) == (4, 0)


@pytest.mark.slow
async def test_a_second_ctrl_c_leaves_at_once_and_the_journal_remembers(
    started, eventually, silent_port, tmp_path
):
    journal = tmp_path / "chroma-journal.db"
    down = f"http://127.0.0.1:{silent_port}/v1"
    async with LocalConnector(VISITS) as connector:
        args = ("ingest", connector.url, "--embedder", "openai:any-model")
        async with started(*args, OPENAI_API_KEY="sk-no", OPENAI_BASE_URL=down) as running:
            await eventually(lambda: received(journal) == 4)
            running.interrupt()
            await running.line("Ctrl-C again to exit at once", "stderr")
            running.interrupt()
            code, _, err = await running.end()
    assert code == 1
    assert "exited at once: payloads that are not stored stay in chroma-journal.db" in err
    status = JournalReader(journal).status()
    assert (status.ledger.pending, status.ledger.stored) == (4, 0)
    await eventually(lambda: not JournalReader(journal).status().running)


@pytest.mark.slow
async def test_a_refusal_is_one_line(ended):
    async with LocalConnector(VISITS, token="uk_right") as connector:
        code, out, err = await ended("ingest", connector.url, "--token", "uk_wrong")
    assert (code, out) == (1, "")
    journal, error = err.splitlines()
    assert journal.startswith("journal: ")
    assert error.startswith("error: 401")
    assert "uk_" not in err


@pytest.mark.slow
async def test_a_connector_that_never_answered_is_an_error(ended, silent_port):
    url = f"http://127.0.0.1:{silent_port}/stream/x"
    code, out, err = await ended("ingest", url, "--idle-seconds", "3")
    assert (code, out) == (1, "")
    error = err.splitlines()[-1]
    assert error.startswith(f"error: could not connect to a stream at {url}: the last error was ")


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_a_deleted_store_is_rebuilt_when_asked_for(ended, tmp_path):
    async with LocalConnector(VISITS) as connector:
        args = ("ingest", connector.url, "--idle-seconds", "5")
        await ended(*args)
        shutil.rmtree(tmp_path / "chroma")
        code, out, err = await ended(*args)
        assert (code, out) == (1, "")
        journal, error = err.splitlines()
        assert journal == "journal: chroma-journal.db"
        assert error.startswith("error: <ChromaStore: collection 'autoplay' in ")
        assert "none of the 4 chunks that the journal" in error
        assert "--rebuild" in error

        code, out, err = await ended(*args, "--rebuild")
        assert (code, out) == (0, "received 8 · pending 0 · stored 4 · duplicate 4\n")
        assert "error" not in err
    code, out, _ = await ended("search", "whose payment failed?", "--k", "9", "--json")
    assert code == 0
    assert {hit["session_id"] for hit in json.loads(out)} == {"s1", "s2", "s3"}
    assert len(json.loads(out)) == 4


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_the_store_of_another_journal_is_adopted_when_asked_for(ended):
    async with LocalConnector(VISITS) as connector:
        args = ("ingest", connector.url, "--idle-seconds", "5")
        await ended(*args)
        mistyped = (*args, "--journal", "jornal.db")
        for options in ((), ("--rebuild",)):
            code, out, err = await ended(*mistyped, *options)
            assert (code, out) == (1, "")
            error = err.splitlines()[-1]
            assert error.startswith("error: ")
            assert "another journal" in error
            assert "jornal.db" in error
            assert "--adopt" in error

        code, out, err = await ended(*mistyped, "--adopt")
        assert (code, out) == (0, "received 4 · pending 0 · stored 0 · duplicate 4\n")
        code, _, err = await ended(*args)
        assert code == 1
        assert "another journal" in err
    code, out, _ = await ended("search", "whose payment failed?", "--k", "9", "--json")
    assert (code, len(json.loads(out))) == (0, 4)


def received(journal):
    try:
        return JournalReader(journal).status().ledger.received
    except JournalError:  # not created yet
        return 0


@pytest.mark.slow
async def test_nobody_else_may_read_what_is_stored(ended, tmp_path):
    async with LocalConnector(VISITS) as connector:
        code, _, _ = await ended("ingest", connector.url, "--idle-seconds", "5")
    assert code == 0
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("chroma*")}
    assert modes["chroma"] == 0o700
    assert modes["chroma-journal.db"] == 0o600
    assert {mode for name, mode in modes.items() if name != "chroma"} == {0o600}

"""`search`, `sessions` and `session` beside a pipeline that writes the journal."""

import asyncio
import json
import sqlite3
import subprocess
import sys
from contextlib import nullcontext

import pytest

from autoplay_rag import ActionsPayload, IngestPipeline, SlimAction
from autoplay_rag.cli.app import run
from autoplay_rag.embedders import LocalEmbedder
from autoplay_rag.stores import ChromaStore, MemoryStore


def done(session, *descriptions, user="ann", at=1000.0):
    actions = [
        SlimAction("", said, "https://app.acme.test/reports", n, "click", at + n, at + n)
        for n, said in enumerate(descriptions)
    ]
    return ActionsPayload("acme", session, user, actions=actions, forwarded_at=at)


@pytest.fixture(autouse=True)
def _in_a_thread(monkeypatch):
    """Signals are for the main thread alone, and these commands run in another one."""
    for command in ("search", "sessions"):
        monkeypatch.setattr(f"autoplay_rag.cli.{command}.Interrupts", nullcontext)


@pytest.fixture
async def pipeline(tmp_path, monkeypatch, embedder):
    """A pipeline that runs beside the commands; the journal is beside the default store."""
    monkeypatch.chdir(tmp_path)
    async with IngestPipeline(
        MemoryStore(),
        embedder,
        journal=tmp_path / "chroma-journal.db",
        batch_window=3600.0,
        drain_timeout=0.0,
    ) as running:
        await running.on_actions(done("s1", "User opened billing", "User clicked Export"))
        await running.on_actions(done("s2", "User left \x1b[2J", user="bob", at=2000.0))
        yield running


async def called(capsys, *args):
    code = await asyncio.to_thread(run, list(args))
    found = capsys.readouterr()
    return code, found.out, found.err


async def test_sessions_are_listed_while_a_pipeline_runs(pipeline, capsys):
    code, out, err = await called(capsys, "sessions")
    rows = [line.split("\t") for line in out.splitlines()]
    assert code == 0
    assert [(row[0], row[1], row[4]) for row in rows] == [
        ("s2", "bob", "left [2J"),
        ("s1", "ann", "opened billing; clicked Export"),
    ]
    assert "answered by the journal chroma-journal.db: 2 of 2 sessions" in err
    code, out, err = await called(capsys, "sessions", "--json", "--limit", "1")
    found = json.loads(out)
    assert ([one["session_id"] for one in found["sessions"]], found["total"]) == (["s2"], 2)
    assert (found["sides"], err) == (["journal"], "")
    code, out, _ = await called(capsys, "sessions", "--cursor", found["next"])
    assert out.startswith("s1\t")


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--user", "ann"], ["s1"]),
        (["--product", "other"], []),
        (["--since", "1970-01-01T00:30:00Z"], ["s2"]),
        (["--until", "1970-01-01T00:20:00Z"], ["s1"]),
        (["--since", "1d"], []),
        (["--matching", "export"], ["s1"]),
        (["--without", "export"], ["s2"]),
        (["--page", "reports"], ["s2", "s1"]),
    ],
)
async def test_what_is_listed(pipeline, capsys, options, found):
    code, out, _ = await called(capsys, "sessions", "--json", *options)
    assert code == 0
    assert [one["session_id"] for one in json.loads(out)["sessions"]] == found


async def test_one_session(pipeline, capsys):
    code, out, err = await called(capsys, "session", "s1")
    assert code == 0
    assert [line.split("\t")[1:] for line in out.splitlines()] == [
        ["click", "User opened billing", "https://app.acme.test/reports"],
        ["click", "User clicked Export", "https://app.acme.test/reports"],
    ]
    assert "answered by the journal" in err
    code, out, _ = await called(capsys, "session", "s1", "--json", "--user", "ann")
    assert json.loads(out)["events"][0]["description"] == "User opened billing"
    for args in (["s9"], ["s1", "--user", "bob"], ["s1", "--product", "other"]):
        code, out, err = await called(capsys, "session", *args)
        assert (code, out) == (1, "")
        assert "error: no session" in err


async def test_words_are_searched_where_there_is_no_store(pipeline, capsys):
    code, out, err = await called(capsys, "search", "export", "--json")
    (hit,) = json.loads(out)
    assert (code, err) == (0, "")
    assert (hit["session_id"], hit["sides"], hit["embedded"]) == ("s1", ["text"], False)
    code, out, err = await called(capsys, "search", "export", "--mode", "text", "--user", "bob")
    assert "answered by text" in err
    assert "Export" not in out
    code, out, err = await called(capsys, "search", "export", "--mode", "dense")
    assert (code, out) == (1, "")
    assert "no Chroma store" in err
    for wrong in (["--mode", "exact"], ["--since", "yesterday"]):
        assert (await called(capsys, "search", "export", *wrong))[0] == 2


async def test_a_folder_that_ingest_holds_leaves_the_words(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    async with IngestPipeline(
        ChromaStore("chroma"), LocalEmbedder(), journal="chroma-journal.db", batch_window=0.0
    ) as pipeline:
        await pipeline.on_actions(done("s1", "User clicked Export"))
        await pipeline.drain()
        beside = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "autoplay_rag", "search", "export"],
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert beside.returncode == 0, beside.stderr
        assert "s1" in beside.stdout
        assert "answered by text; the store did not: " in beside.stderr
    code, out, err = await called(capsys, "search", "how to export?")
    assert (code, err) == (0, "answered by text and dense\n")
    # The journal belongs to another collection.
    code, out, err = await called(capsys, "search", "export", "--collection", "another")
    assert (code, out, err) == (0, "", "nothing found\nanswered by dense\n")


async def test_a_journal_that_cannot_be_read(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert (await called(capsys, "sessions"))[0] == 1
    with sqlite3.connect("chroma-journal.db") as connection:
        connection.execute("CREATE TABLE mine (a)")
    connection.close()
    code, _, err = await called(capsys, "sessions")
    assert code == 1
    assert "not a journal of this package" in err
    code, _, err = await called(capsys, "search", "x")
    assert code == 1
    assert "searching without the journal" in err
    assert "no Chroma store" in err

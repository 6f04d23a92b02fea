"""`autoplay-rag dead-letters`, with and without a running pipeline."""

import asyncio
import json
import shutil
import sqlite3
from contextlib import closing
from types import SimpleNamespace

import pytest

from autoplay_rag import IngestPipeline, SummaryPayload
from autoplay_rag._filelock import FileLock
from autoplay_rag.cli import journal
from autoplay_rag.cli.app import run
from autoplay_rag.embedders import LocalEmbedder
from autoplay_rag.journal.base import Health
from autoplay_rag.journal.inflow import TopicPart, TopicStatus
from autoplay_rag.journal.ledger import Ledger
from autoplay_rag.journal.reader import JournalReader, JournalStatus
from autoplay_rag.stores import MemoryStore


def broken(_payload):
    raise RuntimeError("a bug in the user's own rule")


async def fill(path, count=3):
    """A journal with dead letters and no pipeline."""
    async with IngestPipeline(
        MemoryStore(), LocalEmbedder(), journal=path, select=broken
    ) as pipeline:
        for n in range(count):
            await pipeline.on_summary(SummaryPayload("acme", f"s{n}", f"Summary {n}."))
        return [letter.id for letter in await pipeline.dead_letters.list()]


async def test_dead_letters_are_listed_with_their_reason(ended, tmp_path):
    ids = await fill(tmp_path / "journal.db")
    code, out, _ = await ended("dead-letters", "list", "journal.db")
    rows = [line.split("\t") for line in out.splitlines()]
    assert code == 0
    assert [(int(row[0]), row[2], row[3]) for row in rows] == [
        (id_, "summary", f"s{n}") for n, id_ in enumerate(ids)
    ]
    assert "select" in rows[0][4]
    _, out, _ = await ended("dead-letters", "list", "journal.db", "--json")
    assert [letter["id"] for letter in json.loads(out)] == ids


async def test_without_a_pipeline_a_request_waits_for_the_next_one(ended, eventually, tmp_path):
    ids = await fill(tmp_path / "journal.db")
    code, out, _ = await ended("dead-letters", "retry", "journal.db", ids[0], ids[1])
    assert code == 0
    assert (
        out == "retry 2: the pipeline will do this at its next start, because it is not running\n"
    )
    async with IngestPipeline(
        MemoryStore(), LocalEmbedder(), journal=tmp_path / "journal.db"
    ) as pipeline:
        await eventually(lambda: pipeline.ledger.dead == 1)
        await pipeline.drain()
        assert (pipeline.ledger.stored, pipeline.ledger.dead) == (2, 1)


async def test_a_running_pipeline_sees_to_it_at_once(ended, eventually, tmp_path):
    await fill(tmp_path / "journal.db")
    async with IngestPipeline(
        MemoryStore(), LocalEmbedder(), journal=tmp_path / "journal.db"
    ) as pipeline:
        code, out, _ = await ended("dead-letters", "discard", "journal.db", "--all")
        assert (code, out) == (0, "discard 3: the pipeline will do this now\n")
        await eventually(lambda: pipeline.ledger.discarded == 3)


async def test_an_unknown_id_is_an_error_and_nothing_is_asked(ended, tmp_path):
    ids = await fill(tmp_path / "journal.db", count=1)
    code, _, err = await ended("dead-letters", "discard", "journal.db", ids[0], 999)
    assert (code, err) == (2, "error: no dead letter has id 999\n")
    code, _, err = await ended("dead-letters", "list", "journal.db")
    assert code == 0


async def test_thousands_are_counted_and_reached_to_the_last(ended, tmp_path):
    (first,) = await fill(tmp_path / "journal.db", count=1)
    with closing(sqlite3.connect(tmp_path / "journal.db")) as connection, connection:
        connection.executemany(
            "INSERT INTO payload (seq, key, lane, kind, at, state, size, ended, error, body)"
            " SELECT ?, ?, lane, kind, at, state, size, ended, error, body FROM payload"
            " WHERE seq = ?",
            [(first + n, n.to_bytes(16), first) for n in range(1, 10_002)],
        )
    last = first + 10_001
    code, out, err = await ended("dead-letters", "list", "journal.db")
    assert (code, len(out.splitlines())) == (0, 100)
    assert err == "9,902 more: see them with --limit 10002\n"
    code, out, err = await ended("dead-letters", "list", "journal.db", "--limit", "10002")
    assert (code, len(out.splitlines()), err) == (0, 10_002, "")
    code, out, err = await ended("dead-letters", "retry", "journal.db", last, last)
    assert (code, err) == (0, "")
    assert out.startswith("retry 1: ")
    code, out, _ = await ended("dead-letters", "retry", "journal.db", "--all")
    assert code == 0
    assert out.startswith("retry 10,002: ")


def test_another_users_pipeline_may_run_or_not(tmp_path, monkeypatch, capsys):
    asyncio.run(fill(tmp_path / "journal.db"))
    monkeypatch.setattr(FileLock, "is_held", lambda _: None)
    journal.status(tmp_path / "journal.db")
    assert "pipeline         unknown" in capsys.readouterr().out
    journal.status(tmp_path / "journal.db", json=True)
    assert json.loads(capsys.readouterr().out)["running"] is None
    journal.discard([str(tmp_path / "journal.db")], all_=True)
    assert "its own user can see" in capsys.readouterr().out


async def test_none_is_no_error(ended, tmp_path):
    await fill(tmp_path / "journal.db", count=0)
    for args in (["list"], ["retry", "--all"]):
        code, out, err = await ended("dead-letters", args[0], "journal.db", *args[1:])
        assert (code, out, err) == (0, "", "no dead letters\n")


async def test_status_has_its_values_in_one_column(ended, tmp_path):
    async with IngestPipeline(
        MemoryStore(), LocalEmbedder(), journal=tmp_path / "journal.db", batch_window=600.0
    ) as pipeline:
        await pipeline.on_summary(SummaryPayload("acme", "s1", "A summary."))
        code, out, _ = await ended("status", "journal.db")
    lines = out.splitlines()
    shown = dict(line.rsplit(maxsplit=1) for line in lines)
    assert code == 0
    assert (shown["pending"], shown["pipeline"], shown["health"]) == ("1", "running", "ok")
    assert shown["waiting s"].isdigit()
    assert {len(line) for line in lines} == {24}


async def test_status_shows_sizes_and_warns_when_space_is_low(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    await fill(tmp_path / "chroma-journal.db", count=1)
    (tmp_path / "chroma").mkdir()
    (tmp_path / "chroma" / "chroma.sqlite3").write_bytes(bytes(3 << 20))
    sizes = {"journal": (tmp_path / "chroma-journal.db").stat().st_size, "store": 3 << 20}
    assert run(["status", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["journal_bytes"], found["store_bytes"]) == (sizes["journal"], sizes["store"])
    assert found["free_bytes"] > 0
    # The store of another journal is not known.
    await fill(tmp_path / "other.db", count=1)
    assert run(["status", "other.db", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["store_bytes"] is None
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5 << 20))
    assert run(["status"]) == 0
    out, err = capsys.readouterr()
    shown = [line.split() for line in out.splitlines()]
    assert ["store", "3.0", "MB"] in shown
    assert ["disk", "free", "5.0", "MB"] in shown
    assert err.startswith("warning: disk space is low: 5 MB are free, and 128 MB are needed")
    assert run(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["space_is_low"] is True


async def test_status_finds_the_journal_beside_the_default_store(ended, tmp_path):
    code, _, err = await ended("status")
    assert (code, err) == (1, "error: no journal found at chroma-journal.db; check the path\n")
    await fill(tmp_path / "chroma-journal.db", count=2)
    code, out, _ = await ended("status", "--json")
    found = json.loads(out)
    assert (code, found["dead"]) == (0, 2)
    assert found["lag_p50"] is found["lag_p99"] is found["oldest_pending"] is None


@pytest.mark.parametrize(
    ("text", "journal"),
    [
        ("store = 'chroma:kept'", "kept-journal.db"),
        ("store = 'chroma:kept'\njournal = 'mine.db'", "mine.db"),
        ("journal = 'data/mine.db'", "data/mine.db"),
    ],
)
async def test_status_finds_the_journal_of_the_settings(ended, tmp_path, text, journal):
    (tmp_path / "autoplay-rag.toml").write_text(text)
    (tmp_path / "data").mkdir()
    await fill(tmp_path / journal, count=1)
    code, out, _ = await ended("status", "--json")
    assert (code, json.loads(out)["dead"]) == (0, 1)


async def test_check_says_in_one_line_whether_all_is_well(ended, tmp_path):
    async with IngestPipeline(
        MemoryStore(), LocalEmbedder(), journal=tmp_path / "chroma-journal.db"
    ):
        assert await ended("status", "--check") == (0, "ok\n", "")
    for args in ((), ("chroma-journal.db",), ("--json",)):
        code, out, err = await ended("status", *args, "--check")
        assert (code, out, err) == (1, "not ok: the pipeline is not running\n", "")
    code, out, err = await ended("status", "absent.db", "--check")
    assert (code, out) == (1, "")
    assert err == "error: no journal found at absent.db; check the path\n"


def state_of(*, running=True, health=None, topic=None, **ledger):
    return JournalStatus(
        Ledger(**ledger), 0, None, 0, health or Health(), running=running, topic=topic
    )


MISSED = "3 messages lost: the topic deleted them before they were read"
TOPIC = TopicStatus(
    "events", "rag", (TopicPart(0, "a:1", 5, 9, 3), TopicPart(1, None, None, None, 0))
)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (state_of(running=None), "only the pipeline's own user can see whether it is running"),
        (state_of(health=Health("degraded", ("store: refused",))), "degraded: store: refused"),
        (state_of(health=Health("failed", ("disk\x1b[2J\nfull",))), "failed: disk\ufffd[2J full"),
        (state_of(received=3, overflow=3), "3 payloads lost to overflow"),
        (
            state_of(running=False, health=Health("failed", ("a",)), overflow=1),
            "the pipeline is not running; last noted: failed: a; 1 payloads lost to overflow",
        ),
        (
            state_of(topic=TOPIC),
            f"no process reads the partitions 1 of the topic; {MISSED}",
        ),
    ],
)
def test_check_names_everything_that_is_not_well(tmp_path, monkeypatch, capsys, found, says):
    asyncio.run(fill(tmp_path / "journal.db", count=0))
    monkeypatch.setattr(JournalReader, "status", lambda _: found)
    assert run(["status", str(tmp_path / "journal.db"), "--check"]) == 1
    assert capsys.readouterr().out == f"not ok: {says}\n"


def test_status_says_how_far_a_topic_is_taken_in(tmp_path, monkeypatch, capsys):
    asyncio.run(fill(tmp_path / "journal.db", count=0))
    monkeypatch.setattr(JournalReader, "status", lambda _: state_of(topic=TOPIC))
    assert run(["status", str(tmp_path / "journal.db")]) == 0
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert said[said.index("topic events, group rag") :][:3] == [
        "topic events, group rag",
        "topic lag 4",
        "missed 3",
    ]
    assert run(["status", str(tmp_path / "journal.db"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["topic"]
    assert (found["topic"], found["group"], found["lag"], found["missed"]) == (
        "events",
        "rag",
        4,
        3,
    )
    assert found["parts"][0] == {
        "number": 0,
        "owner": "a:1",
        "offset": 5,
        "end": 9,
        "missed": 3,
        "lag": 4,
    }

"""`autoplay-rag verify`, `backup` and `restore`, with and without a running pipeline."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from contextlib import closing

import pytest

from autoplay_rag import ActionsPayload, IngestPipeline, SlimAction
from autoplay_rag.cli import asking
from autoplay_rag.cli.app import run
from autoplay_rag.embedders import LocalEmbedder
from autoplay_rag.ingest import answering
from autoplay_rag.journal.reader import JournalReader
from autoplay_rag.stores import ChromaStore, MemoryStore
from autoplay_rag.stores.base import Chunk

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(answering, "_POLL_SECONDS", 0.05)
    return tmp_path


def pipeline_of(store=None):
    return IngestPipeline(
        store or ChromaStore("chroma"), LocalEmbedder(), journal="chroma-journal.db"
    )


async def fill(pipeline, count=3):
    for n in range(count):
        click = SlimAction(f"click {n}", f"User clicked {n}")
        await pipeline.on_actions(ActionsPayload("acme", f"s{n}", "ann", actions=[click]))
    await pipeline.drain()


async def filled() -> None:
    async with pipeline_of() as pipeline:
        await fill(pipeline)


async def damage(*, extra=0, missing=0) -> list[str]:
    store = ChromaStore("chroma")
    try:
        chunks = [chunk async for page in store.scan() for chunk in page]
        await store.delete([chunk.id for chunk in chunks[:missing]])
        for n in range(extra):
            await store.upsert([Chunk(f"extra-{n}", "x", {})], [[0.1] * 384])
        return [chunk.id for chunk in chunks]
    finally:
        await store.aclose()


@pytest.mark.slow
def test_verify_alone(capsys):
    asyncio.run(filled())
    assert run(["verify"]) == 0
    assert capsys.readouterr().out == "3 chunks checked: no difference\n"
    ids = asyncio.run(damage(extra=1, missing=2))
    assert run(["verify"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "3 chunks checked: 2 missing, 1 extra"
    assert set(out[1].rpartition(": ")[2].split(", ")) == set(ids[:2])
    assert out[2].endswith("unknown to the journal: extra-0")
    assert run(["verify", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["clean"], report["missing"], report["extra"]) == (False, 2, 1)
    assert run(["verify", "--repair"]) == 1
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1] == "repaired: 2 stored again"
    assert "1 extra chunks stay: they are more than 5% of the collection" in shown.err
    assert run(["verify", "--repair", "--delete-extra"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "repaired: 1 deleted"
    assert run(["verify"]) == 0


@pytest.mark.slow
def test_backup_and_restore_alone(capsys, here):
    asyncio.run(filled())
    assert run(["backup", "copies/monday"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(f"{here}/copies/monday: journal and store, ")
    assert "personal data" in shown.err
    assert run(["backup", "copies/monday"]) == 1
    assert "not empty" in capsys.readouterr().err
    assert run(["restore", "copies/monday"]) == 1
    assert "--force" in capsys.readouterr().err
    asyncio.run(damage(missing=2))
    assert run(["restore", "copies/monday", "--force"]) == 0
    out = capsys.readouterr().out
    assert f"journal: {here}/chroma-journal.db" in out
    assert f"store: {here}/chroma" in out
    assert run(["verify"]) == 0
    elsewhere = ["--journal", "other/j.db", "--store", "chroma:other/chroma"]
    capsys.readouterr()
    assert run(["restore", "copies/monday", "--json", *elsewhere]) == 0
    assert json.loads(capsys.readouterr().out)["store"] == f"{here}/other/chroma"
    assert run(["verify", *elsewhere]) == 0
    (here / "copies/monday/manifest.json").unlink()
    assert run(["restore", "copies/monday", "--force"]) == 1
    assert "not a complete backup" in capsys.readouterr().err


@pytest.mark.slow
async def test_a_running_pipeline_does_it_itself(capsys, here):
    async with pipeline_of() as pipeline:
        await fill(pipeline)
        assert await asyncio.to_thread(run, ["verify"]) == 0
        await pipeline._store.delete(await pipeline._run._journal.sample(1))
        assert await asyncio.to_thread(run, ["verify", "--repair"]) == 1
        assert "repaired: 1 stored again" in capsys.readouterr().out
        await pipeline.drain()
        assert await asyncio.to_thread(run, ["verify"]) == 0
        assert await asyncio.to_thread(run, ["backup", "copy"]) == 0
        assert (here / "copy" / "manifest.json").exists()
        capsys.readouterr()
        assert await asyncio.to_thread(run, ["backup", "copy"]) == 1
        assert capsys.readouterr().err.count("is not empty; give a new folder") == 1
        assert await asyncio.to_thread(run, ["restore", "copy", "--force"]) == 1
        assert "in use by process" in capsys.readouterr().err
        with closing(sqlite3.connect("chroma-journal.db")) as connection:
            for table in ("request", "meta WHERE name LIKE 'answer%'"):
                assert not connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


async def test_other_stores_are_compared_by_their_pipeline(capsys):
    async with pipeline_of(MemoryStore()) as pipeline:
        await fill(pipeline)
        assert await asyncio.to_thread(run, ["verify"]) == 0
        assert await asyncio.to_thread(run, ["backup", "copy"]) == 0
        assert "the journal only" in capsys.readouterr().out


async def test_a_failure_of_the_pipeline_is_told(capsys, monkeypatch):
    async with pipeline_of(MemoryStore()) as pipeline:

        async def broken(**_):
            raise RuntimeError("a bug")

        monkeypatch.setattr(answering, "_log", _Silent())
        monkeypatch.setattr(type(pipeline._store), "get", broken)
        monkeypatch.setattr(type(pipeline._store), "scan", broken)
        assert await asyncio.to_thread(run, ["verify"]) == 1
        assert "error: verify failed: " in capsys.readouterr().err
        assert pipeline.health.state == "ok"


class _Silent:
    def info(self, *_):
        pass

    exception = info


async def test_a_pipeline_that_takes_no_request_is_told(capsys, monkeypatch):
    monkeypatch.setattr(asking, "_TAKEN_SECONDS", 0.3)
    monkeypatch.setattr(answering, "_POLL_SECONDS", 60)
    async with pipeline_of(MemoryStore()):
        await asyncio.sleep(0.1)  # the first look
        assert await asyncio.to_thread(run, ["verify"]) == 1
        assert "takes no requests" in capsys.readouterr().err


async def test_a_pipeline_that_ends_is_told(capsys, monkeypatch):
    monkeypatch.setattr(answering, "_POLL_SECONDS", 60)
    async with pipeline_of(MemoryStore()):
        await asyncio.sleep(0.1)
        asked = asyncio.create_task(asyncio.to_thread(run, ["verify"]))
        reader = JournalReader("chroma-journal.db")
        while not await asyncio.to_thread(_requests, reader):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.01)
    assert await asked == 1
    assert "ended before it was done" in capsys.readouterr().err


def _requests(reader) -> int:
    with reader._connected() as connection:
        return connection.execute("SELECT count(*) FROM request").fetchone()[0]


async def test_an_old_request_is_dropped(monkeypatch):
    async with pipeline_of(MemoryStore()):
        pass
    reader = JournalReader("chroma-journal.db")
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    token = reader.give_task("backup", {"folder": "copy"})
    monkeypatch.undo()
    async with pipeline_of(MemoryStore()):
        while await asyncio.to_thread(_requests, reader):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
        assert reader.answer_of(token) is None


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["verify", "--delete-extra"], 2, "--delete-extra needs --repair"),
        (["verify"], 1, "no journal found at chroma-journal.db; check the path"),
        (["backup"], 2, "DIR"),
        (["backup", "copy"], 1, "no journal found"),
        (["backup", "copy", "--store", "pg:x"], 2, "chroma:PATH"),
        (["restore", "copy"], 1, "not a complete backup"),
    ],
)
def test_what_is_refused(capsys, here, args, code, says):
    assert run(args) == code
    assert says in capsys.readouterr().err
    assert not list(here.iterdir())


def test_nothing_is_made_where_no_store_is(capsys, here):
    async def main():
        async with pipeline_of(MemoryStore()) as pipeline:
            await fill(pipeline)

    asyncio.run(main())
    for args in (["verify"], ["verify", "--repair"], ["backup", "copy"]):
        assert run(args) == 1
        assert "no Chroma store at chroma; check the path" in capsys.readouterr().err
    assert not [path for path in here.iterdir() if not path.name.startswith("chroma-journal.db")]

"""`autoplay-rag forget` and `export`, with and without a running pipeline."""

from __future__ import annotations

import asyncio
import json

import pytest

from autoplay_rag import ActionsPayload, IngestPipeline, SlimAction
from autoplay_rag.cli.app import run
from autoplay_rag.embedders import LocalEmbedder
from autoplay_rag.ingest import answering
from autoplay_rag.stores import ChromaStore, MemoryStore

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(answering, "_POLL_SECONDS", 0.05)
    return tmp_path


async def fill(pipeline):
    for user in ("ann", "bob"):
        for n in range(3):
            click = SlimAction(f"{user}word {n}", f"User clicked {user}word {n}")
            await pipeline.on_actions(ActionsPayload("acme", f"{user}{n}", user, actions=[click]))
    await pipeline.drain()


def pipeline_of(store):
    return IngestPipeline(store, LocalEmbedder(), journal="chroma-journal.db")


@pytest.mark.slow
def test_alone(capsys, here):
    async def filled():
        async with pipeline_of(ChromaStore("chroma")) as pipeline:
            await fill(pipeline)

    asyncio.run(filled())
    assert run(["export", "--user", "ann"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["record"] for line in lines] == ["payload"] * 3 + ["chunk"] * 3
    assert lines[0]["payload"]["user_id"] == "ann"
    assert run(["forget", "--user", "ann", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["payloads"] == 3
    assert run(["forget", "--user", "ann", "--json"]) == 0
    receipt = json.loads(capsys.readouterr().out)
    assert (receipt["payloads"], receipt["chunks"], receipt["sessions"]) == (3, 3, 3)
    assert receipt["erased_at"]
    assert run(["export", "--user", "ann"]) == 0
    assert capsys.readouterr().out == ""
    files = [path for path in here.rglob("*") if path.is_file()]
    assert not [path for path in files if b"annword" in path.read_bytes()]
    assert [path for path in files if b"bobword" in path.read_bytes()]


async def test_beside_a_running_pipeline(capsys):
    async with pipeline_of(MemoryStore()) as pipeline:
        await fill(pipeline)
        exported = [one async for one in pipeline.export(user_id="bob")]
        assert [one["record"] for one in exported] == ["payload"] * 3 + ["chunk"] * 3
        assert json.dumps(exported)
        assert await asyncio.to_thread(run, ["forget", "--user", "ann"]) == 0
        out = capsys.readouterr().out
        assert out.startswith("forgotten: 3 payloads in 3 chunks of 3 sessions")
        assert len(await pipeline.sessions(user_id="ann")) == 0
        assert len(await pipeline.sessions(user_id="bob")) == 3


def test_wrong_usage(capsys):
    assert run(["forget"]) == 2
    assert "forget needs a user_id" in capsys.readouterr().err
    assert run(["export"]) == 2

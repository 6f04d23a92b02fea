"""`autoplay-rag reembed` and `copy`."""

from __future__ import annotations

import asyncio
import json
from array import array

import pytest

from autoplay_rag import ActionsPayload, IngestPipeline, SlimAction
from autoplay_rag.cli import reembed as module
from autoplay_rag.cli.app import run
from autoplay_rag.embedders import Embedder, LocalEmbedder
from autoplay_rag.stores import ChromaStore

pytestmark = [pytest.mark.timeout(120), pytest.mark.slow]


class Small(Embedder):
    """Another model than the bundled one."""

    model = "small"

    async def embed(self, texts):
        return [array("f", [float(len(text)), 1.0]) for text in texts]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make = module.make_embedder
    monkeypatch.setattr(
        module, "make_embedder", lambda name: Small() if name == "openai:small" else make(name)
    )


async def filled() -> None:
    async with IngestPipeline(
        ChromaStore("chroma"), LocalEmbedder(), journal="chroma-journal.db"
    ) as pipeline:
        for n in range(3):
            click = SlimAction(f"click {n}", f"User clicked {n}")
            await pipeline.on_actions(ActionsPayload("acme", f"s{n}", "ann", actions=[click]))
        await pipeline.drain()


def test_another_model(capsys):
    asyncio.run(filled())
    assert run(["reembed", "--embedder", "openai:small", "--json"]) == 0
    shown = capsys.readouterr()
    report = json.loads(shown.out)
    assert (report["model"], report["chunks"], report["refused"]) == ("small", 3, 0)
    assert "start the pipeline with --embedder openai:small" in shown.err
    assert run(["status", "--json", "chroma-journal.db"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["model"], status["reembedding"]) == ("small", None)
    assert run(["verify"]) == 0
    assert capsys.readouterr().out == "3 chunks checked: no difference\n"
    assert run(["reembed", "--embedder", "openai:small"]) == 0
    assert "already" in capsys.readouterr().err
    assert run(["reembed"]) == 0  # back to the bundled model
    assert capsys.readouterr().out.startswith("3 chunks embedded with ")


def test_another_store(capsys):
    asyncio.run(filled())
    copy = ["copy", "--from", "chroma:chroma", "--to", "chroma:other"]
    assert run([*copy, "--journal", "chroma-journal.db", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["chunks"], report["copied"], report["missing"]) == (3, 3, 0)
    verify = ["verify", "--journal", "chroma-journal.db", "--store", "chroma:other", "--repair"]
    assert run(verify) == 0
    assert capsys.readouterr().out.startswith("3 chunks checked: no difference")
    assert run(["verify"]) == 1  # the old store is not the journal's any more
    assert "is not the store" in capsys.readouterr().err


def test_wrong_use(capsys):
    assert run(["reembed"]) == 1
    assert "no Chroma store" in capsys.readouterr().err
    assert run(["copy", "--from", "chroma:a", "--to", "chroma:a"]) == 2
    assert "the same collection" in capsys.readouterr().err
    assert run(["copy", "--from", "chroma:a", "--to", "chroma:b"]) == 1
    assert "no Chroma store at a" in capsys.readouterr().err

"""The commands with a store in PostgreSQL."""

from __future__ import annotations

import asyncio
import json

import pytest

from autoplay_rag import ActionsPayload, IngestPipeline, SlimAction
from autoplay_rag.cli.app import run
from autoplay_rag.embedders import LocalEmbedder
from autoplay_rag.stores import ChromaStore

VARIABLE = "AUTOPLAY_RAG_POSTGRES_DSN"
SECRET = "pa55word"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (VARIABLE, f"{VARIABLE}_FILE", "PGPASSWORD"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def database(postgres, monkeypatch, tmp_path):
    """An empty database, whose address is in a file that the environment names."""
    postgres.run("DROP SCHEMA IF EXISTS autoplay CASCADE")
    address = postgres.dsn.replace("postgres:@", f"postgres:{SECRET}@")
    path = tmp_path / "dsn"
    path.write_text(address)
    monkeypatch.setenv(f"{VARIABLE}_FILE", str(path))
    yield postgres
    postgres.run("DROP SCHEMA IF EXISTS autoplay CASCADE")


async def fill(store, journal) -> None:
    async with IngestPipeline(store, LocalEmbedder(), journal=journal) as pipeline:
        for n in range(3):
            click = SlimAction(f"Export {n}", f"User clicked the export button {n}")
            await pipeline.on_actions(ActionsPayload("acme", f"s{n}", f"u{n}", actions=[click]))
        await pipeline.drain()


def test_a_password_in_the_address_is_refused(capsys):
    store = f"postgresql://ann:{SECRET}@db.test/app"
    assert run(["ingest", "http://127.0.0.1:9/s", "--store", store, "--journal", "j.db"]) == 2
    shown = capsys.readouterr()
    assert f"{VARIABLE}_FILE" in shown.err.replace("\n", " ")
    assert SECRET not in shown.out + shown.err


@pytest.mark.parametrize(
    "command",
    [
        ["ingest", "http://127.0.0.1:9/stream/acme"],
        ["search", "export"],
        ["sessions"],
        ["verify"],
        ["forget", "--user", "u1"],
    ],
    ids=lambda command: command[0],
)
def test_the_journal_has_to_be_named(command, capsys):
    assert run([*command, "--store", "postgresql://db.test/app"]) == 2
    assert "name the file with --journal" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_from_chroma_to_postgres(database, capsys, monkeypatch, tmp_path):
    asyncio.run(fill(ChromaStore("chroma"), "j.db"))
    pg = ["--store", "postgresql:", "--journal", "j.db"]
    assert run(["copy", "--to", "postgresql:", "--journal", "j.db"]) == 0
    assert "3" in capsys.readouterr().out
    assert database.run("SELECT count(*) FROM autoplay.store_chunk_1") == [(3,)]

    assert run(["verify", *pg]) == 0
    assert run(["search", "who exported?", *pg, "--json"]) == 0
    out = capsys.readouterr().out
    assert "export button" in out
    assert run(["search", "who exported?", *pg, "--mode", "dense", "--json"]) == 0
    assert run(["sessions", *pg]) == 0
    assert run(["reembed", *pg]) == 0
    assert run(["backup", "copy", *pg]) == 0
    assert "the journal only" in capsys.readouterr().out
    assert run(["forget", "--user", "u1", *pg]) == 0
    [(number,)] = database.run("SELECT number FROM autoplay.store_collection")
    users = f"SELECT user_id FROM autoplay.store_chunk_{number} ORDER BY 1"
    assert database.run(users) == [("u0",), ("u2",)]
    (tmp_path / "autoplay-rag.toml").write_text('store = "postgresql:"\njournal = "j.db"\n')
    capsys.readouterr()
    assert run(["verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["missing"] == 0
    assert run(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pending"] == 0

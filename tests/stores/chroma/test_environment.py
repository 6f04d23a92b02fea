"""No worker takes settings of Chroma from the environment: one test per setting."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from store_helpers import ALL, EAST, chunk, ids

from autoplay_rag.stores import ChromaStore

SPELLINGS = {"upper": str.upper, "lower": str.lower, "mixed": str.title}
FOREIGN = {
    "chroma_api_impl": "chromadb.api.fastapi.FastAPI",
    "chroma_server_host": "127.0.0.1",
    "chroma_server_http_port": "1",
    "chroma_otel_collection_endpoint": "http://127.0.0.1:1",
    "chroma_otel_granularity": "all",
    "anonymized_telemetry": "True",
    "allow_reset": "True",
    "is_persistent": "False",
    "migrations": "none",
    "persist_directory": "elsewhere",
}
"""Values that other programs set and Chroma accepts. Other settings get a value that may be invalid."""

_LIST = """
import json
from chromadb.config import Settings
print(json.dumps(sorted(Settings.model_fields)))
"""
_REPORT = """
import json, os, sys
from autoplay_rag.stores.chroma.folder import ignore_environment
ignore_environment()
from chromadb.config import Settings
names = {name.lower() for name in os.environ}
found = {}
for name, foreign in json.loads(sys.argv[1]).items():
    default = Settings.model_fields[name].default
    found[name] = [name in names]
    for value in ("", foreign):
        os.environ[name.upper()] = value
        found[name].append(getattr(Settings(), name) != default)
print(json.dumps(found))
"""


def run(script: str, *arguments: str, folder: Path, **environment: str) -> object:
    """Run a script in its own process; return the JSON that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        stdout=subprocess.PIPE,
        check=True,
        cwd=folder,
        env={**os.environ, **environment},
    )
    return json.loads(done.stdout)


def fields() -> list[str]:
    return run(_LIST, folder=Path(__file__).parent)


FIELDS = fields()


def foreign(name: str) -> str:
    return FOREIGN.get(name, "maybe")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The effect on each setting of an environment and a `.env` file that set all of them."""
    folder = tmp_path_factory.mktemp("environment")
    values = {name: foreign(name) for name in FIELDS}
    (folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in values.items()))
    environment = {name.upper(): value for name, value in values.items()}
    return run(_REPORT, json.dumps(values), folder=folder, **environment)


@pytest.mark.parametrize("name", FIELDS)
def test_no_field_is_read_from_the_environment(report, name):
    in_environment, by_empty, by_value = report[name]
    assert not in_environment
    assert not by_empty
    assert not by_value


async def stores_and_finds(folder: Path) -> bool:
    store = ChromaStore(folder)
    try:
        await store.start("m")
        await store.upsert([chunk("a")], [EAST])
        return ids(await store.query(EAST, 1, ALL)) == ["a"]
    finally:
        await store.aclose()


@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_a_store_works_where_every_field_is_set_to_something_else(
    monkeypatch, tmp_path, spelling
):
    for name in FIELDS:
        monkeypatch.setenv(SPELLINGS[spelling](name), foreign(name))
    assert await stores_and_finds(tmp_path / "db")
    assert (tmp_path / "db" / "chroma.sqlite3").exists()


@pytest.mark.parametrize(
    "content",
    [
        "".join(f"{name.upper()}={foreign(name)}\n" for name in FIELDS).encode(),
        "".join(f"export {name}=\n" for name in FIELDS).encode(),
        b"CHROMA_SERVER_HTTP_PORT=none\n\xff\xfe",
        "ALLOW_RESET=maybe\n".encode("utf-16"),
    ],
    ids=["values", "empty", "binary", "utf-16"],
)
async def test_a_dotenv_file_in_the_folder_is_not_read(tmp_path, content):
    (tmp_path / ".env").write_bytes(content)
    assert await stores_and_finds(tmp_path)


async def test_a_server_that_the_environment_names_hears_nothing(monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        monkeypatch.setenv("CHROMA_API_IMPL", "chromadb.api.fastapi.FastAPI")
        monkeypatch.setenv("CHROMA_SERVER_HOST", "127.0.0.1")
        monkeypatch.setenv("CHROMA_SERVER_HTTP_PORT", port)
        monkeypatch.setenv("CHROMA_OTEL_COLLECTION_ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("CHROMA_OTEL_GRANULARITY", "all")
        assert await stores_and_finds(tmp_path)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()

"""The README and the pages in docs/: every block runs, every command and setting exists.

A block of Python runs as its reader would run it, in a process and a folder of its own. Two addresses
stand for something real: that of a stream for the local connector, that of a server for a running
one. Some pages need more; `ELSEWHERE` names their tests.
"""

import asyncio
import json
import os
import re
import shlex
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import typer
import yaml
from pipelines import ScriptedEmbedder, make_actions
from topics import Topic

from autoplay_rag import IngestPipeline
from autoplay_rag.cli.app import app
from autoplay_rag.cli.config import load_config
from autoplay_rag.connector.recording import read_recording
from autoplay_rag.devserver import LocalConnector, samples
from autoplay_rag.serve import Keys, create_app
from autoplay_rag.serve.server import HttpServer
from autoplay_rag.stores import MemoryStore

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RUNNER = ROOT / "tests" / "run_block.py"
PLACEHOLDER = "https://connector.example.com/stream/acme"
PULL_PLACEHOLDER = "https://mcp.example.com"
ADDRESS = "http://127.0.0.1:8760"
KEYS = Keys(admin="admin-key-of-tests", read="read-key-of-tests", ingest="ingest-key-of-tests")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ANY_BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`(autoplay-rag(?: [^`]+)?)`")
ELSEWHERE = {
    "recipes/postgres.md": "tests/test_docs.py",
    "recipes/kafka.md": "tests/test_docs.py",
    "start.md": "tests/test_docs_start.py",
    "recipes/serve.md": "tests/serve/test_recipe.py",
    "recipes/mcp.md": "tests/serve/test_mcp_recipe.py",
    "recipes/webhook.md": "tests/connector/test_webhook.py",
    "recipes/kafka-relay.md": "tests/relay/test_recipe.py",
    "recipes/opentelemetry.md": "tests/test_tracing.py",
    "recipes/fastapi-agent.md": "integrations/langchain-autoplay/tests/test_recipe.py",
    "recipes/langgraph.md": "integrations/langchain-autoplay/tests/test_recipe_langgraph.py",
    "recipes/langchain-index.md": "integrations/langchain-autoplay/tests/test_index.py",
    "recipes/langchain-process.md": "integrations/langchain-autoplay/tests/test_in_process.py",
}
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def name_of(page):
    return page.relative_to(DOCS if page.is_relative_to(DOCS) else ROOT).as_posix()


def blocks(*languages, pages=PAGES):
    for page in pages:
        text = page.read_text()
        for found in ANY_BLOCK.finditer(text):
            if found[1] in languages:
                line = text.count("\n", 0, found.start()) + 2
                yield pytest.param(found[2], id=f"{name_of(page)}:{line}")


@asynccontextmanager
async def a_server():
    """Serve the samples, which words find. Yields its address."""
    pipeline = IngestPipeline(MemoryStore(), ScriptedEmbedder())
    server = HttpServer(create_app(pipeline, keys=KEYS, audit=lambda line: None), "127.0.0.1", 0)
    async with pipeline:
        for payload in read_recording(samples()):
            await pipeline.accept(payload)
        task = asyncio.create_task(server.run_until_stopped())
        ready = asyncio.create_task(server.ready())
        try:
            await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED)
            yield server.url
        finally:
            ready.cancel()
            server.stop()
            await task


async def run_block(code: str, folder: Path, python: str | Path) -> None:
    """Run a block as its reader would, with the samples."""
    path = folder / "block.py"
    env = {
        **os.environ,
        "AUTOPLAY_RAG_KEY": KEYS.read,
        "AUTOPLAY_RAG_INGEST_KEY": KEYS.ingest,
    }
    async with AsyncExitStack() as stack:
        connector = await stack.enter_async_context(LocalConnector())
        code = code.replace(PLACEHOLDER, connector.url)
        if ADDRESS in code:
            code = code.replace(ADDRESS, await stack.enter_async_context(a_server()))
        # A reader's stream may need a minute of silence; the local connector ends sooner.
        code = code.replace(PULL_PLACEHOLDER, connector.pull_url)
        code = code.replace('"prod_x"', repr(connector.product_id))
        code = code.replace("idle_seconds=60", "idle_seconds=3").replace("idle=60", "idle=3")
        path.write_text(code)
        process = await asyncio.create_subprocess_exec(
            python,
            "-W",
            "error",
            RUNNER,
            path,
            cwd=folder,
            env=env,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), 50)
    assert process.returncode == 0, err.decode()
    assert b"Traceback" not in err
    assert b"never retrieved" not in out + err
    assert out.strip() or "print(" not in code


@pytest.mark.slow
@pytest.mark.parametrize(
    "code", list(blocks("python", pages=[page for page in PAGES if name_of(page) not in ELSEWHERE]))
)
async def test_it_runs(code, tmp_path):
    await run_block(code, tmp_path, sys.executable)


DSN = "postgresql://app@db.example.com/app"


@pytest.mark.slow
@pytest.mark.parametrize("number", range(5))
async def test_the_recipe_for_postgres_runs(number, postgres, tmp_path):
    text = (ROOT / "docs" / "recipes" / "postgres.md").read_text()
    found = BLOCK.findall(text)
    assert len(found) == 5
    postgres.run("DROP SCHEMA IF EXISTS autoplay CASCADE")
    assert DSN in found[number]
    await run_block(found[number].replace(DSN, postgres.dsn), tmp_path, sys.executable)


@pytest.mark.slow
async def test_the_recipe_for_kafka_runs(postgres, broker, topic, make_pg_store, tmp_path):
    (found,) = BLOCK.findall((ROOT / "docs" / "recipes" / "kafka.md").read_text())
    postgres.run("DROP SCHEMA IF EXISTS autoplay CASCADE")
    address = "kafka://kafka.example.com:9092/events?group=search"
    assert DSN in found
    assert address in found
    events = Topic(broker, topic, postgres, make_pg_store)
    await events.create(2)
    await events.send(make_actions("s1", "User clicked Export"))
    code = found.replace(DSN, postgres.dsn).replace(address, broker.address(topic, "search"))
    await run_block(code, tmp_path, sys.executable)


CONTRACT = re.compile(r"^```python test\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["store", "embedder"])
async def test_the_example_of_a_recipe_passes_its_contract(name, tmp_path):
    text = (ROOT / "docs" / "recipes" / f"own-{name}.md").read_text()
    (example,), (test,) = BLOCK.findall(text), CONTRACT.findall(text)
    (tmp_path / f"my_{name}.py").write_text(example)
    (tmp_path / f"test_my_{name}.py").write_text(test)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
        "filterwarnings = error\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pytest", "-q", cwd=tmp_path, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), 50)
    assert process.returncode == 0, out.decode()


@pytest.mark.parametrize(("page", "test"), ELSEWHERE.items())
def test_the_other_pages_are_run_by_their_tests(page, test):
    assert Path(page).name in (ROOT / test).read_text()
    assert BLOCK.search((DOCS / page).read_text())


@pytest.mark.parametrize("settings", list(blocks("toml")))
def test_the_settings_are_accepted(settings, tmp_path):
    file = tmp_path / "autoplay-rag.toml"
    file.write_text(settings)
    assert load_config(file).path == file


@pytest.mark.parametrize("text", list(blocks("json")))
def test_the_json_is_valid(text):
    assert json.loads(text)


@pytest.mark.parametrize("text", list(blocks("yaml")))
def test_the_yaml_is_valid(text):
    assert yaml.safe_load(text)


def commands():
    """What a reader is to type, and what is named in a sentence; only the former is complete."""
    for page in PAGES:
        text = page.read_text()
        typed = set()
        for _, block in ANY_BLOCK.findall(text):
            for line in re.sub(r"\\\n *", "", block).splitlines():
                words = line.removeprefix("$ ").strip()
                if words.startswith("autoplay-rag "):
                    typed.add(words)
        for words in sorted(typed):
            yield pytest.param(words, True, id=f"{name_of(page)}: {words}")
        for words in sorted(set(SPAN.findall(text)) - typed):
            named = " ".join(words.split())
            yield pytest.param(named, False, id=f"{name_of(page)}: {named}")


@pytest.mark.parametrize(("words", "is_typed"), list(commands()))
def test_the_commands_exist_with_their_options(words, is_typed):
    arguments = shlex.split(words.partition(" > ")[0])[1:]
    group = typer.main.get_command(app)
    context = group.make_context("autoplay-rag", [], resilient_parsing=True)
    known = options_of(group, context)
    while arguments and arguments[0] in known:  # options of every command
        arguments = arguments[2 if arguments[0] == "--log-format" else 1 :]
    command, name = group, "autoplay-rag"
    while arguments and hasattr(command, "get_command") and arguments[0][0].islower():
        name, *arguments = arguments
        command = command.get_command(context, name)
        assert command is not None, f"there is no command {name}"
        context = command.make_context(name, [], parent=context, resilient_parsing=True)
        known = options_of(command, context)
    if is_typed and "..." not in words and command is not group:
        command.make_context(name, arguments, parent=context.parent)
    used = {word.partition("=")[0] for word in arguments if re.fullmatch(r"--?[a-z].*", word)}
    assert used <= known


def options_of(command, context):
    return {name for one in command.get_params(context) for name in getattr(one, "opts", ())}

"""`autoplay-rag mcp` in its own process, with the SDK's own client on its standard streams."""

import asyncio
import json
import os
import signal
import sys
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import replace

import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from pipelines import make_actions
from serve_server import KEYS, SECRET_WORD, fill, token

from autoplay_rag import IngestPipeline
from autoplay_rag.cli.mcp import mcp
from autoplay_rag.embedders.local import LocalEmbedder
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.serve.mcp import relay
from autoplay_rag.serve.running import RunningServer, announced
from autoplay_rag.stores.chroma import ChromaStore

MODES = ["auto", "legacy"]
COMMAND = ["-W", "error", "-m", "autoplay_rag", "mcp"]


def environment(**more):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "AUTOPLAY_"))}
    return {**kept, "PYTHONUNBUFFERED": "1", **more}


@asynccontextmanager
async def connected(folder, *args, mode="auto", **env):
    """A client of a new `autoplay-rag mcp`; its standard error goes to the file `err`."""
    started = StdioServerParameters(
        command=sys.executable, args=[*COMMAND, *args], env=environment(**env), cwd=folder
    )
    with (folder / "err").open("w") as err:
        async with Client(stdio_client(started, errlog=err), mode=mode) as client:
            yield client


async def ended(folder, *args, input=b"", **env):
    """Run the command to the end of its input."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *COMMAND,
        *args,
        cwd=folder,
        env=environment(**env),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(input), 50)
    return process.returncode, out.decode(), err.decode()


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
async def test_it_asks_the_server_that_the_environment_names(running, tmp_path, mode):
    """With a token of Ann: her tools, her data, and the server's audit log."""
    env = {"AUTOPLAY_RAG_URL": running.server.url, "AUTOPLAY_RAG_KEY": token(user_id="ann")}
    async with connected(tmp_path, mode=mode, **env) as client:
        tools = (await client.list_tools()).tools
        found = await client.call_tool("search_sessions", {"query": f"{SECRET_WORD} exported"})
        refused = await client.call_tool("user_history", {"user_id": "bob"})
    assert "user_id" not in tools[0].input_schema["properties"]
    assert found.structured_content["passages"]
    assert SECRET_WORD not in found.model_dump_json()
    assert refused.is_error
    assert [json.loads(line)["status"] for line in running.audit] == [200, 422]
    assert (tmp_path / "err").read_text() == ""


async def test_it_finds_the_server_of_the_journal_and_says_when_it_is_gone(serve, tmp_path):
    journal = tmp_path / "journal.db"
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(serve(journal=journal))
        await fill(running.pipeline)
        about = RunningServer(running.server.url, KEYS.read, os.getpid())
        with announced(journal, about):
            client = await stack.enter_async_context(connected(tmp_path, "--journal", str(journal)))
            listed = await client.call_tool("user_history", {"user_id": "bob"})
            with announced(journal, replace(about, url="http://127.0.0.1:9")):
                silent = await client.call_tool("user_history", {"user_id": "bob"})
        gone = await client.call_tool("user_history", {"user_id": "bob"})
    assert "s2" in {one["session_id"] for one in listed.structured_content["sessions"]}
    assert silent.is_error
    assert silent.content[0].text.startswith("This is not available: the server does not answer")
    assert gone.is_error
    assert gone.content[0].text.startswith("This is not available: the server is not running")


@pytest.mark.slow
async def test_a_refused_key_is_said(running, tmp_path):
    env = {"AUTOPLAY_RAG_URL": running.server.url, "AUTOPLAY_RAG_KEY": "not-a-key-of-tests"}
    async with connected(tmp_path, **env) as client:
        said = await client.call_tool("user_history", {})
    assert said.is_error
    assert "status 401. The key or token is not valid" in said.content[0].text


@pytest.mark.slow
async def test_without_a_server_it_opens_the_files(tmp_path):
    journal = tmp_path / "chroma-journal.db"
    store = ChromaStore(tmp_path / "chroma")
    async with IngestPipeline(store, LocalEmbedder(), journal=journal) as pipeline:
        await pipeline.accept(make_actions("s1", "ann exported the report", user="ann"))
        await pipeline.drain()
    async with connected(tmp_path) as client:
        tools = (await client.list_tools()).tools
        found = await client.call_tool("search_sessions", {"query": "report as a file"})
        lost = await client.call_tool("read_session", {"session_id": "s9"})
    assert "user_id" in tools[0].input_schema["properties"]
    assert found.structured_content["passages"][0]["session_id"] == "s1"
    assert lost.is_error
    audit = [json.loads(line) for line in (tmp_path / "err").read_text().splitlines()]
    assert [(one["route"], one["status"]) for one in audit] == [
        ("stdio search_sessions", 200),
        ("stdio read_session", 404),
    ]


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({}, "there is no journal"),
        ({"AUTOPLAY_RAG_URL": "http://127.0.0.1:1"}, "AUTOPLAY_RAG_URL needs AUTOPLAY_RAG_KEY"),
        ({"AUTOPLAY_RAG_URL": "localhost", "AUTOPLAY_RAG_KEY": "k"}, "must begin with http"),
    ],
)
def test_wrong_usage_says_what_to_do(tmp_path, monkeypatch, env, said):
    monkeypatch.chdir(tmp_path)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=said):
        mcp()


async def test_a_server_that_stalls_is_not_waited_for():
    asked = asyncio.Event()

    async def stall(_, writer):
        asked.set()
        with closing(writer):
            await over.wait()

    over = asyncio.Event()
    async with await asyncio.start_server(stall, "127.0.0.1", 0) as stalled:
        target = relay.Target(f"http://127.0.0.1:{stalled.sockets[0].getsockname()[1]}", "a-key")
        relayed = relay.Relay(lambda: target, timeout=0.2)
        async with Client(relayed.server()) as client:
            said = await client.call_tool("user_history", {})
        await relayed.aclose()
        over.set()
    assert asked.is_set()
    assert said.is_error
    assert said.content[0].text == (
        "This is not available: the server does not answer in time. Nothing was searched."
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_it_while_the_input_is_open(running, tmp_path, number):
    env = {"AUTOPLAY_RAG_URL": running.server.url, "AUTOPLAY_RAG_KEY": KEYS.read}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        # Under `nohup` and in a background job, a process inherits that SIGINT is ignored.
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "sys.argv[1:] = ['mcp'];"
        "from autoplay_rag.cli import main; main()",
        cwd=tmp_path,
        env=environment(**env),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    message = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    process.stdin.write(json.dumps(message).encode() + b"\n")
    async with asyncio.timeout(50):
        assert json.loads(await process.stdout.readline())["id"] == 1
        process.send_signal(number)
        assert await process.wait() == 0
    assert await process.stderr.read() == b""
    process.stdin.close()


@pytest.mark.slow
async def test_the_end_of_the_input_ends_it(running, tmp_path):
    env = {"AUTOPLAY_RAG_URL": running.server.url, "AUTOPLAY_RAG_KEY": KEYS.read}
    assert await ended(tmp_path, **env) == (0, "", "")

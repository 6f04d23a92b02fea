"""The blocks of docs/recipes/mcp.md run against a server, as their reader runs them."""

import asyncio
import json
import os
import re
import sys
from pathlib import Path

import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from pipelines import make_actions
from serve_server import KEYS

PAGE = (Path(__file__).parents[2] / "docs" / "recipes" / "mcp.md").read_text()
ADDRESS = "http://127.0.0.1:8760"
# Creating an environment and installing LangChain takes a minute on a busy machine.
INSTALLING = 280


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
async def filled(serve):
    async with serve() as running:
        await running.pipeline.accept(make_actions("s1", "promo code has expired", user="u_030"))
        await running.pipeline.drain()
        yield running


async def run(*command, seconds=50, **env):
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, **env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), seconds)
    except BaseException:
        process.kill()
        raise
    assert process.returncode == 0, err.decode()[-2000:]
    return out.decode()


async def shown(python, block, running):
    code = block.replace(ADDRESS, running.server.url)
    return await run(python, "-c", code, AUTOPLAY_RAG_KEY=KEYS.read)


@pytest.mark.slow
@pytest.mark.parametrize("block", blocks("python"), ids=["sdk", "llama-index"])
async def test_the_python_blocks_find_it(block, filled):
    assert "promo code has expired" in await shown(sys.executable, block, filled)


@pytest.mark.slow
@pytest.mark.timeout(2 * INSTALLING)
async def test_the_langchain_block_finds_it_from_an_environment_of_its_own(filled, tmp_path):
    python = tmp_path / "venv" / "bin" / "python"
    await run(sys.executable, "-m", "venv", tmp_path / "venv")
    install = (python, "-m", "pip", "install", "-q", "langchain-mcp-adapters>=0.3,<0.4")
    await run(*install, seconds=INSTALLING)
    (block,) = blocks("python langchain")
    assert "promo code has expired" in await shown(python, block, filled)


async def test_the_configuration_for_http(filled):
    (block,) = blocks("json http")
    server = json.loads(block.replace(ADDRESS, filled.server.url))["mcpServers"]["autoplay"]
    headers = {k: v.replace("${AUTOPLAY_RAG_KEY}", KEYS.read) for k, v in server["headers"].items()}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=30, verify=False) as http,
        Client(streamable_http_client(server["url"], http_client=http)) as client,
    ):
        found = await client.call_tool("search_sessions", {"query": "promo code"})
    assert "has expired" in found.content[0].text


@pytest.mark.slow
async def test_the_configuration_for_a_command(filled):
    (block,) = blocks("json stdio")
    block = block.replace(ADDRESS, filled.server.url).replace("a read key or a token", KEYS.read)
    server = json.loads(block)["mcpServers"]["autoplay"]
    assert server["command"] == "autoplay-rag"
    started = StdioServerParameters(
        command=sys.executable,
        args=["-m", "autoplay_rag", *server["args"]],
        env={**os.environ, **server["env"]},
    )
    async with Client(stdio_client(started)) as client:
        found = await client.call_tool("search_sessions", {"query": "promo code"})
    assert "has expired" in found.content[0].text

"""docs/start.md works as its reader works: connector, server, commands and Python, one after another."""

import asyncio
import os
import re
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from test_docs import BLOCK, PLACEHOLDER, run_block

PAGE = (Path(__file__).parents[1] / "docs" / "start.md").read_text()
CONNECTOR, SERVER = "http://127.0.0.1:8765", "http://127.0.0.1:8760"
ASKED = re.findall(r"^\$ autoplay-rag ((?:search|sessions?) .+)$", PAGE, re.MULTILINE)
SERVED, *ALONE = BLOCK.findall(PAGE)


@asynccontextmanager
async def running(*command, folder):
    """Run a command until the end of the block. Yields the address that it prints first."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "autoplay_rag", *command, "--port", "0",
        cwd=folder, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        line = (await asyncio.wait_for(process.stdout.readline(), 50)).decode()
        yield line.removeprefix("serving ").strip()
    finally:
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 50) == 0


async def run(*command, folder):
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 50)
    assert process.returncode == 0, err.decode()
    return out.decode()


@pytest.mark.slow
@pytest.mark.timeout(200)
async def test_the_steps_work_in_their_order(tmp_path):
    assert f"autoplay-rag serve {CONNECTOR}/stream/northwind\nserving {SERVER}\n" in PAGE
    command = sys.executable, "-m", "autoplay_rag"
    async with (
        running("connector", folder=tmp_path) as stream,
        running("serve", stream, folder=tmp_path),
    ):
        assert stream.endswith("/stream/northwind")
        while "received             369" not in await run(*command, "status", folder=tmp_path):
            pass  # each look takes as long as a process takes to start
        for asked in ASKED:
            words = re.findall(r'"[^"]+"|\S+', asked)
            found = await run(*command, *(word.strip('"') for word in words), folder=tmp_path)
            assert "ps_99b4cf1c49fe" in found or "This code has expired" in found
        shown = await run(sys.executable, "-W", "error", "-c", SERVED, folder=tmp_path)
        assert "ps_99b4cf1c49fe u_030" in shown
        assert "<user_activity>" in shown


@pytest.mark.slow
@pytest.mark.parametrize("code", ALONE, ids=["pipeline", "client"])
async def test_the_blocks_without_a_server_work(code, tmp_path):
    assert PLACEHOLDER in code
    await run_block(code, tmp_path, sys.executable)

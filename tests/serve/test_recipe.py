"""The blocks of docs/recipes/serve.md run against `autoplay-rag serve`, as its reader runs them."""

import asyncio
import os
import re
import shutil
import sys
from pathlib import Path

import httpx
import pytest
from serve_server import KEYS

from autoplay_rag.devserver import LocalConnector
from autoplay_rag.serve.building import ROUTERS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "recipes" / "serve.md").read_text()
ADDRESS = "http://127.0.0.1:8760"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


async def run(*command, folder, **env):
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env=env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 50)
    assert process.returncode == 0, err.decode()
    return out.decode()


@pytest.mark.slow
async def test_the_blocks_work(tmp_path):
    env = {
        **os.environ,
        "AUTOPLAY_RAG_ADMIN_KEY": KEYS.admin,
        "AUTOPLAY_RAG_READ_KEY": KEYS.read,
        "PYTHONUNBUFFERED": "1",
    }
    async with LocalConnector() as connector:
        server = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "autoplay_rag", "serve", connector.url, "--port", "0",
            "--store", "chroma:./chroma", cwd=tmp_path, env=env, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            line = (await asyncio.wait_for(server.stdout.readline(), 50)).decode()
            url = line.removeprefix("serving ").strip()
            headers = {"authorization": f"Bearer {KEYS.read}"}
            async with httpx.AsyncClient(base_url=url, headers=headers) as client:
                while (await client.get("/v1/ledger")).json()["received"] < 369:  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.1)
            (asked,) = blocks("bash")
            if shutil.which("curl"):
                found = await run("sh", "-c", asked.replace(ADDRESS, url), folder=tmp_path, **env)
                assert "u_030" in found
            client_code, from_python, mint, own = blocks("python")
            asking = client_code.replace(ADDRESS, url)
            shown = await run(sys.executable, "-c", asking, folder=tmp_path, **env)
            assert "u_030" in shown
            assert 'data: {"seq":' in shown
            asking = from_python.replace(ADDRESS, url)
            shown = await run(sys.executable, "-c", asking, folder=tmp_path, **env)
            assert "u_030" in shown
            assert "actions\n" in shown
            assert (await run(sys.executable, "-c", mint, folder=tmp_path, **env)).count(".") == 2
            await run(sys.executable, "-c", own, folder=tmp_path, **env)
        finally:
            if server.returncode is None:
                server.terminate()
            assert await asyncio.wait_for(server.wait(), 50) == 0


def test_every_route_is_on_the_page():
    for router in ROUTERS:
        for route in router.routes:
            if route.path_format != "/":
                last = route.path_format.rpartition("/")[2]
                assert f"/{last}" in PAGE, route.path_format

"""Kill `autoplay-rag serve` at random moments while payloads come in, and count what is left.

The test and `benchmarks.serve_kill` share it.
"""

import asyncio
import os
import random
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import msgspec
from pipelines import make_actions

SESSIONS = 10
KEY = "admin-key-of-the-kills"


@dataclass(frozen=True)
class Killed:
    """What was found after the last kill."""

    pushed: int
    acknowledged: int
    lost: int
    doubled: int
    balanced: bool
    clean: bool
    exit_code: int


@asynccontextmanager
async def serving(folder: Path):
    """Start the command; give its process and a client."""
    env = {**os.environ, "AUTOPLAY_RAG_ADMIN_KEY": KEY, "PYTHONUNBUFFERED": "1"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "autoplay_rag", "serve", "--port", "0",
        cwd=folder, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        line = await asyncio.wait_for(process.stdout.readline(), 60)
        url = line.decode().removeprefix("serving ").strip()
        headers = {"authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as client:
            yield process, client
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def kill_again_and_again(folder: Path, kills: int) -> Killed:
    """Push until killed, `kills` times, then let it end, and compare."""
    acknowledged: set[str] = set()
    number = 0
    for _ in range(kills):
        async with serving(folder) as (process, client):
            number = await _push_until_killed(process, client, number, acknowledged)
    async with serving(folder) as (process, client):
        while (ledger := (await client.get("/v1/ledger")).json())["pending"]:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.1)
        titles = [title async for title in _titles(client)]
        job = (await client.post("/v1/jobs", json={"kind": "verify"})).json()
        while (job := (await client.get(f"/v1/jobs/{job['id']}")).json())["ended_at"] is None:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        process.terminate()
        code = await asyncio.wait_for(process.wait(), 60)
    return Killed(
        pushed=number,
        acknowledged=len(acknowledged),
        lost=len(acknowledged - set(titles)),
        doubled=len(titles) - len(set(titles)),
        balanced=ledger["balanced"],
        clean=job["report"]["clean"] is True,
        exit_code=code,
    )


async def _push_until_killed(process, client, number: int, acknowledged: set[str]) -> int:
    seconds = random.Random(number).uniform(0.05, 1.0)
    asyncio.get_running_loop().call_later(seconds, process.kill)
    while True:
        number += 1
        payload = make_actions(f"s{number % SESSIONS}", f"action {number}", at=1000.0 + number)
        body = {"type": "actions", **msgspec.to_builtins(payload)}
        try:
            answer = await client.post("/v1/webhooks/acme", json=body)
        except httpx.HTTPError:
            return number
        assert answer.status_code == 200
        acknowledged.add(f"action {number}")


async def _titles(client):
    for session in range(SESSIONS):
        part, cursor = {"next": ""}, {}
        while part["next"] is not None:
            params = {"limit": 5000, **cursor}
            found = await client.get(f"/v1/sessions/s{session}", params=params)
            if found.status_code != 200:
                break
            part = found.json()
            cursor = {"cursor": part["next"]}
            for event in part["events"]:
                yield event["title"]

"""`autoplay-rag serve` is killed at random moments while payloads come in."""

import asyncio
import os
import random
import sys
from contextlib import asynccontextmanager

import httpx
import msgspec
import pytest
from pipelines import make_actions
from serve_server import KEYS

KILLS = 8
SESSIONS = 10


@asynccontextmanager
async def serving(folder):
    """Start the command; give its process and a client."""
    env = {**os.environ, "AUTOPLAY_RAG_ADMIN_KEY": KEYS.admin, "PYTHONUNBUFFERED": "1"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "autoplay_rag", "serve", "--port", "0",
        cwd=folder, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        line = await asyncio.wait_for(process.stdout.readline(), 60)
        headers = {"authorization": f"Bearer {KEYS.admin}"}
        url = line.decode().removeprefix("serving ").strip()
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as client:
            yield process, client
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def push_until_killed(process, client, number, acknowledged):
    source = random.Random(number)
    asyncio.get_running_loop().call_later(source.uniform(0.05, 1.0), process.kill)
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


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_nothing_that_was_acknowledged_is_lost_or_doubled(tmp_path):
    acknowledged, number = set(), 0
    for _ in range(KILLS):
        async with serving(tmp_path) as (process, client):
            number = await push_until_killed(process, client, number, acknowledged)
    assert len(acknowledged) > KILLS
    async with serving(tmp_path) as (process, client):
        while (ledger := (await client.get("/v1/ledger")).json())["pending"]:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.1)
        titles = []
        for session in range(SESSIONS):
            found = await client.get(f"/v1/sessions/s{session}")
            if found.status_code == 200:
                titles += [event["title"] for event in found.json()["events"]]
        job = (await client.post("/v1/jobs", json={"kind": "verify"})).json()
        while (job := (await client.get(f"/v1/jobs/{job['id']}")).json())["ended_at"] is None:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 60) == 0
    assert acknowledged <= set(titles)
    assert len(titles) == len(set(titles)) <= number
    assert ledger["balanced"]
    assert job["report"]["clean"] is True

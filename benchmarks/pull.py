"""Measure the cost of watching 2,000 users with a `LiveActivitySource`: CPU and memory.

The endpoint runs in a process of its own, with 50 actions of each user. Each user does something every
two minutes. Measured are the process time and the resident memory of the process that pulls, once
with an endpoint that knows `ETag` and once with one that sends every answer in full.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections import deque
from typing import ClassVar

from benchmarks.memory import resident_mb
from benchmarks.table import Figure, show

USERS = 2_000
INTERVAL = 30.0
ACTION_EVERY = 120.0
WARM_UP = 35.0
MEASURED = float(os.environ.get("PULL_SECONDS", "120"))
MOST_CPU = 0.10
MOST_GROWTH_MB = 5.0


class Endpoint(asyncio.Protocol):
    """One connection of the endpoint. Knows as much HTTP as the benchmark needs."""

    tags = True
    users: ClassVar[dict[bytes, deque[bytes]]] = {}
    counted: ClassVar[dict[bytes, int]] = {}

    def __init__(self) -> None:
        self._buffer = b""

    def connection_made(self, transport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while b"\r\n\r\n" in self._buffer:
            head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
            self._answer(head)

    def _answer(self, head: bytes) -> None:
        user = head.split(b" ", 2)[1].split(b"/")[3]
        kept, number = self._activity(user)
        tag = b'"%d"' % number
        if self.tags and b"\r\nif-none-match: " + tag in head.lower():
            self._transport.write(b"HTTP/1.1 304 Not Modified\r\nETag: " + tag + b"\r\n\r\n")
            return
        body = (
            (
                b'{"product_id":"bench","user_id":"'
                + user
                + b'","count":%d,"as_of":%.3f,"actions":[' % (len(kept), time.time())
            )
            + b",".join(kept)
            + b"]}"
        )
        etag = b"ETag: " + tag + b"\r\n" if self.tags else b""
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + etag
            + b"Content-Length: %d\r\n\r\n" % len(body) + body
        )  # fmt: skip

    def _activity(self, user: bytes) -> tuple[deque[bytes], int]:
        """The user's last 50 actions by now. Each user has their own moments."""
        phase = int(user.removeprefix(b"user-")) / USERS * ACTION_EVERY
        number = int((time.time() + phase) / ACTION_EVERY)
        kept = self.users.setdefault(user, deque(maxlen=50))
        first = self.counted.get(user, number - 50) + 1
        for n in range(first, number + 1):
            at = n * ACTION_EVERY - phase
            action = {
                "type": "click",
                "title": f"Item {n}",
                "description": f"User clicked item {n} on reports",
                "timestamp_start": at,
                "timestamp_end": at + 0.5,
                "raw_url": f"https://app.bench.example/reports/{n}?tab=1",
                "canonical_url": "https://app.bench.example/reports/:id",
                "index": n,
            }
            kept.append(json.dumps(action, separators=(",", ":")).encode())
        self.counted[user] = number
        return kept, number


async def _serve(tags: bool) -> None:
    Endpoint.tags = tags
    server = await asyncio.get_running_loop().create_server(Endpoint, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


async def _pull(port: int) -> dict:
    from autoplay_rag.sources import LiveActivitySource

    seen = 0

    async def on_actions(payload) -> None:
        nonlocal seen
        seen += payload.count

    users = {f"user-{n}" for n in range(USERS)}
    url = f"http://127.0.0.1:{port}"
    async with LiveActivitySource(url, "bench", "key", users=users, interval=INTERVAL) as source:
        source.on_actions(on_actions)
        source.run_in_background()
        await asyncio.sleep(WARM_UP)  # everybody was pulled once
        before, memory, requests = seen, resident_mb(), source.counts.requests
        started, cpu = time.monotonic(), time.process_time()
        await asyncio.sleep(MEASURED)
        wall = time.monotonic() - started
        return {
            "cpu": (time.process_time() - cpu) / wall,
            "memory": memory,
            "growth": resident_mb() - memory,
            "requests": (source.counts.requests - requests) / wall,
            "new": (seen - before) / wall,
            "failures": source.counts.failures,
            "unchanged": source.counts.unchanged,
        }


def _measure(tags: bool) -> dict:
    command = [sys.executable, "-m", "benchmarks.pull"]
    server = subprocess.Popen(
        [*command, "serve", "tags" if tags else "full"], stdout=subprocess.PIPE, text=True
    )
    try:
        port = server.stdout.readline().strip()
        done = subprocess.run([*command, "pull", port], capture_output=True, text=True, check=True)
        return json.loads(done.stdout)
    finally:
        server.terminate()
        server.wait()


def main() -> list[Figure]:
    figures = []
    for tags in (True, False):
        found = _measure(tags)
        assert not found["failures"], found
        how = "with ETag" if tags else "without ETag"
        figures += [
            Figure(
                f"CPU of pulling {USERS:,} users every {INTERVAL:.0f} s, {how}",
                f"{found['cpu']:.1%} of one core",
                f"{found['requests']:.0f} requests/s, {found['new']:.0f} new actions/s",
                f"under {MOST_CPU:.0%}", found["cpu"] < MOST_CPU,
            ),
            Figure(
                f"memory of it, {how}",
                f"{found['growth']:+.1f} MB in {MEASURED:.0f} s", f"{found['memory']:.0f} MB",
                f"under +{MOST_GROWTH_MB:.0f} MB", found["growth"] < MOST_GROWTH_MB,
            ),
        ]  # fmt: skip
    return figures


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        asyncio.run(_serve(sys.argv[2] == "tags"))
    elif sys.argv[1:2] == ["pull"]:
        print(json.dumps(asyncio.run(_pull(int(sys.argv[2])))))
    else:
        show(main())

"""Compare the client with the public SDK's: CPU per event, and whether one session blocks others."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

from benchmarks.streams import events, served
from benchmarks.table import Figure, show

CPU_EVENTS = 20_000
SESSIONS = 50


def _client(which: str, url: str):
    if which == "ours":
        from autoplay_rag import AsyncConnectorClient
    else:
        from autoplay_sdk import AsyncConnectorClient
    return AsyncConnectorClient(url, token="bench")


@dataclass(frozen=True)
class _Moment:
    wall: float
    cpu: float


async def _run_until(client, on_actions, done: asyncio.Event) -> _Moment:
    """Run a client until `done` and return the moment."""
    client.on_actions(on_actions)
    task = client.run_in_background()
    await done.wait()
    moment = _Moment(time.perf_counter(), time.process_time())
    task.cancel()
    await asyncio.wait([task])
    return moment


async def _cpu(which: str, url: str) -> float:
    """Microseconds of CPU per event with a callback that does nothing."""
    client = _client(which, url)
    done = asyncio.Event()
    seen = 0
    started = 0.0

    async def on_actions(payload) -> None:
        nonlocal seen, started
        seen += 1
        if seen == 1:
            started = time.process_time()
        if seen == CPU_EVENTS:
            done.set()

    ended_at = await _run_until(client, on_actions, done)
    return (ended_at.cpu - started) / (CPU_EVENTS - 1) * 1e6


async def _parallel(which: str, url: str, count: int) -> float:
    """Seconds from the first event until all callbacks, of 20 ms each, have ended."""
    client = _client(which, url)
    done = asyncio.Event()
    first = 0.0
    ended = 0

    async def on_actions(payload) -> None:
        nonlocal first, ended
        first = first or time.perf_counter()
        await asyncio.sleep(0.02)
        ended += 1
        if ended == count:
            done.set()

    ended_at = await _run_until(client, on_actions, done)
    return ended_at.wall - first


async def _isolation(which: str, url: str, count: int) -> float:
    """Seconds until the events of all other sessions are delivered while one session blocks for 2 s."""
    client = _client(which, url)
    done = asyncio.Event()
    first = 0.0
    others = 0
    expected = sum(1 for number in range(count) if number % SESSIONS)

    async def on_actions(payload) -> None:
        nonlocal first, others
        first = first or time.perf_counter()
        if payload.session_id == "session-000000":
            await asyncio.sleep(2.0)
            return
        others += 1
        if others == expected:
            done.set()

    ended_at = await _run_until(client, on_actions, done)
    return ended_at.wall - first


_MEASURES = {"cpu": _cpu, "parallel": _parallel, "isolation": _isolation}


def _measure(name: str, which: str, url: str, *args: int) -> float:
    """Run one measurement in a new process, so that imports of the other client do not count."""
    command = [sys.executable, "-m", "benchmarks.client", name, which, url, *map(str, args)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(found.stdout.splitlines()[-1])


def main() -> list[Figure]:
    figures = []
    with served(events(CPU_EVENTS, 1_000)) as url:
        rounds = [(_measure("cpu", "ours", url), _measure("cpu", "peer", url)) for _ in range(3)]
        ours, peer = (statistics.median(side) for side in zip(*rounds, strict=True))
        figures.append(
            Figure(
                f"CPU per event through the client, {CPU_EVENTS:,} events of 3 actions",
                f"{ours:.1f} µs = {ours / peer:.2f} of the SDK's",
                f"{peer:.1f} µs",
                "at most 0.5",
                ours <= 0.5 * peer,
            )
        )
    with served(events(500, SESSIONS)) as url:
        ours, peer = (_measure("parallel", which, url, 500) for which in ("ours", "peer"))
        figures.append(
            Figure(
                "500 events of 50 sessions, callbacks that await 20 ms: all done after the first",
                f"{ours:.2f} s", f"{peer:.2f} s", "within 0.3 s", ours <= 0.3,
            )
        )  # fmt: skip
    with served(events(100, SESSIONS)) as url:
        ours, peer = (_measure("isolation", which, url, 100) for which in ("ours", "peer"))
        figures.append(
            Figure(
                "one session's callbacks take 2 s: every other session's events delivered",
                f"{ours:.3f} s", f"{peer:.2f} s", "within 0.2 s", ours <= 0.2,
            )
        )  # fmt: skip
    return figures


if __name__ == "__main__":
    if len(sys.argv) > 1:
        name, which, url, *args = sys.argv[1:]
        print(json.dumps(asyncio.run(_MEASURES[name](which, url, *map(int, args)))))
    else:
        show(main())

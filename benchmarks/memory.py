"""Measure the memory of pending payloads: the RSS of a client whose callbacks never end."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.streams import events, served
from benchmarks.table import Figure, show

PAYLOADS = 100_000
SESSIONS = 2_000


def resident_mb() -> float:
    """This process's resident memory. Linux only."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


async def _waiting(url: str) -> dict:
    from autoplay_rag import AsyncConnectorClient

    before = resident_mb()
    never = asyncio.Event()
    client = AsyncConnectorClient(url, token="bench", max_pending=2 * PAYLOADS, drain_timeout=0.1)

    async def on_actions(payload) -> None:
        await never.wait()

    client.on_actions(on_actions)
    task = client.run_in_background()
    while client.pending < PAYLOADS:
        await asyncio.sleep(0.05)
    found = {"resident": resident_mb(), "before": before}
    task.cancel()
    await asyncio.wait([task])
    return found


def main() -> list[Figure]:
    with served(events(PAYLOADS, SESSIONS)) as url:
        command = [sys.executable, "-m", "benchmarks.memory", url]
        found = json.loads(
            subprocess.run(command, capture_output=True, text=True, check=True).stdout
        )
    return [
        Figure(
            f"resident memory, {PAYLOADS:,} payloads of 3 actions and {SESSIONS:,} sessions waiting",
            f"{found['resident']:.0f} MB", f"{found['before']:.0f} MB with nothing received",
            "under 400 MB", found["resident"] < 400,
        )
    ]  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(asyncio.run(_waiting(sys.argv[1]))))
    else:
        show(main())

"""Streams for the benchmarks, and a connector for them in its own process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PAGES = ("reports", "billing", "team", "integrations", "dashboards", "exports")


def events(count: int, sessions: int, actions: int = 3) -> Iterator[dict]:
    """Yield made-up batches, round robin over the sessions. No two actions are equal."""
    for number in range(count):
        session = number % sessions
        at = 1_700_000_000.0 + number * 0.01
        yield {
            "type": "actions",
            "product_id": "bench",
            "session_id": f"session-{session:06}",
            "user_id": f"user-{session % 997}",
            "email": None,
            "actions": [
                {
                    "title": f"Item {number}.{index}",
                    "description": f"User clicked item {number}.{index} on {PAGES[number % len(PAGES)]}",
                    "canonical_url": f"https://app.bench.example/{PAGES[number % len(PAGES)]}/:id",
                    "index": index,
                    "type": "click",
                    "timestamp_start": at + index,
                    "timestamp_end": at + index + 0.5,
                    "raw_url": f"https://app.bench.example/{PAGES[number % len(PAGES)]}/{number}?tab=1",
                    "session_id": f"session-{session:06}",
                    "user_id": f"user-{session % 997}",
                    "email": None,
                    "conversation_id": None,
                }
                for index in range(actions)
            ],
            "count": actions,
            "forwarded_at": at + 10,
        }


@contextmanager
def served(stream: Iterator[dict], rate: float | None = None) -> Iterator[str]:
    """Yield the URL of a connector that serves `stream` from its own process."""
    with tempfile.TemporaryDirectory() as folder:
        recording = Path(folder) / "recording.jsonl"
        with recording.open("w") as file:
            file.writelines(json.dumps(event, separators=(",", ":")) + "\n" for event in stream)
        command = [sys.executable, "-m", "benchmarks.streams", str(recording), str(rate or 0)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()
            server.wait()
            server.stdout.close()


async def _serve(recording: str, rate: float) -> None:
    import asyncio

    from autoplay_rag.devserver import LocalConnector

    async with LocalConnector(recording, rate=rate or None) as connector:
        print(connector.url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    import asyncio

    asyncio.run(_serve(sys.argv[1], float(sys.argv[2])))

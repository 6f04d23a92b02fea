"""A replica for `test_replicas.py`: accepts what it is sent, and stores its share."""

from __future__ import annotations

import asyncio
import json
import sys
from array import array
from dataclasses import asdict, replace
from hashlib import blake2b
from typing import Any

from autoplay_rag import IngestPipeline
from autoplay_rag.embedders.base import Embedder
from autoplay_rag.payloads import ActionsPayload, SlimAction
from autoplay_rag.stores import PgVectorStore

LEASE_SECONDS = 3.0


class SlowEmbedder(Embedder):
    """Takes a moment, so that a kill or a freeze meets something in flight."""

    model = "slow"
    max_inputs = 16

    async def embed(self, texts):
        await asyncio.sleep(0.03)
        return [
            array("f", [1.0 + byte for byte in blake2b(text.encode()).digest()[:8]])
            for text in texts
        ]


def title_only(payloads) -> str:
    return "\n".join(action.title for payload in payloads for action in payload.actions)


def payload_of(session: str, number: int) -> ActionsPayload:
    title = f"{session}-{number}"
    at = 1000.0 + number
    action = SlimAction(title, title, "https://app.test/p", 0, "click", at, at)
    return ActionsPayload("acme", session, None, None, [action], 1, at)


def say(**event: Any) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


async def main(dsn: str, schema: str) -> None:
    pipeline = IngestPipeline(
        PgVectorStore(dsn, schema=schema, index="none"),
        SlowEmbedder(),
        journal=dsn,
        batch_window=0.1,
        render=title_only,
    )
    pipeline._settings = replace(pipeline._settings, lease_seconds=LEASE_SECONDS)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    tasks: set[asyncio.Task[None]] = set()

    async def carry_out(command: dict[str, Any]) -> None:
        if command["do"] == "accept":
            await pipeline.on_actions(payload_of(command["session"], command["number"]))
            say(answer=command["id"])
        elif command["do"] == "drain":
            await pipeline.drain(timeout=120)
            say(answer=command["id"], ledger=asdict(pipeline.ledger), at=pipeline.watermark)
        else:
            assert pipeline._run is not None
            partitions = pipeline._run._replica.partitions
            say(answer=command["id"], owned=sorted(partitions.loaded if partitions else ()))

    async with pipeline:
        say(answer="started")
        while line := await reader.readline():
            task = asyncio.create_task(carry_out(json.loads(line)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.wait(tasks)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

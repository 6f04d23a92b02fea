"""A replica for `cluster.py`: a process with one pipeline, which carries out commands.

    python -m benchmarks.replica DSN OPTIONS

Commands come on stdin and answers go to stdout, one JSON object a line.
"""

from __future__ import annotations

import asyncio
import sys
from array import array
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from typing import Any

import msgspec

from autoplay_rag import IngestPipeline
from autoplay_rag.embedders.base import Embedder
from autoplay_rag.payloads import ActionsPayload, SlimAction
from autoplay_rag.stores import PgVectorStore

PRODUCT = "acme"
_AT_ONCE = 256
"""How many payloads `feed` hands over at once."""


@dataclass(frozen=True)
class Options:
    """How a replica is set up.

    Attributes:
        topic: The address of the topic that is the queue; "" without one.
        key: The key of its page; "" for no page.
    """

    schema: str
    lease_seconds: float = 10.0
    batch_window: float = 1.0
    embed_concurrency: int = 2
    embed_seconds: float = 0.05
    max_inputs: int = 16
    topic: str = ""
    session_seconds: float = 6.0
    key: str = ""


class WaitingEmbedder(Embedder):
    """An embedding service that takes the same time for each request."""

    model = "waits"

    def __init__(self, seconds: float, max_inputs: int) -> None:
        self._seconds = seconds
        self.max_inputs = max_inputs

    async def embed(self, texts: Sequence[str]) -> list[array[float]]:
        await asyncio.sleep(self._seconds)
        return [
            array("f", [1.0 + byte for byte in blake2b(text.encode(), digest_size=32).digest()])
            for text in texts
        ]


def titles(payloads: Sequence[Any]) -> str:
    """The text of a chunk: a line for each action, so that a chunk shows what it was made of."""
    return "\n".join(action.title for payload in payloads for action in payload.actions)


def title_of(session: str, number: int) -> str:
    return f"{session}-{number}"


def payload_of(session: str, number: int) -> ActionsPayload:
    title, at = title_of(session, number), 1.7e9 + number
    action = SlimAction(title, title, "https://app.test/p", 0, "click", at, at)
    return ActionsPayload(PRODUCT, session, None, None, [action], 1, at)


def say(**event: Any) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(event) + b"\n")
    sys.stdout.buffer.flush()


async def feed(pipeline: IngestPipeline, first: int, end: int) -> None:
    """Accept one payload for each session from `first` on."""
    slots = asyncio.Semaphore(_AT_ONCE)

    async def accept(number: int) -> None:
        async with slots:
            await pipeline.on_actions(payload_of(f"s{number}", 0))

    await asyncio.gather(*map(accept, range(first, end)))


def _journal(dsn: str, options: Options) -> dict[str, Any]:
    if not options.topic:
        return {"journal": dsn}
    kafka = {"session.timeout.ms": round(options.session_seconds * 1000)}
    return {"journal": options.topic, "catalog": dsn, "kafka_settings": kafka}


async def main(dsn: str, options: Options) -> None:
    pipeline = IngestPipeline(
        PgVectorStore(dsn, schema=options.schema, index="none"),
        WaitingEmbedder(options.embed_seconds, options.max_inputs),
        **_journal(dsn, options),
        batch_window=options.batch_window,
        embed_concurrency=options.embed_concurrency,
        render=titles,
    )
    settings = replace(pipeline._settings, lease_seconds=options.lease_seconds)  # noqa: SLF001
    pipeline._settings = settings  # noqa: SLF001
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    tasks: set[asyncio.Task[None]] = set()

    async def carry_out(command: dict[str, Any]) -> None:
        more: dict[str, Any] = {}
        if command["do"] == "accept":
            await pipeline.on_actions(payload_of(command["session"], command["number"]))
        elif command["do"] == "feed":
            await feed(pipeline, command["first"], command["end"])
        else:
            await pipeline.drain(timeout=command["timeout"])
            more = {"ledger": asdict(pipeline.ledger)}
        say(answer=command["id"], **more)

    async with pipeline, AsyncExitStack() as stack:
        url = ""
        if options.key:
            from benchmarks.replica_page import served

            url = await stack.enter_async_context(served(pipeline, options.key))
        say(answer="started", url=url)
        while line := await reader.readline():
            task = asyncio.create_task(carry_out(msgspec.json.decode(line)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.wait(tasks)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], msgspec.json.decode(sys.argv[2], type=Options)))

"""Stores events of two people, then forgets one of them, until it is killed.

python forget_child.py FOLDER [DSN]

With DSN, journal and store are in PostgreSQL, in a schema that belongs to the folder.
"""

import asyncio
import os
import random
import sys
import time
from array import array
from dataclasses import replace
from hashlib import md5
from pathlib import Path

from autoplay_rag import ActionsPayload, IngestPipeline, SlimAction
from autoplay_rag.embedders.base import Embedder
from autoplay_rag.stores import ChromaStore, PgVectorStore

COUNT = 120
LEASE_SECONDS = 2.0


class QuickEmbedder(Embedder):
    model = "quick"

    async def embed(self, texts):
        return [self.vector(text) for text in texts]

    def vector(self, text):
        source = random.Random(text)
        return array("f", [source.uniform(-1, 1) for _ in range(16)])


def schema_of(folder: Path) -> str:
    return f"k_{md5(str(folder).encode(), usedforsecurity=False).hexdigest()}"


def make(folder: Path, dsn: str | None = None) -> IngestPipeline:
    store = PgVectorStore(dsn, schema=schema_of(folder)) if dsn else ChromaStore(folder / "chroma")
    pipeline = IngestPipeline(
        store,
        QuickEmbedder(),
        journal=dsn or folder / "journal.db",
        batch_window=0.0,
        max_batch_actions=2,
    )
    # The next process goes on when the lease of this one has ended.
    pipeline._settings = replace(pipeline._settings, lease_seconds=LEASE_SECONDS)
    return pipeline


async def send(pipeline: IngestPipeline, user: str, numbers) -> None:
    for number in numbers:
        at = round(time.time(), 3)  # Chroma rounds a 17th digit, which `verify` reports
        text = f"{user}word{number}"
        action = SlimAction(text, f"User clicked {text}", "https://a.test", 0, "click", at, at)
        session = f"{user}{number // 5}"
        await pipeline.on_actions(ActionsPayload("p", session, f"{user}id", None, [action], 1, at))


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


async def main(folder: Path, dsn: str | None = None) -> None:
    async with make(folder, dsn) as pipeline:
        await asyncio.gather(*(send(pipeline, u, range(COUNT)) for u in ("ann", "bob")))
        await pipeline.drain()
        await send(pipeline, "ann", range(COUNT, COUNT + 10))
        say("ready")
        receipt = await pipeline.forget(user_id="annid")
        say("deleted")
        while not (await pipeline.receipt(receipt.number)).erased:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)
    say("end")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), *sys.argv[2:]))

"""Sends events, summaries and late identities, forgets people and changes the model, until killed.

python everything_child.py FOLDER ROUND [DSN]

With DSN, journal and store are in PostgreSQL, in a schema that belongs to the folder. Each line that it prints is a fact: an event was accepted, a person is being forgotten, or is forgotten.
"""

import asyncio
import os
import random
import sys
import time
from array import array
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from forget_child import LEASE_SECONDS, schema_of

from autoplay_rag import ActionsPayload, IngestPipeline, SlimAction, SummaryPayload
from autoplay_rag.embedders.base import Embedder
from autoplay_rag.errors import StoreMismatchError
from autoplay_rag.stores import ChromaStore, PgVectorStore

MODELS = {"one": 8, "two": 12}


class QuickEmbedder(Embedder):
    max_inputs = 16

    def __init__(self, model: str) -> None:
        self.model = model

    async def embed(self, texts):
        await asyncio.sleep(0.002)
        return [self.vector(text) for text in texts]

    def vector(self, text):
        source = random.Random(text)
        return array("f", [source.uniform(-1, 1) for _ in range(MODELS[self.model])])


async def opened(folder: Path, dsn: str | None = None) -> tuple[IngestPipeline, str]:
    """Start a pipeline with the model that the store has."""
    for model in MODELS:
        pipeline = IngestPipeline(
            PgVectorStore(dsn, schema=schema_of(folder)) if dsn else ChromaStore(folder / "chroma"),
            QuickEmbedder(model),
            journal=dsn or folder / "journal.db",
            batch_window=0.02,
            max_batch_actions=3,
            summaries="replace",
        )
        # The next process goes on when the lease of this one has ended.
        pipeline._settings = replace(pipeline._settings, lease_seconds=LEASE_SECONDS)
        try:
            await pipeline.start()
        except StoreMismatchError:
            continue
        return pipeline, model
    raise AssertionError("the store has another model")


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def word_of(turn: int, number: int) -> str:
    return f"w{turn}x{number}x"


class Child:
    def __init__(self, pipeline: IngestPipeline, turn: int) -> None:
        self.pipeline = pipeline
        self.turn = turn
        self.source = random.Random(turn)
        self.number = 0

    async def send(self) -> None:
        """One session: events without a person, then events that name one, then maybe a summary."""
        while True:
            source, session = self.source, f"s{self.turn}-{self.number}"
            user = f"u{self.turn}-{source.randrange(6)}"
            count = source.randint(1, 6)
            for step in range(count):
                word = word_of(self.turn, self.number)
                self.number += 1
                at = round(time.time(), 3)
                named = user if step >= count // 2 else None
                action = SlimAction(
                    word, f"User clicked {word}", "https://a.test", 0, "click", at, at
                )
                payload = ActionsPayload("p", session, named, None, [action], 1, at)
                outcome = await self.pipeline.accept(payload)
                say("event", word, session, user, "named" if named else "unnamed", outcome)
            if source.random() < 0.4:
                at = round(time.time(), 3)
                summary = SummaryPayload("p", session, f"did {session}", source.randint(0, 4), at)
                say("summary", session)
                await self.pipeline.on_summary(summary)
            await asyncio.sleep(source.choice((0.0, 0.005, 0.02)))

    async def forget(self) -> None:
        for number in range(6):
            await asyncio.sleep(self.source.uniform(0.1, 0.5))
            user = f"u{self.turn}-{number}"
            say("forgetting", user)
            receipt = await self.pipeline.forget(user_id=user)
            if receipt.deleted:
                say("forgotten", user)

    async def change_model(self, model: str) -> None:
        while True:
            await asyncio.sleep(self.source.uniform(0.0, 0.3))
            model = "two" if model == "one" else "one"
            say("model", model)
            await self.pipeline.reembed(QuickEmbedder(model), render=self.source.random() < 0.3)


async def main(folder: Path, turn: int, dsn: str | None = None) -> None:
    pipeline, model = await opened(folder, dsn)
    async with asyncio.TaskGroup() as group:
        child = Child(pipeline, turn)
        for _ in range(3):
            group.create_task(child.send())
        group.create_task(child.forget())
        group.create_task(child.change_model(model))
        say("ready")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]))

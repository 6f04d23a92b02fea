"""An ingest that prints each step until it is killed or completes.

    python kill_child.py FOLDER EVENTS [DSN SCHEMA]

With DSN and SCHEMA, journal and store are in PostgreSQL. It passes events 0 to EVENTS - 1 to `on_actions`, except those listed in FOLDER/reported, and prints

    accepted 17      `on_actions` has returned for event 17
    > embed, < embed a step towards the store begins, ends
    refused 47       the store takes no part of event 47
    worker 4711      the pid of the Chroma worker, if there is one
    end              everything is stored, and the pipeline is closed
"""

import asyncio
import logging
import os
import random
import sys
import time
from array import array
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from autoplay_rag import ActionsPayload, IngestPipeline, SlimAction
from autoplay_rag.cluster.queue import PostgresQueueTables
from autoplay_rag.embedders.base import Embedder
from autoplay_rag.journal.queue import QueueTables
from autoplay_rag.stores import ChromaStore, PgVectorStore

SESSIONS = 100
SENDERS = 8
POISON = "poison"
REFUSED_EVERY = 40
LEASE_SECONDS = 2.0
STEPS = {"record_plans": "plan"}


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())  # unbuffered: what was printed survives a kill


@contextmanager
def step(name: str):
    say(f"> {name}")
    yield
    say(f"< {name}")


class QuickEmbedder(Embedder):
    model = "quick"
    max_inputs = 32

    async def embed(self, texts):
        with step("embed"):
            await asyncio.sleep(0.002)
            return [self.vector(text) for text in texts]

    def vector(self, text):
        source = random.Random(text)
        return array("f", [source.uniform(-1, 1) for _ in range(16)])


class Talking:
    async def upsert(self, chunks, vectors):
        with step("upsert"):
            if any(POISON in chunk.text for chunk in chunks):
                raise ValueError(POISON)
            await super().upsert(chunks, vectors)

    async def delete(self, ids):
        with step("delete"):
            await super().delete(ids)


class TalkingStore(Talking, ChromaStore):
    pass


class TalkingPgStore(Talking, PgVectorStore):
    pass


def talk(tables: type, name: str) -> None:
    """Make a method of the journal print when it begins and ends."""
    method = getattr(tables, name)

    def talking(*args):
        with step(STEPS.get(name, name)):
            time.sleep(0.001)  # a kill takes as long to arrive: some come before the call,
            result = method(*args)
            time.sleep(0.001)  # and some after it
            return result

    setattr(tables, name, talking)


def payload(number: int) -> ActionsPayload:
    """One action. Every `REFUSED_EVERY`th payload fills three chunks; the store refuses one of them."""
    at = 1_700_000_000.0 + number
    parts = [str(number)]
    if number % REFUSED_EVERY == 1:
        parts = [str(number)] * 5 + [POISON] + [str(number)] * 5
    actions = [
        SlimAction(title, timestamp_start=at + i, timestamp_end=at + i)
        for i, title in enumerate(parts)
    ]
    return ActionsPayload(
        "p", f"s{number % SESSIONS}", actions=actions, count=len(actions), forwarded_at=at
    )


def titles(payloads) -> str:
    return "\n".join(action.title for payload in payloads for action in payload.actions)


async def send(pipeline: IngestPipeline, numbers) -> None:
    for number in numbers:
        await pipeline.on_actions(payload(number))
        say(f"accepted {number}")
        await asyncio.sleep(0.003)  # long enough for all steps to run concurrently


async def main(folder: Path, events: int, dsn: str = "", schema: str = "") -> None:
    logging.getLogger("autoplay_rag").setLevel(logging.CRITICAL)  # each refused payload is logged
    tables = PostgresQueueTables if dsn else QueueTables
    for name in ("record_plans", "acknowledge", "accept"):
        talk(tables, name)
    store = TalkingPgStore(dsn, schema=schema) if dsn else TalkingStore(folder / "chroma")
    reported = set((folder / "reported").read_text().split())
    pipeline = IngestPipeline(
        store,
        QuickEmbedder(),
        journal=dsn or folder / "journal.db",
        batch_window=0.05,
        max_batch_actions=4,
        max_attempts=1,
        render=titles,
    )
    # The next process goes on when the lease of this one has ended.
    pipeline._settings = replace(pipeline._settings, lease_seconds=LEASE_SECONDS)
    async with pipeline:
        if not dsn:
            say(f"worker {store._worker._process._popen.pid}")
        rest = [number for number in range(events) if str(number) not in reported]
        async with asyncio.TaskGroup() as group:
            for sender in range(SENDERS):  # each session has one sender, which keeps its order
                mine = [n for n in rest if n % SESSIONS % SENDERS == sender]
                group.create_task(send(pipeline, mine))
        await pipeline.drain()
        assert pipeline.ledger.balanced
        assert pipeline.ledger.pending == 0
        refused = [number for number in range(events) if number % REFUSED_EVERY == 1]
        assert pipeline.ledger.dead == len(refused)
        for number in refused:
            say(f"refused {number}")
    say("end")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]))

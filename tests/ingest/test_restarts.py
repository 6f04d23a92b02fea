"""Ledger and contents, end to end, with random payloads, refusals and restarts."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pipelines import copy_journal

from autoplay_rag import IngestPipeline
from autoplay_rag.content.keys import payload_key
from autoplay_rag.journal.reader import JournalReader
from autoplay_rag.payloads import ActionsPayload, SlimAction, SummaryPayload
from autoplay_rag.stores import MemoryStore

USERS = [None, "ann", "bob"]


class RefusingStore(MemoryStore):
    """Refuses every request that contains a poisoned chunk."""

    async def upsert(self, chunks, vectors) -> None:
        if any("poison" in chunk.text for chunk in chunks):
            raise ValueError("poison")
        await super().upsert(chunks, vectors)


@dataclass(frozen=True)
class Send:
    payloads: list


@dataclass(frozen=True)
class Restart:
    """`how`: "close" closes cleanly; "kill" continues with a copy of the files at that moment."""

    how: str
    drain: bool


@dataclass(frozen=True)
class Retry:
    """Retry the dead letters."""


@st.composite
def stories(draw):
    payloads: list = []
    steps: list = []
    for _ in range(draw(st.integers(1, 6))):
        fresh = []
        for _ in range(draw(st.integers(0, 6))):
            number = len(payloads)
            session = draw(st.sampled_from(["a", "b", None]))
            if draw(st.integers(0, 5)) == 0:
                fresh.append(SummaryPayload("p", session, f"{number}.summary", 1, 100.0 + number))
            else:
                poison = ".poison" if draw(st.integers(0, 5)) == 0 else ""
                user = draw(st.sampled_from(USERS))
                names = [f"{number}.{i}{poison}" for i in range(draw(st.integers(1, 5)))]
                actions = [SlimAction(n, n, timestamp_start=9.0, timestamp_end=9.0) for n in names]
                fresh.append(
                    ActionsPayload("p", session, user, None, actions, len(actions), 100.0 + number)
                )
            payloads.append(fresh[-1])
        again = draw(st.lists(st.sampled_from(payloads), max_size=3)) if payloads else []
        steps.append(Send(fresh + again))
        step = draw(st.sampled_from(["close", "kill", "kill", "retry", "go on"]))
        if step == "retry":
            steps.append(Retry())
        elif step != "go on":
            steps.append(Restart(step, draw(st.booleans())))
    return steps


SETTINGS = st.fixed_dictionaries(
    {
        "batch_window": st.sampled_from([0.0, 0.01, 60.0]),
        "max_batch_actions": st.integers(1, 7),
        "durability": st.sampled_from(["normal", "full"]),
        "keep_payloads": st.booleans(),
    }
)


def lines_of(payload) -> list[str]:
    if isinstance(payload, ActionsPayload):
        return [action.title for action in payload.actions]
    return [payload.summary]


def render(payloads) -> str:
    return "\n".join(line for payload in payloads for line in lines_of(payload))


@settings(
    # One example runs several pipelines.
    max_examples=settings.default.max_examples // 2,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(steps=stories(), options=st.lists(SETTINGS, min_size=1, max_size=3))
def test_each_accepted_payload_is_in_the_store_once_whatever_happened(
    steps, options, scripted_embedder
):
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(play(steps, options, Path(folder), scripted_embedder))


async def play(steps, options, folder, make_embedder) -> None:
    async with asyncio.timeout(30):  # a hang must be a failure that Hypothesis can shrink
        story = Story(options, folder, make_embedder())
        await story.begin()
        for step in steps:
            await story.take(step)
        await story.check()


class Story:
    """One journal over many runs; each run has a store that is empty at first."""

    def __init__(self, options, folder, embedder) -> None:
        self.options = options
        self.folder = folder
        self.embedder = embedder
        self.journal = folder / "0.db"
        self.runs = 0
        self.sent: list = []
        self.store: RefusingStore
        self.pipeline: IngestPipeline

    async def begin(self) -> None:
        self.store = RefusingStore()
        self.pipeline = IngestPipeline(
            self.store,
            self.embedder,
            journal=self.journal,
            render=render,
            max_attempts=1,
            **self.options[self.runs % len(self.options)],
        )
        await self.pipeline.start()
        self.runs += 1

    async def take(self, step) -> None:
        if isinstance(step, Send):
            await asyncio.gather(*(self.pipeline.accept(payload) for payload in step.payloads))
            self.sent += step.payloads
        elif isinstance(step, Retry):
            await self.pipeline.dead_letters.retry()
        else:
            await self.start_again(step)

    async def start_again(self, step) -> None:
        watermark = None
        if step.drain:
            await self.pipeline.drain()
            watermark = self.pipeline.watermark
        received = self.pipeline.ledger.received
        if step.how == "kill":
            killed = await self.copy_between_commits()
            await self.pipeline.aclose()
            self.journal = killed
        else:
            await self.pipeline.aclose()
        await self.begin()
        ledger = self.pipeline.ledger
        assert ledger.received == received == len(self.sent)
        assert ledger.balanced
        if watermark is not None:
            assert ledger.pending == 0

    async def copy_between_commits(self) -> Path:
        """Copy what a kill would leave. The copy runs on the writer thread, so nothing is written."""
        journal = self.pipeline._run._journal
        folder = self.folder / str(self.runs)
        return await journal._writer.run(copy_journal, self.journal, folder)

    async def check(self) -> None:
        pipeline = self.pipeline
        await pipeline.drain()
        distinct = {payload_key(payload): payload for payload in self.sent}
        good = [p for p in distinct.values() if "poison" not in lines_of(p)[0]]
        ledger = pipeline.ledger
        assert ledger.balanced
        assert ledger.pending == 0
        assert ledger.received == len(self.sent)
        assert ledger.stored == len(good)
        assert ledger.dead == len(distinct) - len(good)
        assert ledger.duplicate == len(self.sent) - len(distinct)
        chunks = [chunk async for page in self.store.scan() for chunk in page]
        found = Counter(line for chunk in chunks for line in chunk.text.split("\n"))
        assert found == Counter(line for payload in good for line in lines_of(payload))
        # No chunk mixes two sessions or two people.
        about = {line: payload for payload in good for line in lines_of(payload)}
        for chunk in chunks:
            payloads = [about[line] for line in chunk.text.split("\n")]
            assert {p.session_id for p in payloads} == {chunk.metadata.get("session_id")}
            users = {getattr(p, "user_id", None) for p in payloads} - {None}
            assert users <= {chunk.metadata.get("user_id")}
        letters = await pipeline.dead_letters.list()
        assert len(letters) == ledger.dead
        await pipeline.aclose()
        assert JournalReader(self.journal).status().ledger.stored == ledger.stored

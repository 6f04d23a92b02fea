"""Kill an ingest with `kill -9` repeatedly, and check that nothing is lost or stored twice."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

sys.path.insert(0, str(Path(__file__).parent))

from kill_child import QuickEmbedder

from autoplay_rag import IngestPipeline
from autoplay_rag.maintenance import VerifyReport
from autoplay_rag.maintenance.alone import verify_alone
from autoplay_rag.stores import ChromaStore, PgVectorStore, VectorStore
from autoplay_rag.stores.base import Filter

CHILD = Path(__file__).with_name("kill_child.py")
STEPS = {"accept": 4, "plan": 16, "embed": 16, "upsert": 60, "acknowledge": 60, "delete": 300}
"""The steps of the ingest, and about how many events one occurrence handles."""
_KILLS_OF_ONE = 5
_BY_TIME = 0.3
_KILL_CHROMA_TOO = 0.25
_LONGEST_RUN_SECONDS = 60.0


@dataclass
class Outcome:
    """The result.

    Attributes:
        kills: How often the ingest was killed.
        rounds: The number of ingests.
        during: The number of kills during each step.
        reported: Events for which `on_actions` had returned.
        lost: Events that were reported but are not stored, except those that the store refuses.
        doubled: Events stored more than once.
        unclean: What `verify` found at the end of an ingest.
    """

    kills: int = 0
    rounds: int = 0
    during: Counter[str] = field(default_factory=Counter)
    reported: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    unclean: list[str] = field(default_factory=list)


async def kill_again_and_again(
    folder: Path, kills: int, events: int, seed: int, dsn: str | None = None
) -> Outcome:
    """Ingest `events` events into a new folder, repeatedly, until `kills` kills have happened.

    With `dsn`, they go into a new schema of PostgreSQL.
    """
    chance = random.Random(seed)
    outcome = Outcome()
    while outcome.kills < kills:
        ingest = _Ingest(folder / str(outcome.rounds), events, chance, dsn)
        await ingest.run(min(kills - outcome.kills, _KILLS_OF_ONE))
        stored = await _stored(ingest.store())
        outcome.rounds += 1
        outcome.kills += ingest.kills
        outcome.during += ingest.during
        outcome.reported += len(ingest.reported)
        outcome.lost += sorted(ingest.reported - ingest.refused - stored.keys())
        # No chunk of a refused event may remain, however many chunks it filled.
        outcome.doubled += sorted(
            number for number, times in stored.items() if times > 1 or number in ingest.refused
        )
        report = await ingest.verify()
        if not report.clean:
            outcome.unclean.append(str(report))
    return outcome


class _Ingest:
    """One ingest, in one or more processes."""

    def __init__(self, folder: Path, events: int, chance: random.Random, dsn: str | None) -> None:
        folder.mkdir()
        self.folder = folder
        self.reported: set[str] = set()
        self.refused: set[str] = set()
        self.kills = 0
        self.during: Counter[str] = Counter()
        self._events = events
        self._chance = chance
        self._dsn = dsn
        self._schema = f"kill_{uuid4().hex[:12]}"

    def store(self) -> VectorStore:
        """The store, not started."""
        if self._dsn is not None:
            return PgVectorStore(self._dsn, schema=self._schema)
        return ChromaStore(self.folder / "chroma")

    async def verify(self) -> VerifyReport:
        """Compare journal and store, while no pipeline uses them."""
        if self._dsn is None:
            return await verify_alone(self.folder / "journal.db", self.store())
        pipeline = IngestPipeline(self.store(), QuickEmbedder(), journal=self._dsn)
        async with pipeline:
            return await pipeline.verify()

    async def run(self, kills: int) -> None:
        """Kill it `kills` times, unless it completes before; then let it complete."""
        while self.kills < kills:
            if (child := await self._process(self._moment())).ended:
                self.refused = child.refused
                return
            assert child.status == -signal.SIGKILL, f"it ended by itself: {child.status}"
            if self._chance.random() < _KILL_CHROMA_TOO:
                _kill(child.worker)
            self.kills += 1
            self.during.update(
                {step for step, count in child.steps.items() if count} or {"between"}
            )
        child = await self._process(None)
        self.refused = child.refused
        assert child.ended, f"the last run did not come to its end: {child.status}"

    async def _process(self, moment: _Moment | None) -> _Child:
        (self.folder / "reported").write_text("\n".join(self.reported))
        command = [sys.executable, str(CHILD), str(self.folder), str(self._events)]
        if self._dsn is not None:
            command += [self._dsn, self._schema]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        child = _Child(process.pid, self.reported, moment)
        try:
            async with asyncio.timeout(_LONGEST_RUN_SECONDS):
                async for line in process.stdout:
                    child.hear(line.decode().strip())
                child.status = await process.wait()
        finally:
            child.forget()
            if process.returncode is None:
                process.kill()
                await process.wait()
        return child

    def _moment(self) -> _Moment:
        """Choose when to kill: some time after the start, or when a step begins for the nth time."""
        if self._chance.random() < _BY_TIME:
            return _Moment(seconds=self._chance.uniform(0.1, 3.5))
        step = self._chance.choice(list(STEPS))
        # An ingest has about three runs: this is how often the step occurs in one of them.
        often = max(1, (self._events - len(self.reported)) // 3 // STEPS[step])
        return _Moment(step=step, number=self._chance.randint(1, often))


@dataclass
class _Moment:
    seconds: float | None = None
    step: str = ""
    number: int = 0


class _Child:
    """The output of one process, and its end."""

    def __init__(self, pid: int, reported: set[str], moment: _Moment | None) -> None:
        self.steps: Counter[str] = Counter()
        self.refused: set[str] = set()
        self.worker = 0
        self.ended = False
        self.status: int | None = None
        self._pid = pid
        self._reported = reported
        self._moment = moment or _Moment()
        self._timer = None
        if self._moment.seconds is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._moment.seconds, _kill, pid)

    def hear(self, line: str) -> None:
        """Read one line; kill the process if the moment has come."""
        match line.split():
            case ["accepted", number]:
                self._reported.add(number)
            case ["refused", number]:
                self.refused.add(number)
            case ["worker", pid]:
                self.worker = int(pid)
            case [">", step]:
                self.steps[step] += 1
                if step == self._moment.step:
                    self._moment.number -= 1
                    if self._moment.number == 0:
                        _kill(self._pid)
            case ["<", step]:
                self.steps[step] -= 1
            case ["end"]:
                self.ended = True

    def forget(self) -> None:
        """Cancel the kill: the process has ended, and its pid may be reused."""
        if self._timer is not None:
            self._timer.cancel()


def _kill(pid: int) -> None:
    if pid:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def _stored(store: VectorStore) -> Counter[str]:
    """How often the store contains each event."""
    await store.start("quick")
    try:
        count = await store.count()
        hits = await store.query([1.0] * 16, count, Filter())
    finally:
        await store.aclose()
    assert len(hits) == count
    return Counter(number for hit in hits for number in hit.text.split("\n"))

"""Moves due batches through planning, writing and acknowledgement, in this order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from autoplay_rag._describe import describe
from autoplay_rag._serial import SerialThread
from autoplay_rag._timings import Timings
from autoplay_rag._tracing import Origin, current_origin
from autoplay_rag.content.keys import partition_of
from autoplay_rag.errors import FencedError
from autoplay_rag.ingest.batching import Batcher, Gathered
from autoplay_rag.ingest.chunk_writer import ChunkWriter, Operation, Upsert
from autoplay_rag.ingest.planner import Planner
from autoplay_rag.ingest.upkeep import Upkeep
from autoplay_rag.journal.base import (
    Acknowledgement,
    Journal,
    Plan,
    PlannedChunk,
    Session,
    Waiting,
)
from autoplay_rag.journal.ownership import owns_everything

__all__ = ["Worker"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

_PLAN_PAYLOADS = 500
"""The most payloads planned at once."""
_PLAN_BYTES = 16 * 2**20
"""About the most bytes of payloads planned at once. All of them are in memory, with copies."""
_MOST_CHUNKS = 2_000
_MOST_CHARACTERS = 32 * 2**20
"""The most chunks in progress, and their text. More payloads wait in the journal, not in memory."""
_YIELD_EVERY = 50
"""After so many plans others may use the event loop."""
_JOURNAL_RETRY_SECONDS = 1.0


@dataclass(slots=True, eq=False)
class _PlanInProgress:
    """A plan in progress."""

    plan: Plan
    chunks: dict[str, PlannedChunk]
    remaining: set[str]
    dead: dict[int, str] = field(default_factory=dict)
    origin: Origin = None
    is_dropped: bool = False
    divided: set[str] = field(default_factory=set)
    """Chunks that were taken back to be divided."""

    @classmethod
    def of(cls, plan: Plan, origin: Origin = None) -> _PlanInProgress:
        chunks = {planned.chunk.id: planned for planned in plan.chunks}
        return cls(plan, chunks, set(chunks), dict(plan.unplanned), origin)


class Worker:
    """Moves gathered batches to the store.

    Args:
        journal: Keeps the payloads and the plans.
        batcher: Returns the batches that are due.
        planner: Turns payloads into chunks.
        writer: Embeds and stores the chunks.
        upkeep: Receives the deletions that `Journal.acknowledge` returns.
        owns: Tells for a lane whether this process may store its chunks now.
        timings: Measures the planning.
        on_settled: Called with the sequence numbers of payloads that are now stored or dead.
        on_stored: Called with the lanes of plans that were acknowledged, and whether one may hold a
            summary.
        on_linked: Called when a plan named the people of chunks that were stored before it.
    """

    def __init__(
        self,
        journal: Journal,
        batcher: Batcher,
        planner: Planner,
        writer: ChunkWriter,
        upkeep: Upkeep,
        *,
        owns: Callable[[int], bool] = owns_everything,
        timings: Timings | None = None,
        on_settled: Callable[[Sequence[int]], None],
        on_linked: Callable[[], None] = lambda: None,
        on_stored: Callable[[Sequence[int], bool], None] = lambda _lanes, _summaries: None,
    ) -> None:
        self._journal = journal
        self._batcher = batcher
        self._planner = planner
        self._writer = writer
        self._upkeep = upkeep
        self._on_linked = on_linked
        self._on_stored = on_stored
        self._owns = owns
        self._timings = timings or Timings()
        self._chunks = 0
        self._on_settled = on_settled
        self._thread = SerialThread("autoplay-plan")
        self._wake = asyncio.Event()
        self._begun: set[_PlanInProgress] = set()
        self._ended: list[_PlanInProgress] = []
        self._to_divide: list[tuple[_PlanInProgress, PlannedChunk]] = []
        self._settle = asyncio.Event()
        self._acknowledging = asyncio.Lock()
        self._taking = asyncio.Lock()
        self._ending = asyncio.Event()
        self._planning: str | None = None
        self._settling: str | None = None

    @property
    def problems(self) -> list[str]:
        """Current failures, one line each. Readable from any thread."""
        found = (self._planning, self._settling)
        return [problem for problem in found if problem is not None]

    def wake(self) -> None:
        """Check the batcher again, because a payload arrived or a batch is due earlier."""
        self._wake.set()

    async def resume(self, plans: Sequence[Plan]) -> None:
        """Start recorded plans of an earlier run, or of another process."""
        await self._thread.run(_count_all, self._planner, plans)
        now = asyncio.get_running_loop().time()
        for plan in plans:
            self._batcher.hold(plan.lane, now)
            self._begin(plan)

    async def drop(self, lanes: Callable[[int], bool]) -> list[str]:
        """Plan, store and acknowledge nothing more of some lanes. The batcher drops them, too.

        Returns once nothing is planned or acknowledged that began before. A request to the store
        that runs goes on.

        Args:
            lanes: Tells for a lane whether to drop it.

        Returns:
            The ids of the chunks that a request to the store may have stored.
        """
        for owner in self._begun:
            owner.is_dropped = owner.is_dropped or lanes(owner.plan.lane)
        async with self._taking, self._acknowledging:
            dropped = [owner for owner in self._begun if lanes(owner.plan.lane)]
            self._begun.difference_update(dropped)
            self._ended = [owner for owner in self._ended if not lanes(owner.plan.lane)]
            self._to_divide = [pair for pair in self._to_divide if not lanes(pair[0].plan.lane)]
            self._batcher.drop(lanes)
            sent: list[str] = []
            for owner in dropped:
                owner.is_dropped = True
                # A chunk that is to be divided was left out of the count already.
                self._chunks -= len(owner.remaining - owner.divided)
                sent += [
                    one
                    for one in owner.chunks
                    if one not in owner.remaining or self._writer.is_storing(one)
                ]
        self._ending.set()
        self._wake.set()
        return sent

    async def finish(self, lanes: Callable[[int], bool]) -> None:
        """Take no new batch of some lanes, and wait until those in flight have ended."""
        async with self._taking:
            self._batcher.drop(lanes, under_way=False)
        while any(lanes(owner.plan.lane) for owner in self._begun):
            self._ending.clear()
            await self._ending.wait()

    @asynccontextmanager
    async def resting(self) -> AsyncIterator[None]:
        """Acknowledge nothing inside the block."""
        async with self._acknowledging:
            yield

    def write_again(self) -> None:
        """Write the chunks of all plans that are not acknowledged: the store was exchanged.

        Call it inside `resting`.
        """
        self._ended.clear()
        for owner in self._begun:
            stored = [
                planned
                for found, planned in owner.chunks.items()
                if found not in owner.remaining and owner.dead.keys().isdisjoint(planned.seqs)
            ]
            owner.remaining.update(planned.chunk.id for planned in stored)
            if stored:
                self._write(owner, stored)
            elif not owner.remaining:
                self._end(owner)

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._plan_what_is_due())
            group.create_task(self._settle_what_ended())

    # -- plan ---------------------------------------------------------------------------------

    async def _plan_what_is_due(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            due = None
            if self._has_room():
                async with self._taking:
                    gathered = self._batcher.take(loop.time(), _PLAN_PAYLOADS)
                    if gathered:
                        await self._plan(gathered)
                        continue
                due = self._batcher.next_due()
            try:
                async with asyncio.timeout_at(due):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _has_room(self) -> bool:
        # Deletions do not count: a store that rejects them must not block new chunks.
        return self._chunks < _MOST_CHUNKS and self._writer.characters < _MOST_CHARACTERS

    async def _plan(self, gathered: list[Gathered]) -> None:
        """Read the payloads, plan them on the planning thread, record the plans, start writing."""
        try:
            asked = [seq for item in gathered for seq in item.seqs]
            with self._timings.measured("plan", root=True) as span:
                waiting = await self._read(asked)
                sessions = await self._journal.sessions([item.lane for item in gathered])
                batches = list(_batches(gathered, waiting))
                numbers = await self._journal.take_batches(len(batches))
                made = await self._thread.run(
                    _plan_all, self._planner, list(zip(numbers, batches, strict=True)), sessions
                )
                plans = [plan for plan, _ in made]
                known = [session for _, session in made if session is not None]
                plans, again, linked = await self._journal.record_plans(plans, known)
                span.set_attribute("autoplay_rag.payloads", len(waiting))
                span.set_attribute("autoplay_rag.batches", len(plans))
                span.set_attribute("autoplay_rag.chunks", sum(len(plan.chunks) for plan in plans))
                origin = current_origin()
        except Exception as error:  # noqa: BLE001 - of the journal, or no memory: may be transient
            if isinstance(error, FencedError) and len(gathered) == 1:
                return  # the lane stays in flight until `drop` is called
            if len(gathered) > 1:
                # One batch may be the cause: plan each alone.
                for item in gathered:
                    await self._plan([item])
                return
            self._planning = _log_failure("planning", error)
            self._batcher.give_back(gathered[0], asyncio.get_running_loop().time())
            await asyncio.sleep(_JOURNAL_RETRY_SECONDS)
            return
        self._planning = None
        beyond = asked[asked.index(waiting[-1].seq) + 1 :] if waiting else []
        self._give_back_rest(gathered, {plan.lane for plan in plans}, again.union(beyond))
        for number, plan in enumerate(plans):
            if number and not number % _YIELD_EVERY:
                await asyncio.sleep(0)
            self._begin(plan, origin)
        if linked:
            self._on_linked()

    async def _read(self, seqs: Sequence[int]) -> list[Waiting]:
        return await self._journal.read(seqs, _PLAN_BYTES)

    def _give_back_rest(
        self, gathered: list[Gathered], planned: set[int], unplanned: set[int]
    ) -> None:
        """Return payloads that the plans left out to the batcher, due again now."""
        now = asyncio.get_running_loop().time()
        for item in gathered:
            if rest := [seq for seq in item.seqs if seq in unplanned]:
                back = Gathered(item.lane, rest)
                self._batcher.give_back(back, now, under_way=item.lane in planned)
            elif item.lane not in planned:
                self._batcher.done(item.lane)  # none of its payloads is pending any more

    def _begin(self, plan: Plan, origin: Origin = None) -> None:
        owner = _PlanInProgress.of(plan, origin)
        self._begun.add(owner)
        self._write(owner, plan.chunks)

    def _write(self, owner: _PlanInProgress, chunks: Iterable[PlannedChunk]) -> None:
        operations = [
            Upsert(
                planned.chunk,
                planned.tokens,
                partial(self._divide, owner, planned) if len(planned.seqs) > 1 else None,
                owner.origin,
                partial(self._is_wanted, owner),
            )
            for planned in chunks
        ]
        self._chunks += len(operations)
        self._writer.put(operations, partial(self._chunk_ended, owner))
        if not owner.remaining:
            self._end(owner)

    def _is_wanted(self, owner: _PlanInProgress) -> bool:
        return not owner.is_dropped and self._owns(owner.plan.lane)

    def _chunk_ended(self, owner: _PlanInProgress, operation: Operation, error: str | None) -> None:
        assert isinstance(operation, Upsert)
        if owner not in self._begun:
            return  # it was dropped
        self._chunks -= 1
        found = operation.chunk.id
        if error is not None:
            owner.dead |= dict.fromkeys(owner.chunks[found].seqs, error)
        owner.remaining.discard(found)
        if not owner.remaining:
            self._end(owner)
        self._wake.set()

    def _divide(self, owner: _PlanInProgress, planned: PlannedChunk) -> bool:
        """Take back a chunk of several payloads, so that only the rejected payload dies."""
        if owner not in self._begun:
            return False
        self._chunks -= 1
        owner.divided.add(planned.chunk.id)
        self._to_divide.append((owner, planned))
        self._settle.set()
        return True

    # -- acknowledge --------------------------------------------------------------------------

    def _end(self, owner: _PlanInProgress) -> None:
        self._ended.append(owner)
        self._settle.set()

    async def _settle_what_ended(self) -> None:
        while True:
            await self._settle.wait()
            self._settle.clear()
            try:
                async with self._acknowledging:
                    while self._to_divide:
                        with suppress(FencedError):  # `drop` is called soon
                            await self._replan_divided(*self._to_divide[0])
                        del self._to_divide[0]
                    while ended := list(self._ended):
                        await self._acknowledge_owned(ended)
                self._settling = None
            except Exception as error:  # noqa: BLE001 - of the journal, or no memory: may be transient
                # The chunks are stored. Only their acknowledgement has to wait.
                self._settling = _log_failure("acknowledging", error)
                self._settle.set()
                await asyncio.sleep(_JOURNAL_RETRY_SECONDS)

    async def _acknowledge_owned(self, ended: list[_PlanInProgress]) -> None:
        """Acknowledge plans, without those of partitions that another process has taken over."""
        try:
            await self._acknowledge(ended)
        except FencedError as error:
            lost = [one for one in ended if partition_of(one.plan.lane) in error.partitions]
            if not lost:
                raise
            self._ended = [one for one in self._ended if one not in lost]  # until `drop` is called

    async def _acknowledge(self, ended: list[_PlanInProgress]) -> None:
        found = await self._journal.acknowledge(
            [Acknowledgement(owner.plan, owner.dead) for owner in ended]
        )
        del self._ended[: len(ended)]
        self._begun.difference_update(ended)
        self._upkeep.delete(found.outbox)
        for owner in ended:
            lane = owner.plan.lane
            if again := [seq for other, seq in found.again if other == lane]:
                # Their chunk also held payloads that were forgotten meanwhile.
                self._batcher.give_back(Gathered(lane, again), asyncio.get_running_loop().time())
            else:
                self._batcher.done(lane)
        kinds = (one.chunk.metadata.get("kind") for owner in ended for one in owner.plan.chunks)
        self._on_stored([owner.plan.lane for owner in ended], "summary" in kinds)
        self._on_settled(found.settled)
        self._ending.set()
        self._wake.set()

    async def _replan_divided(self, owner: _PlanInProgress, planned: PlannedChunk) -> None:
        """Plan one chunk per payload of a rejected chunk, and start writing them."""
        waiting: list[Waiting] = []
        for seq in planned.seqs:  # one by one: a single read has a byte limit
            waiting += await self._read([seq])
        plan = await self._thread.run(self._planner.divide, owner.plan, planned, waiting)
        await self._journal.replace_plan(plan)
        before = owner.chunks
        owner.divided.discard(planned.chunk.id)
        owner.plan = plan
        owner.chunks = {one.chunk.id: one for one in plan.chunks}
        owner.dead.update(plan.unplanned)
        apart = [
            one
            for one in plan.chunks
            if one.chunk.id == planned.chunk.id or one.chunk.id not in before
        ]
        owner.remaining.discard(planned.chunk.id)
        owner.remaining.update(one.chunk.id for one in apart)
        self._write(owner, apart)


def _batches(gathered: list[Gathered], waiting: list[Waiting]) -> Iterable[list[Waiting]]:
    """Yield the payloads that were read, by lane."""
    found = {item.seq: item for item in waiting}
    for item in gathered:
        if batch := [found[seq] for seq in item.seqs if seq in found]:
            yield batch


def _plan_all(
    planner: Planner,
    batches: list[tuple[int, list[Waiting]]],
    sessions: dict[int, Session],
) -> list[tuple[Plan, Session | None]]:
    return [
        planner.plan(number, waiting, sessions.get(waiting[0].lane)) for number, waiting in batches
    ]


def _count_all(planner: Planner, plans: Sequence[Plan]) -> None:
    """Count tokens again, because the embedder may have changed."""
    for plan in plans:
        costs = planner.count([planned.chunk for planned in plan.chunks])
        plan.chunks = [
            replace(planned, tokens=cost) for planned, cost in zip(plan.chunks, costs, strict=True)
        ]


def _log_failure(what: str, error: Exception) -> str:
    _log.error("%s failed; retrying in %g s: %s", what, _JOURNAL_RETRY_SECONDS, error)
    return f"{what} failed: {describe(error)}"

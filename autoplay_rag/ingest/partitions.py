"""Loads and drops work as partitions are gained and lost, and takes in what any process accepted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Final

from autoplay_rag._background import BackgroundWork
from autoplay_rag.content.keys import partition_of
from autoplay_rag.ingest.batching import Batcher
from autoplay_rag.ingest.worker import Worker
from autoplay_rag.journal.ownership import Ownership, SharedProgress, Sharing

__all__ = ["Partitions"]

_log = logging.getLogger(__name__)

_POLL_SECONDS: Final = 1.0
"""The interval of looking for arrivals without a wake-up, and for retried letters."""
_LEAST_SECONDS: Final = 0.005
"""The shortest time between two looks. What arrives meanwhile is read together."""
_FINISH_SECONDS: Final = 5.0
"""How long a partition that another process should have is kept for what is in flight."""
_RETRY_SECONDS: Final = 1.0
_PAGE: Final = 100_000


class Partitions(BackgroundWork):
    """Follows which partitions this process owns.

    A payload is taken in only by reading the journal, in the order of sequence numbers, even if
    this process has accepted it. Otherwise a payload of the same session that another process
    accepted before might come later.

    Args:
        ownership: Says what comes and goes.
        sharing: Reads the journal.
        batcher: Gathers the payloads of the partitions.
        worker: Works on them.
        on_progress: Called with the progress of all processes after each look.
        on_dropped: Called with the ids of chunks that may have been stored here after another
            process took over. They have to be compared with the catalog.
    """

    def __init__(
        self,
        ownership: Ownership,
        sharing: Sharing,
        batcher: Batcher,
        worker: Worker,
        *,
        on_progress: Callable[[SharedProgress], None],
        on_dropped: Callable[[Sequence[str]], None],
    ) -> None:
        super().__init__(
            "arrived payloads cannot be read",
            longest_pause=_RETRY_SECONDS,
            every=_POLL_SECONDS,
            spacing=_LEAST_SECONDS,
        )
        self._ownership = ownership
        self._sharing = sharing
        self._batcher = batcher
        self._worker = worker
        self._on_progress = on_progress
        self._on_dropped = on_dropped
        self._gained: frozenset[int] = frozenset()
        self._loaded: frozenset[int] = frozenset()
        # All payloads of loaded partitions up to this number are in the batcher, or settled.
        self._seen: int | None = None
        self._closed = 0
        # Partitions of payloads that are worked on and may be read once more, by number.
        self._known: dict[int, int] = {}
        self._look_for_retried = 0.0
        self._changing = asyncio.Lock()

    @property
    def loaded(self) -> frozenset[int]:
        """The partitions whose payloads are worked on. Readable from any thread."""
        return self._loaded

    def look_for_retried(self) -> None:
        """Look for arrivals now, and for retried letters."""
        self._look_for_retried = 0.0
        self.wake()

    def settled(self, seqs: Collection[int]) -> None:
        """Note that payloads are settled."""
        for seq in seqs:
            self._known.pop(seq, None)

    async def run(self) -> None:
        """Run until cancelled."""
        self.wake()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_changes(group))
            group.create_task(super().run())

    # -- partitions that are gained and lost --------------------------------------------------

    async def _follow_changes(self, group: asyncio.TaskGroup) -> None:
        while True:
            change = await self._ownership.next_change()
            if change.lost:
                _log.warning("lost the partitions %s", _listed(change.lost))
                await self._drop(change.lost)
            if change.leaving:
                group.create_task(self._leave(change.leaving))
            if change.gained:
                _log.info("working on the partitions %s", _listed(change.gained))
                self._gained |= change.gained
                self.wake()

    async def _drop(self, partitions: frozenset[int]) -> None:
        async with self._changing:
            self._gained -= partitions
            self._loaded -= partitions
            self._known = {seq: one for seq, one in self._known.items() if one not in partitions}
            if doubtful := await self._worker.drop(_in(partitions)):
                self._on_dropped(doubtful)

    async def _leave(self, partitions: frozenset[int]) -> None:
        async with self._changing:
            self._gained -= partitions
            self._loaded -= partitions
        with suppress(TimeoutError):
            async with asyncio.timeout(_FINISH_SECONDS):
                await self._worker.finish(_in(partitions))
        # Those that were lost and gained again meanwhile stay.
        if left := partitions - self._loaded - self._gained:
            await self._drop(left)
            self._ownership.give_back(left)
            _log.info("gave back the partitions %s", _listed(left))

    # -- what arrives -------------------------------------------------------------------------

    async def _work(self) -> None:
        async with self._changing:
            await self._look()

    async def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        retried = now >= self._look_for_retried
        if self._seen is None:
            self._seen = (await self._sharing.arrivals((), 0, retried=False)).upto
        if self._gained:
            await self._load(self._gained, self._seen)
        found = await self._sharing.arrivals(self._loaded, self._seen, retried=retried)
        if retried:
            self._look_for_retried = now + _POLL_SECONDS
        now = asyncio.get_running_loop().time()
        for seq, lane, is_retried in found.rows:
            self._add(lane, seq, now, retried=is_retried)
        self._seen = found.upto
        if found.progress.closing > self._closed:
            if found.upto < found.progress.closing:
                self.wake()
            else:
                self._closed = found.progress.closing
                self._batcher.close_windows(now)
                self._worker.wake()
        if found.rows:
            self._worker.wake()
        self._on_progress(found.progress)

    async def _load(self, partitions: frozenset[int], upto: int) -> None:
        """Load what earlier owners left. What arrived after `upto` comes with the arrivals."""
        plans = await self._sharing.plans_of(partitions)
        planned = {seq: partition_of(plan.lane) for plan in plans for seq in plan.seqs}
        rows: list[tuple[int, int, bool]] = []
        after = 0
        while page := await self._sharing.waiting_of(partitions, after, _PAGE):
            rows += [row for row in page if row[0] <= upto and row[0] not in planned]
            after = page[-1][0]
            if after >= upto:
                break
        await self._worker.resume(plans)
        self._known |= planned  # a plan may hold what comes with the arrivals
        now = asyncio.get_running_loop().time()
        for seq, lane, is_retried in rows:
            self._add(lane, seq, now, retried=is_retried)
            self._batcher.close_window(lane, now)
        self._gained -= partitions
        self._loaded |= partitions
        self._worker.wake()

    def _add(self, lane: int, seq: int, now: float, *, retried: bool) -> None:
        if seq in self._known:
            return
        if retried:
            self._known[seq] = partition_of(lane)
        self._batcher.add(lane, seq, now)


def _in(partitions: Collection[int]) -> Callable[[int], bool]:
    return lambda lane: partition_of(lane) in partitions


def _listed(partitions: Collection[int]) -> str:
    return ", ".join(map(str, sorted(partitions)))

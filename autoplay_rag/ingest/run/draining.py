"""Waits until what was accepted is stored, and all that follows from it is done."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from autoplay_rag.content.keys import session_lane
from autoplay_rag.content.passages import storable
from autoplay_rag.errors import DrainTimeoutError, JournalError
from autoplay_rag.ingest.batching import Batcher
from autoplay_rag.ingest.linking import Linker
from autoplay_rag.ingest.retiring import Retirer
from autoplay_rag.ingest.run.condition import Condition
from autoplay_rag.ingest.run.main_task import MainTask
from autoplay_rag.ingest.settings import Settings
from autoplay_rag.ingest.upkeep import Upkeep
from autoplay_rag.ingest.watermark import Watermark
from autoplay_rag.ingest.worker import Worker
from autoplay_rag.journal.on_tables import TableJournal

__all__ = ["Draining"]

_LOOK_SECONDS: Final = 0.02
"""The least time between two looks for what of a session still waits."""
_ELSEWHERE_SECONDS: Final = 1.0
"""The interval of looking for what other processes settled."""
_LEASES: Final = 1.5
"""How long `drain` waits for the cleaning up of other processes, in lengths of a lease."""


class Draining:
    """Closes windows and waits.

    Args:
        settings: The options of the pipeline.
        journal: Knows what waits.
        batcher: Has the windows.
        watermark: Knows what is settled.
        worker: Stores what the batcher has.
        upkeep: Deletes chunks, and stores chunks again.
        linker: Updates the metadata of chunks.
        retirer: Finds chunks that summaries replace.
        condition: Says what is left and why.
        main: Works meanwhile.
    """

    def __init__(
        self,
        settings: Settings,
        journal: TableJournal,
        *,
        batcher: Batcher,
        watermark: Watermark,
        worker: Worker,
        upkeep: Upkeep,
        linker: Linker,
        retirer: Retirer,
        condition: Condition,
        main: MainTask,
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._membership = journal.membership
        self._timeline = journal.timeline
        self._batcher = batcher
        self._watermark = watermark
        self._worker = worker
        self._upkeep = upkeep
        self._linker = linker
        self._retirer = retirer
        self._condition = condition
        self._main = main
        self._loop = asyncio.get_running_loop()

    # -- everything ---------------------------------------------------------------------------

    async def drain(self, timeout: float | None) -> None:  # noqa: ASYNC109 - the error says what is left
        """Close all windows and wait for the accepted payloads; see `IngestPipeline.drain`."""
        try:
            async with asyncio.timeout(timeout):
                await self._journal.settled_of(0)  # what was handed over before is committed then
                self._batcher.close_windows(self._loop.time())
                self._worker.wake()
                ended = await self._main.ends_first(self._drained())
        except TimeoutError:
            pending = self._condition.ledger.pending
            ended = not pending and self._upkeep.idle and self._linker.idle and self._retirer.idle
            if not ended:
                left = f"{pending:,} payloads are not stored" if pending else ""
                raise self._timed_out(
                    left or "deletions, or chunks to be stored again, are not done", timeout
                ) from None
        self._main.check(ended=ended)
        await self._condition.measure_lag()

    async def drain_before_close(self, timeout: float) -> None:  # noqa: ASYNC109 - as in `drain`
        """Drain if no other process goes on with what is left."""
        if not self._settings.takes_work:
            return
        if self._membership is not None:
            with suppress(JournalError):
                if await self._membership.others(working=True):
                    return
        await self.drain(timeout)

    async def _drained(self) -> None:
        await self._watermark.wait()
        await self._upkeep.wait()
        if self._membership is None:
            await self._linker.wait()
        else:
            await self._linked_somewhere()
        # Retiring comes before the deletions that it starts.
        await self._retirer.wait()
        await self._upkeep.wait()
        if self._membership is not None:
            await self._kept_up_somewhere()

    async def _linked_somewhere(self) -> None:
        """Wait until the process that updates metadata has done it, and read the counts of all."""
        while await self._journal.outdated(1):  # noqa: ASYNC110 - another process does it
            await asyncio.sleep(_LOOK_SECONDS)
        await self._journal.settled_of(0)

    async def _kept_up_somewhere(self) -> None:
        """Wait for what other processes have left, or are about, to store again and to delete.

        What a killed process left is done here once its lease has ended. What a store refuses to
        delete stays in the outbox, so the wait ends at that time.
        """
        until = self._loop.time() + self._settings.lease_seconds * _LEASES
        while True:
            await self._upkeep.look()
            await self._upkeep.wait()
            if not await self._upkeep.is_anything_left() or self._loop.time() >= until:
                return
            await asyncio.sleep(_LOOK_SECONDS)

    # -- one session --------------------------------------------------------------------------

    async def drain_session(
        self,
        session_id: str,
        product_id: str | None,
        timeout: float | None,  # noqa: ASYNC109 - the error says what is left
    ) -> None:
        """Close the windows of one session id and wait for it; see `IngestPipeline.drain`."""
        last = self._watermark.last
        # Carried out once what was handed over before is committed.
        await self._journal.settled_of(0)
        if self._membership is not None:
            # Another process may have the session's window. There, all are closed.
            last = (await self._membership.close_windows()).last
        if product_id is None:
            lanes = list((await self._timeline.lanes(storable(session_id), None)).values())
        else:
            lanes = [session_lane(product_id, session_id)]
        try:
            async with asyncio.timeout(timeout):
                for lane in lanes:
                    self._batcher.close_window(lane, self._loop.time())
                self._worker.wake()
                ended = await self._main.ends_first(self._drained_lanes(lanes, last))
        except TimeoutError:
            ended = not (pending := await self._timeline.pending(lanes, last))
            if not ended:
                left = f"{pending:,} payloads of the session are not stored"
                raise self._timed_out(left, timeout) from None
        self._main.check(ended=ended)

    async def _drained_lanes(self, lanes: Sequence[int], last: int) -> None:
        while True:
            settled = self._watermark.next_settled()
            if not await self._timeline.pending(lanes, last):
                return
            with suppress(TimeoutError):
                # What other processes settle has no event here.
                async with asyncio.timeout(_ELSEWHERE_SECONDS if self._membership else None):
                    await settled.wait()
            await asyncio.sleep(_LOOK_SECONDS)

    def _timed_out(self, left: str, timeout: float | None) -> DrainTimeoutError:
        reasons = self._condition.health.reasons
        return DrainTimeoutError(
            f"{left} after {timeout:g} s" + (f" ({'; '.join(reasons)})" if reasons else "")
        )

"""The task that takes payloads out of a topic into the journal, and the entries of what it brings."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from autoplay_rag.content.identity import parts_by_person
from autoplay_rag.ingest.intake import Intake
from autoplay_rag.ingest.pulled import PulledActions
from autoplay_rag.journal.base import Entry
from autoplay_rag.journal.inflow import Inflow
from autoplay_rag.payloads import Payload

__all__ = ["Entries", "Inflowing"]

_log = logging.getLogger(__name__)


class Entries:
    """Makes entries as for payloads that a client brings; see `Enter`.

    Args:
        intake: Applies the user's rules.
        pulled: Knows what was pulled.
        take: Returns the next number of this process.
        on_received: Called for each payload.
    """

    def __init__(
        self,
        intake: Intake,
        pulled: PulledActions,
        take: Callable[[], int],
        on_received: Callable[[], None],
    ) -> None:
        self._intake = intake
        self._pulled = pulled
        self._take = take
        self._on_received = on_received

    def payload(self, payload: Payload) -> list[Entry]:
        """As in `Enter`."""
        self._on_received()
        return [self.of(part, self._take()) for part in parts_by_person(payload)]

    def of(self, payload: Payload, seq: int) -> Entry:
        """Return the entry of a payload of one person, without what was pulled before."""
        unknown = self._pulled.unknown(payload)
        if unknown is None:
            return self._intake.repeated(payload, seq)
        return self._intake.entry(unknown, seq)

    def broken(self, key: str, why: str) -> Entry:
        """As in `Enter`."""
        self._on_received()
        seq = self._take()
        return Entry(seq, key, -seq, None, None, outcome="dead", error=why)


class Inflowing:
    """Runs an inflow beside a pipeline.

    Args:
        inflow: The inflow.
        entries: Makes the entries.
        on_taken: Called when something was taken in.
    """

    def __init__(self, inflow: Inflow, entries: Entries, on_taken: Callable[[], None]) -> None:
        self._inflow = inflow
        self._task = asyncio.create_task(inflow.run(entries, on_taken), name="autoplay-inflow")

    @property
    def problems(self) -> Sequence[str]:
        """Current failures, one line each. Readable from any thread."""
        return self._inflow.problems

    async def watch(self) -> None:
        """Raise what the inflow raises."""
        await asyncio.shield(self._task)

    async def leave(self, within: float) -> None:
        """Let others read the topic. What was begun is finished.

        Args:
            within: Seconds to wait. After that, it is cancelled.
        """
        self._inflow.stop()
        _, late = await asyncio.wait([self._task], timeout=within)
        if late:
            _log.error("the topic was not left within %g s; leaving it anyway", within)
            self._task.cancel()
            await asyncio.wait([self._task])

"""Puts the events of analytics tools into a pipeline, in sessions that outlast a restart."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Sequence
from typing import Final, Protocol

from autoplay_rag.payloads import Payload
from autoplay_rag.sources.analytics import Event, payloads_of
from autoplay_rag.sources.cutting import DeviceSessions, Known
from autoplay_rag.sources.sessions import cut_names

__all__ = ["EventIntake", "TakesEvents"]

_LOT: Final = 100
"""Events per turn of the loop: a large body must not block it."""


class TakesEvents(Protocol):
    """The part of `IngestPipeline` that is used here."""

    def accept(self, payload: Payload, /) -> Awaitable[str]:
        """Accept a payload."""

    async def session_times(
        self, product_id: str, session_ids: Sequence[str]
    ) -> dict[str, tuple[float, float]]:
        """Return when known sessions began and ended."""


class EventIntake:
    """Turns events into payloads and puts them into a pipeline.

    Sessions that a tool does not name are cut where a device was idle. The journal is asked for the
    sessions that it has of a device, so that an event which comes again, also after a restart or from
    an export, gets the session that it had.

    Args:
        pipeline: Takes the payloads.
        sessions: Names sessions; by default one of its own.
    """

    def __init__(self, pipeline: TakesEvents, sessions: DeviceSessions | None = None) -> None:
        self._pipeline = pipeline
        self._sessions = DeviceSessions() if sessions is None else sessions

    async def take(self, events: Sequence[Event], product_id: str) -> Counter[str]:
        """Put events into the pipeline.

        Args:
            events: By time.
            product_id: Their product.

        Returns:
            How many had each outcome of `IngestPipeline.accept`.

        Raises:
            PipelineClosedError: If the pipeline is not running.
            JournalError: If the journal cannot be written.
        """
        outcomes: Counter[str] = Counter()
        for start in range(0, len(events), _LOT):
            lot = events[start : start + _LOT]
            await self._recall(lot, product_id)
            payloads = payloads_of(lot, product_id, self._sessions.name)
            outcomes.update(await asyncio.gather(*map(self._pipeline.accept, payloads)))
        return outcomes

    async def _recall(self, events: Sequence[Event], product_id: str) -> None:
        """Remember what the journal has of the devices of events without a session."""
        while needed := self._needed(events, product_id):
            names = {actor: cut_names(product_id, actor, at) for actor, at in needed.items()}
            times = await self._pipeline.session_times(
                product_id, [name for some in names.values() for name in some]
            )
            for actor, at in needed.items():
                known = [Known(name, *times[name]) for name in names[actor] if name in times]
                self._sessions.remember(product_id, actor, at, known)

    def _needed(self, events: Sequence[Event], product_id: str) -> dict[str, float]:
        """For each device the first moment about which the journal has to be asked."""
        needed: dict[str, float] = {}
        for event in events:
            actor = "" if event.session_id else event.actor
            if actor and actor not in needed and self._sessions.lacks(product_id, actor, event.at):
                needed[actor] = event.at
        return needed

"""The samples as a stream that does not end, with times of today."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from autoplay_rag.connector.recording import read_recording
from autoplay_rag.devserver.connector import LocalConnector
from autoplay_rag.devserver.shipped import samples
from autoplay_rag.payloads import ActionsPayload, Payload, SlimAction

__all__ = ["Visits", "live_samples"]

_SPEED: Final = 10.0
"""75 minutes of the samples take 7.5 minutes: about one event per second."""


@dataclass(frozen=True, slots=True)
class Visits:
    """Moves recorded payloads to another time, as visits of their own. Pure.

    Attributes:
        recorded: When the recording began, in Unix seconds.
        begin: When it begins now.
        speed: How much faster it runs now.
        suffix: Added to each session id, so that repeated payloads are not duplicates.

    Example:
        >>> from autoplay_rag.payloads import SummaryPayload
        >>> visits = Visits(recorded=100.0, begin=5000.0, speed=10.0, suffix="-1")
        >>> visits.moved(SummaryPayload("acme", "s1", "Exported a report.", 0, 120.0))
        SummaryPayload(product_id='acme', session_id='s1-1', summary='Exported a report.', replaces=0, forwarded_at=5002.0)
    """

    recorded: float
    begin: float
    speed: float = 1.0
    suffix: str = ""

    def moved(self, payload: Payload) -> Payload:
        """Return the payload with other times and another session id."""
        made = replace(
            payload,
            session_id=self._visit(payload.session_id),
            forwarded_at=self._at(payload.forwarded_at),
        )
        if isinstance(made, ActionsPayload):
            made.actions = [self._moved(action) for action in made.actions]
        return made

    def _moved(self, action: SlimAction) -> SlimAction:
        return replace(
            action,
            session_id=self._visit(action.session_id),
            timestamp_start=self._at(action.timestamp_start),
            timestamp_end=self._at(action.timestamp_end),
        )

    def _at(self, time: float) -> float:
        return self.begin + (time - self.recorded) / self.speed

    def _visit(self, session_id: str | None) -> str | None:
        return None if session_id is None else session_id + self.suffix


@asynccontextmanager
async def live_samples(
    *, speed: float = _SPEED, clock: Callable[[], float] = time.time
) -> AsyncIterator[str]:
    """Stream the samples on and on inside the block, from a connector on this machine.

    The first subscriber gets all samples at once, as visits that ended just now. Then they
    are repeated, each time as new visits of the same people.

    Args:
        speed: How much faster than recorded they are repeated.
        clock: Returns the time in Unix seconds.

    Yields:
        The URL of the stream.
    """
    payloads = await asyncio.to_thread(list, read_recording(samples()))
    async with LocalConnector([], product_id=payloads[0].product_id) as connector:
        sending = asyncio.create_task(
            _send(connector, payloads, speed, clock), name="autoplay-live-samples"
        )
        try:
            yield connector.url
        finally:
            sending.cancel()
            with suppress(asyncio.CancelledError):
                await sending


async def _send(
    connector: LocalConnector, payloads: list[Payload], speed: float, clock: Callable[[], float]
) -> None:
    first, last = payloads[0].forwarded_at, payloads[-1].forwarded_at
    await connector.wait_subscribers()
    before = Visits(first, clock() - (last - first))
    for payload in payloads:
        await connector.send(before.moved(payload))
    for number in itertools.count(1):
        visits = Visits(first, clock(), speed, f"-{number}")
        for payload in payloads:
            moved = visits.moved(payload)
            await asyncio.sleep(max(0.0, moved.forwarded_at - clock()))
            await connector.send(moved)

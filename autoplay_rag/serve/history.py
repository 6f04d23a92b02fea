"""What the server saw of its pipeline over time: lag and counts of the last hour, connections.

It is sampled in this process and kept in memory, in a bounded ring. Nothing is read from the journal.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from autoplay_rag.ingest.pipeline import IngestPipeline

__all__ = ["Connection", "History", "Sample"]

_SAMPLE_SECONDS: Final = 1.0
_STEP_SECONDS: Final = 10.0
_KEPT: Final = 360
"""The steps that are kept: one hour of ten seconds each."""


class Sample(NamedTuple):
    """Ten seconds of a pipeline.

    Attributes:
        at: Their beginning, in Unix seconds.
        lag: The longest time that a payload had waited in them, in seconds.
        received: The payloads received since the journal began, at their end.
        stored: The payloads stored since the journal began, at their end.
        pending: The most payloads that waited in them.
    """

    at: float
    lag: float
    received: int
    stored: int
    pending: int


@dataclass(slots=True)
class Connection:
    """One attached client.

    Attributes:
        product: The product of its stream.
        state: Its state, as in `AsyncConnectorClient.state`.
        since: When it was first seen in this state, in Unix seconds.
    """

    product: str
    state: str
    since: float


class History:
    """Samples a pipeline, and keeps the last hour.

    Args:
        pipeline: The pipeline.
        clock: Returns the time in Unix seconds.
    """

    def __init__(self, pipeline: IngestPipeline, clock: Callable[[], float] = time.time) -> None:
        self._pipeline = pipeline
        self._clock = clock
        self._samples: deque[Sample] = deque(maxlen=_KEPT)
        self._connections: list[Connection] = []

    @property
    def connections(self) -> list[Connection]:
        """The attached clients."""
        known = {(one.product, one.state): one for one in self._connections}
        self._connections = [
            known.get(pair) or Connection(*pair, self._clock())
            for pair in self._pipeline.client_states
        ]
        return self._connections

    @property
    def samples(self) -> list[Sample]:
        """The samples of the last hour, oldest first. The last one is not complete yet."""
        return list(self._samples)

    @property
    def latest(self) -> Sample | None:
        """The last sample; None before the first one."""
        return self._samples[-1] if self._samples else None

    def sample(self) -> None:
        """Take a sample now. It joins the one of the same ten seconds."""
        if not self._pipeline.is_running:
            return
        ledger, lag = self._pipeline.ledger, self._pipeline.lag
        at = self._clock() // _STEP_SECONDS * _STEP_SECONDS
        made = Sample(at, lag, ledger.received, ledger.stored, ledger.pending)
        if self._samples and self._samples[-1].at >= at:
            before = self._samples.pop()
            made = made._replace(
                at=before.at,
                lag=max(before.lag, made.lag),
                pending=max(before.pending, made.pending),
            )
        self._samples.append(made)

    async def run(self) -> None:
        """Take samples until cancelled."""
        while True:
            self.sample()
            _ = self.connections  # notes when their states change
            await asyncio.sleep(_SAMPLE_SECONDS)

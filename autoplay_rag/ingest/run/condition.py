"""What can be told about a running pipeline: its ledger, health, lag, and the other processes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, Protocol

from autoplay_rag.errors import AutoplayError, JournalError
from autoplay_rag.ingest.batching import Batcher
from autoplay_rag.ingest.chunk_writer import ChunkWriter
from autoplay_rag.ingest.gaps import GapFiller
from autoplay_rag.ingest.pulled import PulledActions
from autoplay_rag.ingest.run.model_in_use import ModelInUse
from autoplay_rag.ingest.settings import Settings
from autoplay_rag.ingest.watermark import Watermark
from autoplay_rag.journal.base import Health
from autoplay_rag.journal.inflow import TopicStatus
from autoplay_rag.journal.lag import NO_LAG
from autoplay_rag.journal.ledger import Ledger
from autoplay_rag.journal.on_tables import TableJournal
from autoplay_rag.journal.ownership import Membership, Replicas
from autoplay_rag.journal.reader import JournalStatus

__all__ = ["Condition", "Watched"]

_log = logging.getLogger(__name__)

_REPLICAS_SECONDS: Final = 2.0
"""The interval of reading who has what."""


class Watched(Protocol):
    """A part whose failures belong to the health of a pipeline."""

    @property
    def problems(self) -> Sequence[str]:
        """Current failures, one line each. Readable from any thread."""


class Condition:
    """The counts and the failures of one run.

    Args:
        settings: The options of the pipeline. Its `on_progress` is called by `tell_progress`.
        journal: Counts the payloads.
        batcher: Knows the oldest payload that waits.
        watermark: Knows what is settled.
        model: Counts the requests to the embedder.
        writer: Counts the chunks.
        pulled: Counts the pulled actions.
        gaps: Counts what was missed.

    Attributes:
        failure: Why the pipeline stopped; None while it works.
        replicas: All processes of the journal, read every few seconds; None if there is only this.
        topic: How far the topic is taken in, read every few seconds; None without a topic.
        watched: The parts whose problems are reasons of `health`, in this order.
    """

    def __init__(
        self,
        settings: Settings,
        journal: TableJournal,
        *,
        batcher: Batcher,
        watermark: Watermark,
        model: ModelInUse,
        writer: ChunkWriter,
        pulled: PulledActions,
        gaps: GapFiller,
    ) -> None:
        self.failure: str | None = None
        self.replicas: Replicas | None = None
        self.topic: TopicStatus | None = None
        self.watched: list[Watched] = []
        self._on_progress = settings.on_progress
        self._journal = journal
        self._batcher = batcher
        self._watermark = watermark
        self._model = model
        self._writer = writer
        self._pulled = pulled
        self._gaps = gaps
        self._lag = NO_LAG
        self._loop = asyncio.get_running_loop()

    @property
    def ledger(self) -> Ledger:
        """The counts as of the last commit."""
        embedding = self._model.embedding
        counts = {n: v for n, v in self._journal.counts.items() if n != "bytes"}
        return Ledger(
            **counts,
            chunks=self._writer.chunks,
            embed_requests=embedding.requests if embedding else 0,
            embed_texts=embedding.texts if embedding else 0,
            embed_tokens=embedding.tokens if embedding else 0,
            embed_reused=embedding.reused if embedding else 0,
            retries=self._writer.retries,
            pulled=self._pulled.taken,
            recovered=self._gaps.recovered,
            beyond_recovery=self._gaps.beyond,
            oldest_pending=self.lag if counts["pending"] else None,
            lag_p50=self._lag.p50,
            lag_p99=self._lag.p99,
        )

    @property
    def health(self) -> Health:
        """Whether payloads reach the store. Readable from any thread."""
        if self.failure:
            return Health("failed", (self.failure,))
        reasons = [self._journal.problem] if self._journal.problem else []
        for part in self.watched:
            reasons += part.problems
        return Health("degraded", tuple(reasons)) if reasons else Health()

    @property
    def lag(self) -> float:
        """About how many seconds the oldest pending payload has waited."""
        oldest = self._batcher.oldest()
        return 0.0 if oldest is None else max(0.0, self._loop.time() - oldest)

    async def status(self) -> JournalStatus:
        """Return the state as of now; see `IngestPipeline.status`."""
        ledger, copy = self.ledger, await self._journal.copies.current()
        waited = ledger.oldest_pending
        return JournalStatus(
            ledger=ledger,
            queue_bytes=self._journal.counts["bytes"],
            oldest_at=None if waited is None else time.time() - waited,
            watermark=self._watermark.value,
            health=self.health,
            running=True,
            model=self._model.name,
            copy=copy,
            topic=self.topic,
        )

    def tell_progress(self) -> None:
        """Call the user's `on_progress`."""
        if self._on_progress:
            try:
                self._on_progress(self.ledger)
            except Exception:  # noqa: BLE001 - other people's code
                _log.exception("on_progress failed")

    async def measure_lag(self) -> None:
        """Measure how long the payloads wait that are not settled, for the ledger."""
        with suppress(AutoplayError):  # it is only a measurement
            self._lag = await self._journal.timeline.lag(self._watermark.value)

    async def watch_replicas(self, membership: Membership) -> None:
        """Read who shares the journal, and how far the topic is taken in, until cancelled."""
        while True:
            with suppress(JournalError):  # what is known stays; `health` says what is wrong
                self.replicas = replicas = await membership.replicas()
                if self._journal.inflow is not None:
                    alive = {one.name for one in replicas.replicas}
                    self.topic = (await self._journal.inflow.status()).read_by(alive)
            await asyncio.sleep(_REPLICAS_SECONDS)

"""This process as one of those that share a journal: its membership, and what it hears of the others."""

from __future__ import annotations

import asyncio
from functools import partial

from autoplay_rag._text_cache import forget_texts
from autoplay_rag.ingest.asked import SharedAsked
from autoplay_rag.ingest.batching import Batcher
from autoplay_rag.ingest.clients import Clients
from autoplay_rag.ingest.partitions import Partitions
from autoplay_rag.ingest.pulled import PulledActions
from autoplay_rag.ingest.repairing import Repairer
from autoplay_rag.ingest.run.main_task import report_failure
from autoplay_rag.ingest.run.model_in_use import ModelInUse
from autoplay_rag.ingest.run.showing import LIVE_PAYLOADS, LIVE_SECONDS, show_accepted
from autoplay_rag.ingest.shared_live import SharedLive
from autoplay_rag.ingest.watermark import SharedWatermark
from autoplay_rag.ingest.worker import Worker
from autoplay_rag.journal.ownership import Membership
from autoplay_rag.live import Feed, LiveSessions

__all__ = ["Replica"]


class Replica:
    """Keeps the membership of this process, and follows the other processes once connected.

    Args:
        membership: This process among those of the journal.
        clients: Learn who asked the assistant at another process.

    Attributes:
        membership: As above.
        ownership: Which sessions this process works on.
        partitions: Loads and drops their payloads. Set by `connect`, as the next.
        shared_live: Shows what any process accepts.
    """

    partitions: Partitions
    shared_live: SharedLive
    _shared_asked: SharedAsked

    def __init__(self, membership: Membership, clients: Clients) -> None:
        self.membership = membership
        self.ownership = membership.ownership
        self._connected = False
        self._membership_task = asyncio.create_task(
            membership.run(self._arrived, clients.note_asked), name="autoplay-member"
        )
        self._membership_task.add_done_callback(report_failure)

    def connect(
        self,
        *,
        watermark: SharedWatermark,
        batcher: Batcher,
        worker: Worker,
        repairer: Repairer,
        pulled: PulledActions,
        model: ModelInUse,
        live: LiveSessions,
        feed: Feed,
    ) -> None:
        """Connect it with the parts that the other processes have an effect on.

        Args:
            watermark: Gets to know what is settled.
            batcher: Gathers the payloads of the sessions that this process works on.
            worker: Stores them.
            repairer: Compares chunks with the catalog that this process may have stored too late.
            pulled: Gets to know what was pulled.
            model: Its vectors of forgotten texts are removed.
            live: Shows what was accepted.
            feed: Passes it on.
        """
        self._pulled = pulled
        self._model = model
        self.partitions = Partitions(
            self.ownership,
            self.membership,
            batcher,
            worker,
            on_progress=watermark.note,
            on_dropped=repairer.add,
        )
        self._shared_asked = SharedAsked(self.membership, asyncio.get_running_loop())
        self.shared_live = SharedLive(
            self.membership,
            live,
            feed,
            show=partial(show_accepted, live),
            on_other=pulled.note,
            on_forgotten=self._forgotten_elsewhere,
            begin=(LIVE_SECONDS, LIVE_PAYLOADS),
        )
        self._connected = True

    @property
    def problems(self) -> list[str]:
        """Current failures, one line each. Readable from any thread."""
        return self.membership.problems + self.partitions.problems + self.shared_live.problems

    def note_asked(self, user_id: str, product_id: str | None) -> None:
        """Tell the other processes that somebody asked the assistant. From any thread."""
        self._shared_asked.note(user_id, product_id)

    async def run(self) -> None:
        """Follow the other processes until cancelled.

        Fails if the membership does: without its lease this process stores nothing.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_membership())
            group.create_task(self.partitions.run())
            group.create_task(self.shared_live.run())
            group.create_task(self._shared_asked.run())

    async def leave(self) -> None:
        """End the membership."""
        self._membership_task.cancel()
        await asyncio.wait([self._membership_task])

    async def _watch_membership(self) -> None:
        await asyncio.shield(self._membership_task)

    def _arrived(self) -> None:
        if self._connected:
            self.partitions.wake()
            self.shared_live.wake()

    async def _forgotten_elsewhere(self) -> None:
        """Clear what may hold a person or a session that another process has forgotten."""
        self._shared_asked.forget()
        self._pulled.clear()
        await self._pulled.load(again=True)
        self._model.forget_vectors()
        forget_texts()

"""Forgets people and sessions in a running pipeline: its queue, its store, and all that it caches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import suppress
from typing import Any

from autoplay_rag._text_cache import forget_texts
from autoplay_rag.ingest.batching import Batcher
from autoplay_rag.ingest.clients import Clients
from autoplay_rag.ingest.pulled import PulledActions
from autoplay_rag.ingest.run.accepting import Accepting
from autoplay_rag.ingest.run.main_task import MainTask
from autoplay_rag.ingest.run.model_in_use import ModelInUse
from autoplay_rag.ingest.shared_live import SharedLive
from autoplay_rag.ingest.upkeep import Upkeep
from autoplay_rag.journal.forgetting import Deleted
from autoplay_rag.journal.on_tables import TableJournal
from autoplay_rag.journal.selecting import Asked
from autoplay_rag.live import Feed, LiveSessions
from autoplay_rag.maintenance.erasing import Eraser
from autoplay_rag.maintenance.exporting import export_records
from autoplay_rag.maintenance.forgetting import Forgetter
from autoplay_rag.maintenance.receipt import Receipt
from autoplay_rag.stores.base import Store

__all__ = ["Forgetting"]


class Forgetting:
    """Carries out requests to forget, and exports what is held about people.

    Args:
        journal: Has the requests and the payloads.
        store: Has the chunks.
        upkeep: Deletes chunks whose outbox entry is waited for.
        eraser: Writes the files anew in the background.
        delete: Starts to delete chunks that are in the outbox.
        complete: Whether the journal has all chunks of the store.
        accepting: Follows the payloads that wait.
        batcher: Knows which sessions have a batch under way.
        model: Caches vectors.
        pulled: Remembers what was pulled.
        live: The live sessions.
        feed: The subscribers.
        shared_live: Reads live sessions from the journal; None without other processes.
        clients: The attached clients.
        main: Works meanwhile.
    """

    def __init__(
        self,
        journal: TableJournal,
        store: Store,
        upkeep: Upkeep,
        eraser: Eraser,
        *,
        delete: Callable[[Sequence[str]], None],
        complete: bool,
        accepting: Accepting,
        batcher: Batcher,
        model: ModelInUse,
        pulled: PulledActions,
        live: LiveSessions,
        feed: Feed,
        shared_live: SharedLive | None,
        clients: Clients,
        main: MainTask,
    ) -> None:
        self._journal = journal
        self._eraser = eraser
        self._delete = delete
        self._accepting = accepting
        self._batcher = batcher
        self._model = model
        self._pulled = pulled
        self._live = live
        self._feed = feed
        self._shared_live = shared_live
        self._clients = clients
        self._main = main
        self._forgetter = Forgetter(
            journal.erasures,
            journal,
            store,
            upkeep,
            eraser,
            complete=complete,
            busy=self._busy,
            on_deleted=self._deleted,
            on_forgotten=self._clear_caches,
        )

    async def forget(self, asked: Asked, *, dry_run: bool, block: bool) -> Receipt:
        """Forget people or sessions; see `IngestPipeline.forget`."""
        return await self._main.run_beside(
            self._forgetter.forget(asked, dry_run=dry_run, block=block)
        )

    async def receipt(self, number: int) -> Receipt:
        """Return a receipt as of now; see `IngestPipeline.receipt`."""
        return await self._forgetter.receipt(number)

    def export(self, asked: Asked) -> AsyncIterator[dict[str, Any]]:
        """Yield everything that the journal holds about ids; see `IngestPipeline.export`."""
        return export_records(self._journal.read_in_order, asked)

    async def finish(self, timeout: float) -> None:  # noqa: ASYNC109 - as in `drain`
        """Wait until all requests to forget are complete. What is left goes on at the next start."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._main.ends_first(self._eraser.wait())

    async def _busy(self, lanes: Collection[int]) -> set[int]:
        # A batch that is still being planned is not in the journal yet.
        found = {lane for lane in lanes if self._batcher.is_under_way(lane)}
        if self._journal.membership is not None:
            found |= await self._journal.under_way(lanes)
        return found

    def _deleted(self, page: Deleted) -> None:
        self._accepting.deleted(page.settled)
        self._delete(page.chunks)
        if page.returned:
            self._accepting.returned(page.returned)

    def _clear_caches(self, asked: Asked, lanes: Collection[int]) -> None:
        # Events in `live` have the times of their arrival, so all of a session are dropped.
        self._live.forget(set(lanes), user_id=asked.user_id, conversation_id=asked.conversation_id)
        self._feed.forget(set(lanes), user_id=asked.user_id)
        if self._shared_live is not None:
            self._shared_live.forgotten()
        if asked.user_id is not None:
            self._pulled.forget(asked.user_id)
            for source in self._clients.pull_sources():
                source.forget(asked.user_id)
        self._model.forget_vectors()
        forget_texts()

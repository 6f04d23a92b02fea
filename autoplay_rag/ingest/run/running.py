"""One run of a pipeline: creates its parts, starts them and closes them together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from autoplay_rag._timings import Timings
from autoplay_rag.embedders.base import Embedder
from autoplay_rag.errors import AutoplayError
from autoplay_rag.ingest.answering import answer_tasks
from autoplay_rag.ingest.batching import Batcher
from autoplay_rag.ingest.chunk_writer import ChunkWriter
from autoplay_rag.ingest.clients import Clients
from autoplay_rag.ingest.dead_letters import DeadLetters
from autoplay_rag.ingest.gaps import GapFiller
from autoplay_rag.ingest.indexing import Indexer
from autoplay_rag.ingest.inflowing import Entries, Inflowing
from autoplay_rag.ingest.intake import Intake
from autoplay_rag.ingest.journals import make_journal
from autoplay_rag.ingest.linking import Linker
from autoplay_rag.ingest.pairing import Pairing
from autoplay_rag.ingest.planner import Planner
from autoplay_rag.ingest.pulled import PulledActions
from autoplay_rag.ingest.repairing import Repairer
from autoplay_rag.ingest.retiring import Retirer
from autoplay_rag.ingest.run.accepting import Accepting
from autoplay_rag.ingest.run.condition import Condition
from autoplay_rag.ingest.run.draining import Draining
from autoplay_rag.ingest.run.forgetting import Forgetting
from autoplay_rag.ingest.run.main_task import MainTask
from autoplay_rag.ingest.run.maintaining import Maintaining
from autoplay_rag.ingest.run.model_in_use import ModelInUse
from autoplay_rag.ingest.run.opening import open_store
from autoplay_rag.ingest.run.periodic import PeriodicWork, tidy
from autoplay_rag.ingest.run.replica import Replica
from autoplay_rag.ingest.run.resuming import resume_queue
from autoplay_rag.ingest.run.showing import resume_live
from autoplay_rag.ingest.settings import Settings
from autoplay_rag.ingest.upkeep import Upkeep
from autoplay_rag.ingest.watermark import SharedWatermark, Watermark
from autoplay_rag.ingest.worker import Worker
from autoplay_rag.journal.ownership import Membership, owns_everything
from autoplay_rag.live import Feed, LiveSessions
from autoplay_rag.maintenance.compacting import Compactor
from autoplay_rag.maintenance.erasing import Eraser
from autoplay_rag.maintenance.retention import Retention
from autoplay_rag.maintenance.space import SpaceWatch
from autoplay_rag.search.searcher import Searcher
from autoplay_rag.search.serving import Serving
from autoplay_rag.stores.base import TextStore, VectorStore

__all__ = ["RunningPipeline"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

_GRACE_SECONDS = 5.0
"""The time that cancelled requests have to end, as has what closing does besides draining."""


class RunningPipeline:
    """The journal, worker and store of one run, and the task that runs them.

    A payload goes through `accepting` into the journal, from there to the batcher, and from the
    worker through the writer into the store. The parts that this needs are made by `start`, once
    journal and store are open.

    Args:
        settings: The options of the pipeline.
        store: The store for the chunks.
        embedder: Makes the vectors; None if the store embeds texts itself.
        live: Receives the accepted payloads.
        feed: Receives the accepted payloads, too.
        clients: The attached clients. Their failures are part of `health`.

    Attributes:
        accepting: Takes payloads in.
        condition: Tells the ledger, the health and the lag.
        dead_letters: Payloads that could not be stored.
        draining: Waits until payloads are stored.
        forgetting: Forgets people and sessions.
        loop: The event loop of this run.
        maintaining: Compares, copies, backs up and re-embeds.
        membership: This process among those of the journal; None if it is the only one.
        model: Has the embedder in use.
        pulled: Takes in pulled actions.
        retention: Deletes what is old.
        searcher: Answers questions from store and journal.
        space: Measures the disk space.
        timings: How long searches, requests and payloads take.
        timeline: Lists sessions and reads payloads.
        visits: Returns the known sessions of lanes.
        watermark: Tracks which sequence numbers are settled.
    """

    condition: Condition
    draining: Draining
    forgetting: Forgetting
    maintaining: Maintaining
    pulled: PulledActions
    retention: Retention
    searcher: Searcher
    watermark: Watermark
    _compactor: Compactor
    _entries: Entries
    _eraser: Eraser
    _gaps: GapFiller
    _linker: Linker
    _main: MainTask
    _periodic: PeriodicWork
    _planner: Planner
    _repairer: Repairer
    _retirer: Retirer
    _upkeep: Upkeep
    _worker: Worker
    _writer: ChunkWriter
    # What only a journal has that several processes share, or that reads a topic.
    _replica: Replica | None = None
    _inflowing: Inflowing | None = None

    def __init__(
        self,
        settings: Settings,
        store: VectorStore | TextStore,
        embedder: Embedder | None,
        *,
        live: LiveSessions,
        feed: Feed,
        clients: Clients,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.timings = Timings()
        self._settings = settings
        self._store = store
        self._live = live
        self._feed = feed
        self._clients = clients
        self._intake = Intake(
            settings.select, settings.redact, include_email=settings.include_email
        )
        self._batcher = Batcher(settings.batch_window)
        self.accepting = Accepting(self._intake, self._batcher, live, feed, self.timings)
        model = embedder.model if embedder else ""
        self._journal = make_journal(
            settings, model, on_entry=self.accepting.committed, on_returned=self.accepting.returned
        )
        self._pairing = Pairing(
            self._journal,
            store,
            model,
            rebuild=settings.rebuild,
            adopt=settings.adopt,
            path=settings.journal,
        )
        self.membership: Membership | None = self._journal.membership
        self.timeline = self._journal.timeline
        self.visits = self._journal.finder.visits
        self.dead_letters = DeadLetters(self._journal)
        self.model = ModelInUse(embedder, settings, self.timings, self._journal)
        self.space = SpaceWatch(settings.journal_file, store.data_folder)

    # -- the start ----------------------------------------------------------------------------

    async def start(self) -> None:
        """Open journal and store, resume the work of an earlier run, and start the task."""
        await self._journal.open()
        try:
            if self.membership is None:
                await self._open_store()
            else:
                self._replica = Replica(self.membership, self._clients)
                # One process at a time: each of two would give an empty store an identity.
                await self.membership.while_held("store", self._open_store)
            await self._build()
            await self._resume()
            if self.maintaining.reembedding:
                await self.maintaining.reembedding.tidy()
        except BaseException:
            await self._close_all()
            raise
        if self._journal.inflow is not None and self._settings.takes_work:
            self._inflowing = Inflowing(self._journal.inflow, self._entries, self._worker.wake)
            self.condition.watched.append(self._inflowing)
        self._main.start(self._work())

    async def _open_store(self) -> None:
        await open_store(self._settings, self._journal, self._store, self._pairing, self.model.name)

    async def _build(self) -> None:
        """Create the parts, from the way in to what is around it."""
        known, notes = await self._journal.known(), await self._journal.notes()
        await self.model.begin()
        self._feed.begin(known.seq)
        self._build_sources(known.seq, adopted=notes.adopted)
        self._build_storing()
        if self._replica is not None:
            assert isinstance(self.watermark, SharedWatermark)
            self._replica.connect(
                watermark=self.watermark,
                batcher=self._batcher,
                worker=self._worker,
                repairer=self._repairer,
                pulled=self.pulled,
                model=self.model,
                live=self._live,
                feed=self._feed,
            )
        self.accepting.begin(
            self._journal, self.watermark, self._entries, self._worker, self._replica
        )
        self._build_around()

    def _build_sources(self, last: int, *, adopted: bool) -> None:
        """Create what gives payloads their numbers and makes entries of them."""
        self._intake.names_first_chunks = adopted
        if self.membership is None:
            self.watermark = Watermark(self._journal, last)
        else:
            self.watermark = SharedWatermark(self._journal, self.membership, last)
        self.pulled = PulledActions(
            self.timeline,
            lambda: self._journal.settled_of(0),
            self.accepting.accept_late,
            self._intake.kept,
        )
        self._entries = Entries(
            self._intake, self.pulled, self.watermark.take, self.accepting.note_received
        )
        self._gaps = GapFiller(
            self.pulled,
            self.timeline,
            lambda: self._clients.streams,
            self._clients.pull_source,
        )

    def _build_storing(self) -> None:
        """Create what plans, embeds and stores, and what follows from it."""
        settings = self._settings
        self._planner = Planner(
            render=settings.render,
            count_tokens=self.model.count_tokens,
            max_actions=settings.max_batch_actions,
            include_email=settings.include_email,
        )
        self._writer = ChunkWriter(
            self._store,
            self.model.embedding,
            embed_concurrency=settings.embed_concurrency,
            limits=self.model.limits,
            max_attempts=settings.max_attempts,
            timings=self.timings,
        )
        self._upkeep = Upkeep(self._journal, self._writer, self._planner)
        self._linker = Linker(
            self._journal, self._writer, able="update_metadata" in self._store.capabilities
        )
        owns = self.membership.ownership.owns if self.membership else owns_everything
        self._retirer = Retirer(self._journal, self._upkeep.delete, owns)
        self._worker = Worker(
            self._journal,
            self._batcher,
            self._planner,
            self._writer,
            self._upkeep,
            owns=owns,
            timings=self.timings,
            on_settled=self._settled,
            on_stored=self._retirer.stored,
            on_linked=self._linker.wake,
        )
        self._repairer = Repairer(self._journal, self._writer, self._upkeep)

    def _build_around(self) -> None:
        """Create what tells of the payloads, waits for them, maintains and searches them."""
        settings, complete = self._settings, self._settings.journal is not None
        serving, noting = Serving(self.model.embedder), asyncio.Lock()
        delete = self._upkeep.delete if self.membership is None else _leave_to_owner
        self.condition = Condition(
            settings,
            self._journal,
            batcher=self._batcher,
            watermark=self.watermark,
            model=self.model,
            writer=self._writer,
            pulled=self.pulled,
            gaps=self._gaps,
        )
        self._main = MainTask(self.condition, self._journal)
        self.draining = Draining(
            settings,
            self._journal,
            batcher=self._batcher,
            watermark=self.watermark,
            worker=self._worker,
            upkeep=self._upkeep,
            linker=self._linker,
            retirer=self._retirer,
            condition=self.condition,
            main=self._main,
        )
        self.maintaining = Maintaining(
            settings,
            self._journal,
            self._store,
            pairing=self._pairing,
            noting=noting,
            model=self.model,
            serving=serving,
            planner=self._planner,
            writer=self._writer,
            worker=self._worker,
            upkeep=self._upkeep,
            main=self._main,
        )
        self._eraser = Eraser(self._journal.erasures, self._store, self.maintaining.copy_is_clean)
        self.forgetting = Forgetting(
            self._journal,
            self._store,
            self._upkeep,
            self._eraser,
            delete=delete,
            complete=complete,
            accepting=self.accepting,
            batcher=self._batcher,
            model=self.model,
            pulled=self.pulled,
            live=self._live,
            feed=self._feed,
            shared_live=self._replica.shared_live if self._replica else None,
            clients=self._clients,
            main=self._main,
        )
        self.retention = Retention(
            self._journal.expiry,
            days=settings.retention_days,
            key_days=settings.remember_keys_days,
            delete=delete,
            deleting=lambda: self._upkeep.deleting,
            clock=settings.clock,
        )
        self._compactor = Compactor(self._store)
        self._periodic = PeriodicWork(
            settings,
            self._journal,
            self.condition,
            self._pairing,
            noting,
            partitions=self._replica.partitions if self._replica else None,
            upkeep=self._upkeep,
            linker=self._linker,
            retirer=self._retirer,
        )
        self.searcher = Searcher(
            self._store,
            serving,
            self._journal.finder,
            # A journal in memory may begin beside a store that is full already.
            complete=complete,
            watermark=lambda: self.watermark.value,
            timings=self.timings,
            trace_content=settings.trace_content,
        )
        watched = (
            self.accepting,
            self._writer,
            self._worker,
            self._upkeep,
            self._linker,
            self._retirer,
            self._eraser,
            self.maintaining.reembedding,
            self.retention,
            self.space,
            self._replica,
            self._repairer,
            self._compactor,
            self._clients,
            self._gaps,
        )
        self.condition.watched.extend(part for part in watched if part is not None)

    async def _resume(self) -> None:
        await self._journal.queue_unconfirmed()
        # Deletions first: a plan may store a chunk again that is still to be deleted.
        await self._upkeep.resume()
        self._linker.wake()
        await self._retirer.resume()
        if self._replica is None:
            await resume_queue(self._journal, self._worker, self._batcher, self.watermark)
            await resume_live(self._journal, self._live, self._feed)
        else:
            assert isinstance(self.watermark, SharedWatermark)
            arrivals = await self._replica.membership.arrivals((), 0, retried=False)
            self.watermark.note(arrivals.progress)
            await self._replica.shared_live.begin(filling=not len(self._live))

    # -- the work -----------------------------------------------------------------------------

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._writer.run())
            group.create_task(self._worker.run())
            group.create_task(self._upkeep.run())
            group.create_task(self._retirer.run())
            group.create_task(self._linker.run())
            group.create_task(self.space.run())
            group.create_task(self._eraser.run())
            group.create_task(self._repairer.run())
            if self._settings.journal:
                group.create_task(
                    answer_tasks(
                        self._journal,
                        self.maintaining.verify,
                        self.maintaining.backup,
                        self.forgetting.forget,
                    )
                )
            group.create_task(self._gaps.run())
            group.create_task(self._periodic.run())
            if self._inflowing is not None:
                group.create_task(self._inflowing.watch())
            if self._replica is None:
                group.create_task(self._keep_up())
            else:
                membership = self._replica.membership
                group.create_task(self._replica.run())
                group.create_task(self.condition.watch_replicas(membership))
                if self._settings.takes_work:
                    group.create_task(membership.while_held("upkeep", self._keep_up))

    async def _keep_up(self) -> None:
        """Do what concerns the journal as a whole. One process at a time does it."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.retention.run())
            group.create_task(self._compactor.run())
            group.create_task(Indexer(self._journal).run())
            group.create_task(tidy(self._journal, self.maintaining.reembedding))

    def _settled(self, seqs: Sequence[int]) -> None:
        self.accepting.settled(seqs)
        self.condition.tell_progress()

    def note_asked(self, user_id: str, product_id: str | None) -> None:
        """Note that somebody asked the assistant, in all processes of the journal."""
        self._clients.note_asked(user_id, product_id)
        if self._replica is not None:
            self._replica.note_asked(user_id, product_id)

    async def run_alone(self, name: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run work in one process at a time; see `IngestPipeline.run_alone`."""
        if self.membership is None:
            return await work()
        return await self.membership.while_held(f"work:{name}", work)

    # -- the end ------------------------------------------------------------------------------

    async def leave_topic(self) -> None:
        """Stop taking payloads out of a topic; others may go on.

        A commit that does not end in time is given up: its messages are read again, or known.
        """
        if self._inflowing is not None:
            await self._inflowing.leave(_GRACE_SECONDS)

    async def close(self) -> None:
        """Stop the task and close everything. Payloads that are not stored stay in the journal."""
        await self.leave_topic()
        if not await self._main.stop(_GRACE_SECONDS):
            _log.error(
                "a request to the embedder or the store did not end within %g s after it was "
                "cancelled; closing anyway",
                _GRACE_SECONDS,
            )
        try:
            if self._settings.journal:
                with suppress(AutoplayError, TimeoutError):
                    # The writer waits for a database that is away, until the journal is closed.
                    async with asyncio.timeout(_GRACE_SECONDS):
                        await self._journal.note_health(self.condition.health)
                    if self.membership is None:
                        await self._pairing.note()
        finally:
            await self._close_all()

    async def _close_all(self) -> None:
        try:
            await self._store.aclose()
        finally:
            try:
                if self.model.embedder:
                    await self.model.embedder.aclose()
            finally:
                try:
                    await self._leave()
                finally:
                    await self._journal.close()

    async def _leave(self) -> None:
        if self._replica is not None:
            await self._replica.leave()
        if self.membership is not None:
            await self.membership.close()


def _leave_to_owner(_ids: Sequence[str]) -> None:
    """Do not delete: the owner of a session finds its deletions in the outbox."""

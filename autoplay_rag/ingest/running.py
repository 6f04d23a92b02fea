"""One run of a pipeline: creates its parts, starts them and closes them together."""

from __future__ import annotations

import asyncio
import logging
import time
from array import array
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from autoplay_rag._describe import describe
from autoplay_rag._text_cache import forget_texts
from autoplay_rag._timings import Timings
from autoplay_rag.content.identity import parts_by_person
from autoplay_rag.content.keys import session_lane
from autoplay_rag.content.passages import storable
from autoplay_rag.embedders.base import Embedder
from autoplay_rag.errors import (
    AutoplayError,
    ConfigurationError,
    DrainTimeoutError,
    JournalError,
    PipelineError,
    StoreError,
    StoreMismatchError,
)
from autoplay_rag.ingest.answering import answer_tasks
from autoplay_rag.ingest.asked import SharedAsked
from autoplay_rag.ingest.batching import Batcher
from autoplay_rag.ingest.chunk_writer import ChunkWriter
from autoplay_rag.ingest.clients import Clients
from autoplay_rag.ingest.copier import Tell
from autoplay_rag.ingest.dead_letters import DeadLetters
from autoplay_rag.ingest.embedding import Embedding, TokenBudget, today
from autoplay_rag.ingest.gaps import GapFiller
from autoplay_rag.ingest.indexing import Indexer
from autoplay_rag.ingest.inflowing import Entries, Inflowing
from autoplay_rag.ingest.intake import Intake
from autoplay_rag.ingest.journals import make_journal
from autoplay_rag.ingest.linking import Linker
from autoplay_rag.ingest.pairing import Pairing
from autoplay_rag.ingest.partitions import Partitions
from autoplay_rag.ingest.planner import Planner
from autoplay_rag.ingest.pulled import PulledActions
from autoplay_rag.ingest.reembedding import NewModel, Reembedding, can_exchange
from autoplay_rag.ingest.repairing import Repairer
from autoplay_rag.ingest.retiring import Retirer
from autoplay_rag.ingest.retries import RequestLimits
from autoplay_rag.ingest.settings import Settings
from autoplay_rag.ingest.shared_live import SharedLive
from autoplay_rag.ingest.store_copy import copy_chunks
from autoplay_rag.ingest.upkeep import Upkeep
from autoplay_rag.ingest.watermark import SharedWatermark, Watermark
from autoplay_rag.ingest.worker import Worker
from autoplay_rag.journal.base import Entry, Health, Outcome
from autoplay_rag.journal.forgetting import Deleted
from autoplay_rag.journal.inflow import TopicStatus
from autoplay_rag.journal.lag import NO_LAG
from autoplay_rag.journal.ledger import Ledger
from autoplay_rag.journal.ownership import (
    AcceptedPayload,
    Membership,
    Replicas,
    SharedProgress,
    owns_everything,
)
from autoplay_rag.journal.reader import JournalStatus
from autoplay_rag.journal.selecting import Asked
from autoplay_rag.live import Feed, LiveSessions
from autoplay_rag.maintenance.backup import BackupReport, write_backup
from autoplay_rag.maintenance.compacting import Compactor
from autoplay_rag.maintenance.erasing import Eraser
from autoplay_rag.maintenance.exporting import export_records
from autoplay_rag.maintenance.forgetting import Forgetter
from autoplay_rag.maintenance.progress import Progress
from autoplay_rag.maintenance.receipt import Receipt
from autoplay_rag.maintenance.report import CopyReport, ReembedReport, VerifyReport
from autoplay_rag.maintenance.retention import Retention
from autoplay_rag.maintenance.space import SpaceWatch
from autoplay_rag.maintenance.verify import Verifier
from autoplay_rag.payloads import ActionsPayload, Payload
from autoplay_rag.search.searcher import Searcher
from autoplay_rag.search.serving import Serving
from autoplay_rag.sources.age import arrived_at
from autoplay_rag.sources.sessions import is_pulled
from autoplay_rag.stores.base import Capability, Store, StoreIdentity, TextStore, VectorStore

__all__ = ["RunningPipeline"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

_REQUESTS_SECONDS = 1.0
"""The interval of checking the journal for requests of other processes."""
_TIDY_EVERY = 60
_NOTE_EVERY = 30
"""The intervals of `Journal.tidy` and `Pairing.note`, in seconds."""
_LAG_EVERY = 5
"""Seconds between two measurements of the lag."""
_LOOK_SECONDS = 0.02
"""The least time between two looks for what of a session still waits."""
_LEASES = 1.5
"""How long `drain` waits for the cleaning up of other processes, in lengths of a lease."""
_REPLICAS_SECONDS = 2.0
"""The interval of reading who has what."""
_GRACE_SECONDS = 5.0
"""The time that cancelled requests have to end, as has what closing does besides draining."""
_RESUME_PAGE = 100_000
_CONSEQUENCES: dict[Capability, str] = {
    "delete": "chunks of dead payloads, and actions that a summary replaces, stay in the store",
    "identity": "only a sample of ids shows if it was emptied or exchanged, and only with 'get'",
    "scan": "its content cannot be added to a journal, and `verify` finds no extra chunks",
    "update_metadata": "chunks stored before their user is known are not found by that user",
    "drop": "a rebuild cannot replace vectors of another model",
    "exchange": "`reembed` cannot change the model while the pipeline runs",
}
"""The consequences of each capability that a store lacks."""
_WORST_FIRST: tuple[Outcome, ...] = (
    "overflow", "dead", "accepted", "refused", "filtered", "duplicate",
)  # fmt: skip
_MEASURED = 100_000
"""The most waiting payloads whose lag is measured."""
_LIVE_SECONDS = 3600.0
_LIVE_PAYLOADS = 10_000
"""The age and number of journalled payloads to fill live sessions with at start."""


class RunningPipeline:
    """The journal, worker and store of one run, and the task that runs them.

    Args:
        settings: The options of the pipeline.
        store: The store for the chunks.
        embedder: Makes the vectors; None if the store embeds texts itself.
        live: Receives the accepted payloads.
        feed: Receives the accepted payloads, too.
        clients: The attached clients. Their failures are part of `health`.

    Attributes:
        dead_letters: Payloads that could not be stored.
        last_received: The loop's time when the last payload arrived.
        loop: The event loop of this run.
        pulled: Takes in pulled actions.
        replicas: All processes of the journal, read every few seconds; None if there is only this.
        retention: Deletes what is old.
        searcher: Answers questions from store and journal.
        space: Measures the disk space.
        topic: How far the topic is taken in, read every few seconds; None without a topic.
        timings: How long searches, requests and payloads take.
        timeline: Lists sessions and reads payloads.
        visits: Returns the known sessions of lanes.
        watermark: Tracks which sequence numbers are settled.
    """

    replicas: Replicas | None = None
    topic: TopicStatus | None = None
    _shared_live: SharedLive | None = None
    _shared_asked: SharedAsked | None = None
    _inflowing: Inflowing | None = None
    _entries: Entries

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
        self._settings = settings
        self._store = store
        self._embedder = embedder
        self._live = live
        self._feed = feed
        self._clients = clients
        self._intake = Intake(
            settings.select, settings.redact, include_email=settings.include_email
        )
        self._batcher = Batcher(settings.batch_window)
        model = embedder.model if embedder else ""
        self._journal = make_journal(
            settings, model, on_entry=self._committed, on_returned=self._returned
        )
        # None while this process is the only one of its journal.
        self._membership = self._journal.membership
        self._member: asyncio.Task[None] | None = None
        self._partitions: Partitions | None = None
        self._repairer: Repairer
        self._pairing = Pairing(
            self._journal,
            store,
            model,
            rebuild=settings.rebuild,
            adopt=settings.adopt,
            path=settings.journal,
        )
        self._overflowing = False
        self._lag = NO_LAG
        self._maintaining = asyncio.Lock()
        self._noting = asyncio.Lock()
        self._failure: str | None = None
        self.last_received = 0.0
        self.dead_letters = DeadLetters(self._journal)
        self.loop = asyncio.get_running_loop()
        self.watermark: Watermark
        self.visits = self._journal.finder.visits
        self.timings = Timings()
        self._accepted_at: dict[int, float] = {}
        self.timeline = self._journal.timeline
        self._arrived: dict[int, float] = {}
        self.pulled = PulledActions(
            self.timeline,
            lambda: self._journal.settled_of(0),
            self._accept_late,
            self._intake.kept,
        )
        self._gaps = GapFiller(
            self.pulled, self.timeline, lambda: clients.streams, clients.pull_source
        )
        self._serving = Serving(embedder)
        self.searcher = Searcher(
            store,
            self._serving,
            self._journal.finder,
            # A journal in memory may begin beside a store that is full already.
            complete=settings.journal is not None,
            watermark=lambda: self.watermark.value,
            timings=self.timings,
            trace_content=settings.trace_content,
        )
        self._budget: TokenBudget
        self._embedding: Embedding | None = None
        self._planner: Planner
        self._writer: ChunkWriter
        self._upkeep: Upkeep
        self._linker: Linker
        self._retirer: Retirer
        self.retention: Retention
        self.space = SpaceWatch(settings.journal_file, store.data_folder)
        self._worker: Worker
        self._reembedding: Reembedding | None = None
        if isinstance(store, VectorStore) and can_exchange(store):
            self._reembedding = Reembedding(
                self._journal, store, self._serving, self._resting, self._exchanged
            )
        self._eraser = Eraser(self._journal.erasures, store, self._copy_is_clean)
        self._compactor = Compactor(store)
        self._forgetter: Forgetter
        self._task: asyncio.Task[None]

    @property
    def membership(self) -> Membership | None:
        """This process among those of the journal; None if it is the only one."""
        return self._membership

    # -- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open journal and store, resume the work of an earlier run, and start the task."""
        await self._journal.open()
        try:
            if self._membership is None:
                await self._open_store()
            else:
                self._member = self.loop.create_task(
                    self._membership.run(self._arrived_somewhere, self._clients.note_asked),
                    name="autoplay-member",
                )
                self._member.add_done_callback(_report)
                # One process at a time: each of two would give an empty store an identity.
                await self._membership.while_held("store", self._open_store)
            await self._build()
            await self._resume()
            if self._reembedding:
                await self._reembedding.tidy()
        except BaseException:
            await self._close_all()
            raise
        if self._journal.inflow is not None and self._settings.takes_work:
            self._inflowing = Inflowing(self._journal.inflow, self._entries, self._worker.wake)
        self._task = self.loop.create_task(self._work(), name="autoplay-ingest")
        self._task.add_done_callback(_report)

    async def _check_is_alone(self, what: str) -> None:
        """Refuse what other processes, which go on with the old model or store, would spoil."""
        if self._membership is not None and (count := await self._membership.others()):
            raise ConfigurationError(
                f"{what} needs that no other process uses this journal, but {count} of them do: stop "
                "them first (one that was killed counts until its lease ends)"
            )

    async def _open_store(self) -> None:
        if self._settings.rebuild or self._settings.adopt:
            await self._check_is_alone("rebuild=True" if self._settings.rebuild else "adopt=True")
        await self._start_store()
        _log_missing_capabilities(self._store)
        self._check_can_expire()
        # What an earlier run did not delete must not be stored by this one.
        await self._journal.erasures.delete_all()
        if self._settings.journal:
            await self._pairing.check()

    async def _start_store(self) -> None:
        copy = await self._reembedding.settle() if self._reembedding else None
        try:
            await self._pairing.open_store()
        except StoreMismatchError as error:
            if copy is None or self._embedder is None or copy.model != self._embedder.model:
                raise
            raise StoreMismatchError(
                f"only {copy.done:,} of {copy.total:,} chunks are embedded with {copy.model!r} so "
                "far. What to do: start with the old embedder, and call reembed() again (command: "
                f"reembed), which goes on where it stopped ({error})"
            ) from error

    def _check_can_expire(self) -> None:
        if self._settings.retention_days is not None and "delete" not in self._store.capabilities:
            raise ConfigurationError(
                "retention_days needs a store that can delete chunks, and "
                f"{type(self._store).__name__} cannot"
            )

    async def _build(self) -> None:
        settings, embedder, day = self._settings, self._embedder, today()
        known, notes = await self._journal.known(), await self._journal.notes()
        self._intake.names_first_chunks = notes.adopted
        if self._membership is None:
            self.watermark = Watermark(self._journal, known.seq)
        else:
            self.watermark = SharedWatermark(self._journal, self._membership, known.seq)
        self._entries = Entries(self._intake, self.pulled, self.watermark.take, self._note_received)
        self._feed.begin(known.seq)
        limits = None
        if embedder:
            spent = await self._journal.tokens(day)
            self._budget = TokenBudget(settings.max_embed_tokens_per_day, spent, self._save_tokens)
            self._embedding = Embedding(
                embedder, self._budget, settings.remembered_vectors, self.timings
            )
            limits = _limits(embedder, settings.max_embed_tokens_per_day)
        self._planner = planner = Planner(
            render=settings.render,
            count_tokens=self._count_tokens,
            max_actions=settings.max_batch_actions,
            include_email=settings.include_email,
        )
        self._writer = ChunkWriter(
            self._store,
            self._embedding,
            embed_concurrency=settings.embed_concurrency,
            limits=limits,
            max_attempts=settings.max_attempts,
            timings=self.timings,
        )
        self._upkeep = Upkeep(self._journal, self._writer, planner)
        self._linker = Linker(
            self._journal, self._writer, able="update_metadata" in self._store.capabilities
        )
        owns = self._membership.ownership.owns if self._membership else owns_everything
        self._retirer = Retirer(self._journal, self._upkeep.delete, owns)
        self.retention = Retention(
            self._journal.expiry,
            days=settings.retention_days,
            key_days=settings.remember_keys_days,
            delete=self._delete_anywhere,
            deleting=lambda: self._upkeep.deleting,
            clock=settings.clock,
        )
        self._worker = Worker(
            self._journal,
            self._batcher,
            planner,
            self._writer,
            self._upkeep,
            owns=owns,
            timings=self.timings,
            on_settled=self._settled,
            on_stored=self._retirer.stored,
            on_linked=self._linker.wake,
        )
        self._repairer = Repairer(self._journal, self._writer, self._upkeep)
        if self._membership is not None:
            self._partitions = Partitions(
                self._membership.ownership,
                self._membership,
                self._batcher,
                self._worker,
                on_progress=self._progressed,
                on_dropped=self._repairer.add,
            )
            self._shared_asked = SharedAsked(self._membership, self.loop)
            self._shared_live = SharedLive(
                self._membership,
                self._live,
                self._feed,
                show=self._show_accepted,
                on_other=self.pulled.note,
                on_forgotten=self._forgotten_somewhere,
                begin=(_LIVE_SECONDS, _LIVE_PAYLOADS),
            )
        self._forgetter = Forgetter(
            self._journal.erasures,
            self._journal,
            self._store,
            self._upkeep,
            self._eraser,
            complete=settings.journal is not None,
            busy=self._busy,
            on_deleted=self._payloads_deleted,
            on_forgotten=self._clear_caches,
        )

    async def _resume(self) -> None:
        await self._journal.queue_unconfirmed()
        # Deletions first: a plan may store a chunk again that is still to be deleted.
        await self._upkeep.resume()
        self._linker.wake()
        await self._retirer.resume()
        if self._membership is None:
            await self._resume_queue()
        else:
            self._progressed((await self._membership.arrivals((), 0, retried=False)).progress)
        await self._resume_live()

    async def _resume_queue(self) -> None:
        plans = await self._journal.plans()
        await self._worker.resume(plans)
        planned = {seq for plan in plans for seq in plan.seqs}
        now = self.loop.time()
        waiting = array("q")  # there may be millions
        letters: set[int] = set()
        page = await self._journal.waiting(0, _RESUME_PAGE)
        while page:
            for seq, lane, retried in page:
                waiting.append(seq)
                if retried:
                    letters.add(seq)
                if seq not in planned:
                    self._batcher.add(lane, seq, now)
            page = await self._journal.waiting(page[-1][0], _RESUME_PAGE)
        self.watermark.resume((seq, seq in letters) for seq in waiting)
        self._batcher.close_windows(now)

    async def _resume_live(self) -> None:
        filling = not len(self._live)
        if self._shared_live is not None:
            await self._shared_live.begin(filling=filling)
            return
        since = time.time() - _LIVE_SECONDS
        for at, payload in await self._journal.recent(since, _LIVE_PAYLOADS):
            if filling:
                self._show(payload, at=at)
            if payload.session_id:
                self._feed.know(session_lane(payload.product_id, payload.session_id), payload)

    async def _work(self) -> None:
        try:
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
                        answer_tasks(self._journal, self.verify, self.backup, self.forget)
                    )
                group.create_task(self._gaps.run())
                group.create_task(self._run_periodic_work())
                if self._inflowing is not None:
                    group.create_task(self._inflowing.watch())
                if self._membership is None:
                    group.create_task(self._keep_up())
                else:
                    assert self._partitions is not None
                    assert self._shared_live is not None
                    group.create_task(self._watch_member())
                    group.create_task(self._partitions.run())
                    assert self._shared_asked is not None
                    group.create_task(self._shared_live.run())
                    group.create_task(self._shared_asked.run())
                    group.create_task(self._watch_replicas(self._membership))
                    if self._settings.takes_work:
                        group.create_task(self._membership.while_held("upkeep", self._keep_up))
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._failure = f"the pipeline failed: {describe(_first_of(error))}"
            with suppress(AutoplayError):
                await self._journal.note_health(self.health)
            raise

    async def _watch_replicas(self, membership: Membership) -> None:
        while True:
            with suppress(JournalError):  # what is known stays; `health` says what is wrong
                self.replicas = replicas = await membership.replicas()
                if self._journal.inflow is not None:
                    alive = {one.name for one in replicas.replicas}
                    self.topic = (await self._journal.inflow.status()).read_by(alive)
            await asyncio.sleep(_REPLICAS_SECONDS)

    async def _watch_member(self) -> None:
        """Fail if the membership does: without its lease this process stores nothing."""
        assert self._member is not None
        await asyncio.shield(self._member)

    async def _keep_up(self) -> None:
        """Do what concerns the journal as a whole. One process at a time does it."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.retention.run())
            group.create_task(self._compactor.run())
            group.create_task(Indexer(self._journal).run())
            group.create_task(self._tidy())

    async def leave_topic(self) -> None:
        """Stop taking payloads out of a topic; others may go on.

        A commit that does not end in time is given up: its messages are read again, or known.
        """
        if self._inflowing is not None:
            await self._inflowing.leave(_GRACE_SECONDS)

    async def close(self) -> None:
        """Stop the task and close everything. Payloads that are not stored stay in the journal."""
        await self.leave_topic()
        self._task.cancel()
        _, busy = await asyncio.wait([self._task], timeout=_GRACE_SECONDS)
        if busy:
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
                        await self._journal.note_health(self.health)
                    if self._membership is None:
                        await self._pairing.note()
        finally:
            await self._close_all()

    async def _close_all(self) -> None:
        try:
            await self._store.aclose()
        finally:
            try:
                if self._embedder:
                    await self._embedder.aclose()
            finally:
                try:
                    await self._leave()
                finally:
                    await self._journal.close()

    async def _leave(self) -> None:
        if self._member is not None:
            self._member.cancel()
            await asyncio.wait([self._member])
        if self._membership is not None:
            await self._membership.close()

    # -- in -----------------------------------------------------------------------------------

    def accept(self, payload: Payload) -> asyncio.Future[Outcome]:
        """Assign a sequence number to a payload and pass it to the journal.

        A payload of several people becomes one of each, so that no chunk mixes two people.
        """
        accepted = [self._accept(part) for part in parts_by_person(payload)]
        return accepted[0] if len(accepted) == 1 else self._joined(accepted)

    def _joined(self, parts: Sequence[asyncio.Future[Outcome]]) -> asyncio.Future[Outcome]:
        """Return a future with the worst outcome of the parts of one payload."""
        whole: asyncio.Future[Outcome] = self.loop.create_future()

        def finish(ended: asyncio.Future[list[Outcome]]) -> None:
            if whole.done():
                return
            if ended.cancelled():
                whole.cancel()
            elif (error := ended.exception()) is not None:
                whole.set_exception(error)
            else:
                whole.set_result(min(ended.result(), key=_WORST_FIRST.index))

        asyncio.gather(*parts).add_done_callback(finish)
        return whole

    def _accept(self, payload: Payload) -> asyncio.Future[Outcome]:
        return self._enter(lambda seq: self._entries.of(payload, seq))

    def _accept_late(self, payload: Payload, *, at: float) -> asyncio.Future[Outcome]:
        def entry(seq: int) -> Entry:
            self._arrived[seq] = at
            return self._intake.entry(payload, seq)

        return self._enter(entry)

    def _enter(self, entry: Callable[[int], Entry]) -> asyncio.Future[Outcome]:
        seq = self.watermark.take()
        self._note_received()
        try:
            return self._journal.accept(entry(seq))
        except BaseException:
            self.watermark.settle((seq,))
            raise

    def _note_received(self) -> None:
        self.last_received = self.loop.time()

    def _committed(self, entry: Entry, outcome: Outcome | None) -> None:
        self._watch_overflow(outcome)
        arrived = self._arrived.pop(entry.ticket or entry.seq, None)
        if outcome != "accepted":
            self.watermark.settle((entry.ticket or entry.seq,))
            return
        now = self.loop.time()
        if self._partitions is None:
            self._batcher.add(entry.lane, entry.seq, now)
        else:
            self._partitions.wake()
        # What another process stores is not measured: nothing would remove it here.
        owned = self._membership is None or self._membership.ownership.owns(entry.lane)
        if owned and len(self._accepted_at) < _MEASURED:
            self._accepted_at[entry.seq] = now
        self._worker.wake()
        shared = self._shared_live
        # What another process accepted before comes first: then this is shown with the next look.
        if entry.payload is not None and (shared is None or shared.is_next(entry.seq)):
            self._show(entry.payload, at=arrived)
            self._feed.publish(entry.seq, time.time(), entry.lane, entry.payload, entry.size)

    def _arrived_somewhere(self) -> None:
        if self._partitions is not None:
            self._partitions.wake()
        if self._shared_live is not None:
            self._shared_live.wake()

    def _show_accepted(self, row: AcceptedPayload) -> None:
        at = row.at
        if isinstance(row.payload, ActionsPayload) and is_pulled(row.payload):
            at = arrived_at(row.payload, at)
        self._show(row.payload, at=at)

    def note_asked(self, user_id: str, product_id: str | None) -> None:
        """Note that somebody asked the assistant, in all processes of the journal."""
        self._clients.note_asked(user_id, product_id)
        if self._shared_asked is not None:
            self._shared_asked.note(user_id, product_id)

    async def _forgotten_somewhere(self) -> None:
        if self._shared_asked is not None:
            self._shared_asked.forget()
        self.pulled.clear()
        await self.pulled.load(again=True)
        if self._embedding:
            self._embedding.clear()

    def _progressed(self, progress: SharedProgress) -> None:
        assert isinstance(self.watermark, SharedWatermark)
        self.watermark.note(progress)

    def _show(self, payload: Payload, *, at: float | None) -> None:
        try:
            if at is None:  # what a subclass that notices payloads of now may be limited to
                self._live.add(payload)
            else:
                self._live.add(payload, at=at)
        except Exception as error:  # noqa: BLE001 - a redacted payload may hold anything
            _log.error(
                "a payload is missing in the live sessions, but will be stored: %s",
                type(error).__name__,
            )

    def _watch_overflow(self, outcome: Outcome | None) -> None:
        if outcome in ("duplicate", "filtered", "refused"):
            return  # these take no space in the journal
        overflow = outcome in (None, "overflow")
        if overflow and not self._overflowing:
            _log.error(
                "the journal cannot accept payloads: it or its disk is full, or it cannot be "
                "written. Payloads are being LOST and counted as overflow: raise "
                "journal_max_bytes, free disk space, or check why the store does not keep up"
            )
        self._overflowing = overflow

    # -- out ----------------------------------------------------------------------------------

    async def drain(self, timeout: float | None) -> None:  # noqa: ASYNC109 - the error says what is left
        """Close all windows and wait for the accepted payloads; see `IngestPipeline.drain`."""
        try:
            async with asyncio.timeout(timeout):
                await self._journal.settled_of(0)  # what was handed over before is committed then
                self._batcher.close_windows(self.loop.time())
                self._worker.wake()
                ended = await self._ends_before_work(self._drained())
        except TimeoutError:
            ended = (
                not self.ledger.pending
                and self._upkeep.idle
                and self._linker.idle
                and self._retirer.idle
            )
            if not ended:
                pending = self.ledger.pending
                left = f"{pending:,} payloads are not stored" if pending else ""
                raise self._drain_timeout(
                    left or "deletions, or chunks to be stored again, are not done", timeout
                ) from None
        self._check_works(ended)
        await self._measure_lag()

    async def drain_before_close(self, timeout: float) -> None:  # noqa: ASYNC109 - as in `drain`
        """Drain if no other process goes on with what is left."""
        if not self._settings.takes_work:
            return
        if self._membership is not None:
            with suppress(JournalError):
                if await self._membership.others(working=True):
                    return
        await self.drain(timeout)

    async def drain_session(
        self,
        session_id: str,
        product_id: str | None,
        timeout: float | None,  # noqa: ASYNC109 - the error says what is left
    ) -> None:
        """Close the windows of one session id and wait for it; see `IngestPipeline.drain`."""
        last = self.watermark.last
        # Carried out once what was handed over before is committed.
        await self._journal.settled_of(0)
        if self._membership is not None:
            # Another process may have the session's window. There, all are closed.
            last = (await self._membership.close_windows()).last
        if product_id is None:
            lanes = list((await self.timeline.lanes(storable(session_id), None)).values())
        else:
            lanes = [session_lane(product_id, session_id)]
        try:
            async with asyncio.timeout(timeout):
                for lane in lanes:
                    self._batcher.close_window(lane, self.loop.time())
                self._worker.wake()
                ended = await self._ends_before_work(self._drained_lanes(lanes, last))
        except TimeoutError:
            ended = not (pending := await self.timeline.pending(lanes, last))
            if not ended:
                left = f"{pending:,} payloads of the session are not stored"
                raise self._drain_timeout(left, timeout) from None
        self._check_works(ended)

    def _check_works(self, ended: bool) -> None:
        if not ended:
            raise PipelineError(f"{self.health}; the pipeline stores nothing more: see the log")

    def _drain_timeout(self, left: str, timeout: float | None) -> DrainTimeoutError:
        reasons = self.health.reasons
        return DrainTimeoutError(
            f"{left} after {timeout:g} s" + (f" ({'; '.join(reasons)})" if reasons else "")
        )

    async def _drained_lanes(self, lanes: Sequence[int], last: int) -> None:
        while True:
            settled = self.watermark.next_settled()
            if not await self.timeline.pending(lanes, last):
                return
            with suppress(TimeoutError):
                # What other processes settle has no event here.
                async with asyncio.timeout(_REQUESTS_SECONDS if self._membership else None):
                    await settled.wait()
            await asyncio.sleep(_LOOK_SECONDS)

    async def _measure_lag(self) -> None:
        with suppress(AutoplayError):  # it is only a measurement
            self._lag = await self.timeline.lag(self.watermark.value)

    async def _while_running(self, work: Coroutine[Any, Any, T]) -> T:
        """Await work that needs the pipeline's own.

        Raises:
            PipelineError: If the pipeline stops first.
        """
        working = asyncio.ensure_future(work)
        try:
            await asyncio.wait([working, self._task], return_when=asyncio.FIRST_COMPLETED)
        finally:
            if stopped := not working.done():
                working.cancel()
                await asyncio.wait([working])
        if stopped:
            self._check_works(ended=False)
        return working.result()

    async def _ends_before_work(self, drain: Coroutine[Any, Any, None]) -> bool:
        drained = asyncio.create_task(drain)
        try:
            await asyncio.wait([drained, self._task], return_when=asyncio.FIRST_COMPLETED)
        finally:
            drained.cancel()
        if not drained.done() or drained.cancelled():
            return False
        drained.result()
        return True

    async def _drained(self) -> None:
        await self.watermark.wait()
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
        until = self.loop.time() + self._settings.lease_seconds * _LEASES
        while True:
            await self._upkeep.look()
            await self._upkeep.wait()
            if not await self._upkeep.is_anything_left() or self.loop.time() >= until:
                return
            await asyncio.sleep(_LOOK_SECONDS)

    def _settled(self, seqs: Sequence[int]) -> None:
        self.watermark.settle(seqs)
        if self._partitions is not None:
            self._partitions.settled(seqs)
        now = self.loop.time()
        for seq in seqs:
            if (accepted := self._accepted_at.pop(seq, None)) is not None:
                self.timings.add("lag", "", now - accepted)
        if self._settings.on_progress:
            try:
                self._settings.on_progress(self.ledger)
            except Exception:  # noqa: BLE001 - other people's code
                _log.exception("on_progress failed")

    @property
    def ledger(self) -> Ledger:
        """The counts as of the last commit."""
        embedding = self._embedding
        counts = {n: v for n, v in self._journal.counts.items() if n != "bytes"}
        return Ledger(
            **counts,
            chunks=self._writer.chunks,
            embed_requests=embedding.requests if embedding else 0,
            embed_texts=embedding.texts if embedding else 0,
            embed_tokens=embedding.tokens if embedding else 0,
            embed_reused=embedding.reused if embedding else 0,
            retries=self._writer.retries,
            pulled=self.pulled.taken,
            recovered=self._gaps.recovered,
            beyond_recovery=self._gaps.beyond,
            oldest_pending=self.lag if counts["pending"] else None,
            lag_p50=self._lag.p50,
            lag_p99=self._lag.p99,
        )

    @property
    def health(self) -> Health:
        """Whether payloads reach the store. Readable from any thread."""
        if self._failure:
            return Health("failed", (self._failure,))
        reasons = [self._journal.problem] if self._journal.problem else []
        if self._overflowing:
            reasons.append("overflow: the journal cannot accept payloads, and they are lost")
        reasons += self._writer.problems + self._worker.problems + self._upkeep.problems
        reasons += self._linker.problems + self._retirer.problems + self._eraser.problems
        if self._reembedding:
            reasons += self._reembedding.problems
        reasons += self.retention.problems + self.space.problems
        if self._membership and self._partitions:
            reasons += self._membership.problems + self._partitions.problems
            reasons += self._shared_live.problems if self._shared_live else []
            reasons += self._repairer.problems
        reasons += self._compactor.problems + self._clients.problems + self._gaps.problems
        if self._inflowing is not None:
            reasons += self._inflowing.problems
        return Health("degraded", tuple(reasons)) if reasons else Health()

    @property
    def lag(self) -> float:
        """About how many seconds the oldest pending payload has waited."""
        oldest = self._batcher.oldest()
        return 0.0 if oldest is None else max(0.0, self.loop.time() - oldest)

    async def run_alone(self, name: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run work in one process at a time; see `IngestPipeline.run_alone`."""
        if self._membership is None:
            return await work()
        return await self._membership.while_held(f"work:{name}", work)

    # -- maintenance --------------------------------------------------------------------------

    async def status(self) -> JournalStatus:
        """The state as of now; see `IngestPipeline.status`."""
        ledger, copy = self.ledger, await self._journal.copies.current()
        waited = ledger.oldest_pending
        return JournalStatus(
            ledger=ledger,
            queue_bytes=self._journal.counts["bytes"],
            oldest_at=None if waited is None else time.time() - waited,
            watermark=self.watermark.value,
            health=self.health,
            running=True,
            model=self._embedder.model if self._embedder else "",
            copy=copy,
            topic=self.topic,
        )

    async def verify(
        self, *, repair: bool, delete_extra: bool, tell: Tell | None = None
    ) -> VerifyReport:
        """Compare journal and store; see `IngestPipeline.verify`."""
        async with self._maintaining:
            total = (await self._journal.known()).chunks if tell else 0
            complete = self._settings.journal is not None
            verifier = Verifier(self._journal, self._store, self._upkeep, complete=complete)
            return await verifier.run(
                repair=repair, delete_extra=delete_extra, total=total, tell=tell
            )

    async def copy_to(
        self, target: VectorStore | TextStore, embedder: Embedder | None, *, tell: Tell | None
    ) -> CopyReport:
        """Copy the chunks into another store; see `IngestPipeline.copy_to`."""
        catalog = self._journal if self._settings.journal is not None else None
        async with self._maintaining:
            return await self._while_running(
                copy_chunks(self._store, target, embedder, catalog, on_progress=tell)
            )

    async def backup(self, folder: Path, *, tell: Tell | None = None) -> BackupReport:
        """Write a backup; see `IngestPipeline.backup`."""
        journal = self._settings.journal_file
        if journal is None and self._settings.journal is not None:
            raise ConfigurationError(
                "the journal is in PostgreSQL: back it up with the server's own tools (pg_dump, or "
                "a base backup)"
            )
        if journal is None:
            raise ConfigurationError("a backup needs a journal file: give journal=...")
        async with self._maintaining:
            return await write_backup(
                folder, journal, self._store, self._store_paused, on_progress=tell
            )

    async def reembed(
        self, embedder: Embedder, *, render: bool, tell: Tell | None
    ) -> ReembedReport:
        """Replace the embedder; see `IngestPipeline.reembed`."""
        assert self._embedder is not None
        assert self._reembedding is not None
        await self._check_is_alone("reembed")
        async with self._maintaining:
            if embedder.model == self._embedder.model and not render:
                await self._reembedding.abandon()
                return ReembedReport(embedder.model, 0, 0, 0, 0.0)
            settings = self._settings
            model = NewModel(
                embedder,
                Embedding(embedder, self._budget, settings.remembered_vectors, self.timings),
                _limits(embedder, settings.max_embed_tokens_per_day),
                replace(self._planner, count_tokens=embedder.count_tokens),
                settings.embed_concurrency,
                settings.max_attempts,
            )
            before = self._embedder
            try:
                report = await self._while_running(
                    self._reembedding.run(model, render=render, tell=tell)
                )
            except PipelineError as error:
                # It is not known which model the store has: nothing may be stored any more.
                self._failure = self._failure or str(error)
                self._task.cancel()
                raise
            finally:
                if self._embedder is not before is not embedder:
                    await before.aclose()
            return report

    @property
    def embedder(self) -> Embedder | None:
        """The embedder in use."""
        return self._embedder

    @property
    def reembedding(self) -> Progress | None:
        """How far a re-embedding is; None if none runs. Readable from any thread."""
        return None if self._reembedding is None else self._reembedding.progress

    @asynccontextmanager
    async def _resting(self) -> AsyncIterator[None]:
        async with self._store_paused(), self._worker.resting():
            yield

    def _exchanged(self, model: NewModel, identity: StoreIdentity, queued: int) -> None:
        self._embedder, self._embedding = model.embedder, model.embedding
        self._journal.use_model(model.embedder.model)
        self._pairing.exchanged(identity, model.embedder.model)
        self._writer.replace_embedding(model.embedding, model.limits)
        self._worker.write_again()
        self._upkeep.store_again(queued)

    def _count_tokens(self, text: str) -> int:
        return self._embedder.count_tokens(text) if self._embedder else 0

    async def _copy_is_clean(self) -> bool:
        return self._reembedding is None or await self._reembedding.is_clean()

    # -- forgetting ---------------------------------------------------------------------------

    async def forget(self, asked: Asked, *, dry_run: bool, block: bool) -> Receipt:
        """Forget people or sessions; see `IngestPipeline.forget`."""
        return await self._while_running(
            self._forgetter.forget(asked, dry_run=dry_run, block=block)
        )

    def export(self, asked: Asked) -> AsyncIterator[dict[str, Any]]:
        """Yield everything that the journal holds about ids; see `IngestPipeline.export`."""
        return export_records(self._journal.read_in_order, asked)

    async def receipt(self, number: int) -> Receipt:
        """Return a receipt as of now; see `IngestPipeline.receipt`."""
        return await self._forgetter.receipt(number)

    async def finish_erasing(self, timeout: float) -> None:  # noqa: ASYNC109 - as in `aclose`
        """Wait until all requests to forget are complete. What is left goes on at the next start."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._ends_before_work(self._eraser.wait())

    async def _busy(self, lanes: Collection[int]) -> set[int]:
        if self._membership is not None:
            return await self._journal.under_way(lanes)
        return {lane for lane in lanes if self._batcher.is_under_way(lane)}

    def _payloads_deleted(self, page: Deleted) -> None:
        self.watermark.settle(page.settled)
        for seq in page.settled:
            self._accepted_at.pop(seq, None)
        self._delete_anywhere(page.chunks)
        if page.returned:
            self._returned(page.returned)

    def _delete_anywhere(self, ids: Sequence[str]) -> None:
        """Start to delete chunks of any session that are in the outbox."""
        if self._membership is None:
            self._upkeep.delete(ids)
        # Otherwise the owner of the session finds them there.

    def _clear_caches(self, asked: Asked, lanes: Collection[int]) -> None:
        # Events in `live` have the times of their arrival, so all of a session are dropped.
        self._live.forget(set(lanes), user_id=asked.user_id, conversation_id=asked.conversation_id)
        self._feed.forget(set(lanes), user_id=asked.user_id)
        if self._shared_live is not None:
            self._shared_live.forgotten()
        if asked.user_id is not None:
            self.pulled.forget(asked.user_id)
            for source in self._clients.pull_sources():
                source.forget(asked.user_id)
        if self._embedding:
            self._embedding.clear()
        forget_texts()

    @asynccontextmanager
    async def _store_paused(self) -> AsyncIterator[None]:
        async with self._noting, self._writer.paused():
            yield

    # -- dead letters and other processes -----------------------------------------------------

    def _returned(self, back: list[tuple[int, int]]) -> None:
        if self._partitions is not None:
            self._partitions.look_for_retried()
            return
        now = self.loop.time()
        self.watermark.reopen(seq for _, seq in back)
        for lane, seq in back:
            self._batcher.add(lane, seq, now)
        self._worker.wake()

    async def _run_periodic_work(self) -> None:
        """Run the periodic work: requests of other processes, health notes, tidying."""
        noted: Health | None = None
        seen: frozenset[int] = frozenset()
        second = 0
        while True:
            try:
                if self._settings.journal:
                    await self._journal.carry_out_requests()
                    if (health := self.health) != noted:
                        await self._journal.note_health(health)
                        noted = health
                if self._partitions is not None:
                    seen = await self._look_for_work(self._partitions, seen)
                if second % _LAG_EVERY == 0:
                    await self._measure_lag()
                if second % _NOTE_EVERY == _NOTE_EVERY - 1 and not self._noting.locked():
                    async with self._noting:
                        await self._note()
            except (JournalError, StoreError) as error:
                _log.error("the periodic work failed; retrying: %s", error)
            second += 1
            await asyncio.sleep(_REQUESTS_SECONDS)

    async def _look_for_work(
        self, partitions: Partitions, before: frozenset[int]
    ) -> frozenset[int]:
        """Look for what other processes left for the owner of a session."""
        self._linker.wake()
        await self._upkeep.look()
        loaded = partitions.loaded
        if loaded - before:
            await self._retirer.resume()
        return loaded

    async def _note(self) -> None:
        if self._membership is None:
            await self._pairing.note()
        else:
            await self._membership.while_held("store", self._pairing.note)

    async def _tidy(self) -> None:
        """Delete expired data."""
        second = 0
        while True:
            try:
                if second % _TIDY_EVERY == 0:
                    await self._journal.tidy()
                    if self._reembedding:
                        await self._reembedding.tidy()
            except (JournalError, StoreError) as error:
                _log.error("tidying failed; retrying: %s", error)
            second += 1
            await asyncio.sleep(_REQUESTS_SECONDS)

    async def _save_tokens(self, day: str, tokens: int) -> None:
        try:
            await self._journal.note_tokens(day, tokens)
        except JournalError as error:
            _log.error("the day's token count could not be saved: %s", error)


def _log_missing_capabilities(store: Store) -> None:
    for capability, consequence in _CONSEQUENCES.items():
        if capability not in store.capabilities:
            _log.info("%s has no %r: %s", type(store).__name__, capability, consequence)


def _limits(embedder: Embedder, tokens_per_day: int | None) -> RequestLimits:
    # A larger request would exceed the budget: the first request of a day always passes.
    most = min(embedder.max_request_tokens, tokens_per_day or embedder.max_request_tokens)
    return RequestLimits(embedder.max_inputs, most)


def _first_of(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        _log.critical("the pipeline failed and stores nothing more", exc_info=error)

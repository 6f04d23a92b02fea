"""The maintenance of a running pipeline: what may change or read the store as a whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from autoplay_rag.embedders.base import Embedder
from autoplay_rag.errors import ConfigurationError, PipelineError
from autoplay_rag.ingest.chunk_writer import ChunkWriter
from autoplay_rag.ingest.copier import Tell
from autoplay_rag.ingest.pairing import Pairing
from autoplay_rag.ingest.planner import Planner
from autoplay_rag.ingest.reembedding import NewModel, Reembedding, can_exchange
from autoplay_rag.ingest.run.main_task import MainTask
from autoplay_rag.ingest.run.model_in_use import ModelInUse
from autoplay_rag.ingest.run.opening import check_is_alone
from autoplay_rag.ingest.settings import Settings
from autoplay_rag.ingest.store_copy import copy_chunks
from autoplay_rag.ingest.upkeep import Upkeep
from autoplay_rag.ingest.worker import Worker
from autoplay_rag.journal.on_tables import TableJournal
from autoplay_rag.maintenance.backup import BackupReport, write_backup
from autoplay_rag.maintenance.report import CopyReport, ReembedReport, VerifyReport
from autoplay_rag.maintenance.verify import Verifier
from autoplay_rag.search.serving import Serving
from autoplay_rag.stores.base import StoreIdentity, TextStore, VectorStore

__all__ = ["Maintaining"]


class Maintaining:
    """Compares, copies, backs up and re-embeds the store. One of these runs at a time.

    Args:
        settings: The options of the pipeline.
        journal: The journal.
        store: The store.
        pairing: Notes in each of the two which other one it belongs to.
        noting: Held while they are noted, so that the store does not change while it is paused.
        model: What the pipeline embeds with.
        serving: Has the embedder for questions.
        planner: Makes the texts.
        writer: Writes to the store.
        worker: Acknowledges what is written.
        upkeep: Repairs the store.
        main: Works meanwhile.

    Attributes:
        reembedding: The re-embeddings; None if the store cannot exchange its vectors.
    """

    def __init__(
        self,
        settings: Settings,
        journal: TableJournal,
        store: VectorStore | TextStore,
        *,
        pairing: Pairing,
        noting: asyncio.Lock,
        model: ModelInUse,
        serving: Serving,
        planner: Planner,
        writer: ChunkWriter,
        worker: Worker,
        upkeep: Upkeep,
        main: MainTask,
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._store = store
        self._pairing = pairing
        self._noting = noting
        self._model = model
        self._planner = planner
        self._writer = writer
        self._worker = worker
        self._upkeep = upkeep
        self._main = main
        self._one_at_a_time = asyncio.Lock()
        self.reembedding: Reembedding | None = None
        if isinstance(store, VectorStore) and can_exchange(store):
            self.reembedding = Reembedding(journal, store, serving, self._resting, self._exchanged)

    async def verify(
        self, *, repair: bool, delete_extra: bool, tell: Tell | None = None
    ) -> VerifyReport:
        """Compare journal and store; see `IngestPipeline.verify`."""
        async with self._one_at_a_time:
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
        async with self._one_at_a_time:
            return await self._main.run_beside(
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
        async with self._one_at_a_time:
            return await write_backup(
                folder, journal, self._store, self._store_paused, on_progress=tell
            )

    async def reembed(
        self, embedder: Embedder, *, render: bool, tell: Tell | None
    ) -> ReembedReport:
        """Replace the embedder; see `IngestPipeline.reembed`."""
        assert self.reembedding is not None
        await check_is_alone(self._journal.membership, "reembed")
        async with self._one_at_a_time:
            before = self._model.embedder
            assert before is not None
            if embedder.model == before.model and not render:
                await self.reembedding.abandon()
                return ReembedReport(embedder.model, 0, 0, 0, 0.0)
            new = NewModel(
                embedder,
                self._model.embedding_of(embedder),
                self._model.limits_of(embedder),
                replace(self._planner, count_tokens=embedder.count_tokens),
                self._settings.embed_concurrency,
                self._settings.max_attempts,
            )
            try:
                report = await self._main.run_beside(
                    self.reembedding.run(new, render=render, tell=tell)
                )
            except PipelineError as error:
                # It is not known which model the store has: nothing may be stored any more.
                self._main.fail(str(error))
                raise
            finally:
                if self._model.embedder is not before is not embedder:
                    await before.aclose()
            return report

    async def copy_is_clean(self) -> bool:
        """Make sure that an unfinished re-embedding holds no chunk that was deleted."""
        return self.reembedding is None or await self.reembedding.is_clean()

    @asynccontextmanager
    async def _store_paused(self) -> AsyncIterator[None]:
        async with self._noting, self._writer.paused():
            yield

    @asynccontextmanager
    async def _resting(self) -> AsyncIterator[None]:
        async with self._store_paused(), self._worker.resting():
            yield

    def _exchanged(self, model: NewModel, identity: StoreIdentity, queued: int) -> None:
        self._model.exchange(model.embedder, model.embedding)
        self._journal.use_model(model.embedder.model)
        self._pairing.exchanged(identity, model.embedder.model)
        self._writer.replace_embedding(model.embedding, model.limits)
        self._worker.write_again()
        self._upkeep.store_again(queued)

"""Moves a pipeline to another model: fills a second collection, exchanges it, deletes the old one.

The journal records each step before it is made. After a crash, `settle_exchange` finds out which
collection is in place.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final

from autoplay_rag._backoff import grown_delay
from autoplay_rag._describe import describe
from autoplay_rag.embedders.base import Embedder
from autoplay_rag.errors import (
    MissingCapabilityError,
    PipelineError,
    StoreError,
    StoreUnavailableError,
)
from autoplay_rag.ingest.chunk_writer import ChunkWriter
from autoplay_rag.ingest.copier import Copier, Tell
from autoplay_rag.ingest.embedding import Embedding
from autoplay_rag.ingest.planner import Planner
from autoplay_rag.ingest.retries import RequestLimits
from autoplay_rag.journal.copying import AsyncCopies, Copy, Phase
from autoplay_rag.journal.on_tables import TableJournal
from autoplay_rag.maintenance.progress import Progress
from autoplay_rag.maintenance.report import ReembedReport
from autoplay_rag.search.serving import Serving
from autoplay_rag.stores.base import Capability, Store, StoreIdentity, VectorStore

__all__ = ["NewModel", "Reembedding", "can_exchange", "check_can_exchange", "settle_exchange"]

_log = logging.getLogger(__name__)

_COLLECTION: Final = "next"
_NEEDED: Final[tuple[Capability, ...]] = ("sibling", "exchange", "drop", "delete", "identity")
_CATCH_UP_SECONDS: Final = 20.0
"""The longest that the store rests for the last changes. Then others are let in first, and the next
rest may take twice as long: otherwise a busy stream would always be faster."""
_PAGE: Final = 500
_ATTEMPTS: Final = 6
_STORE_BATCH: Final = 100
"""Searches and the stream wait for each request to the store, so it is a small one."""


def can_exchange(store: Store) -> bool:
    """Whether another collection can take the place of the store's."""
    return store.capabilities.issuperset(_NEEDED)


def check_can_exchange(store: Store) -> None:
    """Check that another collection can take the place of the store's.

    Raises:
        MissingCapabilityError: If not.
    """
    for capability in _NEEDED:
        if capability not in store.capabilities:
            raise MissingCapabilityError(type(store).__name__, capability)


@dataclass(frozen=True, slots=True)
class NewModel:
    """What a re-embedding embeds with.

    Attributes:
        embedder: The new embedder.
        embedding: Calls it.
        limits: The limits of its requests.
        planner: Renders texts, and counts tokens for it.
        embed_concurrency: The most embedding requests in flight.
        max_attempts: The rejections of a chunk alone until it is given up.
    """

    embedder: Embedder
    embedding: Embedding
    limits: RequestLimits
    planner: Planner
    embed_concurrency: int
    max_attempts: int


async def settle_exchange(copies: AsyncCopies, store: VectorStore) -> Copy | None:
    """Find out whether an exchange that a crash interrupted took place. Before the store's start.

    Returns:
        The copy that is not complete; None if there is none.
    """
    copy = await copies.current()
    if copy is not None and copy.phase is Phase.EXCHANGING:
        identity = await store.identity()
        if identity is not None and identity.store_id == copy.store_id:
            await copies.exchanged(identity.batch)
        else:
            await copies.not_exchanged()
    return await copies.current()


class Reembedding:
    """The re-embeddings of one pipeline. One runs at a time.

    Args:
        journal: Records the progress.
        store: The store whose collection is exchanged.
        serving: Has the embedder for questions.
        resting: Inside the block, the pipeline neither writes to the store nor acknowledges.
        on_exchanged: Called inside `resting` after the exchange, with the number of chunks that
            were queued to be stored again.
    """

    def __init__(
        self,
        journal: TableJournal,
        store: VectorStore,
        serving: Serving,
        resting: Callable[[], AbstractAsyncContextManager[None]],
        on_exchanged: Callable[[NewModel, StoreIdentity, int], None],
    ) -> None:
        self._journal = journal
        self._copies = journal.copies
        self._store = store
        self._serving = serving
        self._resting = resting
        self._on_exchanged = on_exchanged
        self._copier: Copier | None = None
        # The periodic work and the erasing look at the same copy.
        self._deciding = asyncio.Lock()

    @property
    def progress(self) -> Progress | None:
        """How far it is; None if none runs. Readable from any thread."""
        return None if self._copier is None else self._copier.progress

    @property
    def problems(self) -> list[str]:
        """Current failures, one line each. Readable from any thread."""
        return [] if self._copier is None else self._copier.problems

    # -- the other collection -----------------------------------------------------------------

    async def tidy(self) -> None:
        """Delete the other collection, if nothing in it is needed any more."""
        async with self._deciding:
            if self._copier is not None:
                return
            copy = await self._copies.current()
            if copy is not None and copy.phase is Phase.DROPPING:
                await self._drop(copy)

    async def is_clean(self) -> bool:
        """Make sure that an unfinished copy holds no chunk that was deleted; False if not yet."""
        async with self._deciding:
            return await self._is_clean()

    async def _is_clean(self) -> bool:
        copy = await self._copies.current()
        if copy is None:
            return True
        if copy.phase is not Phase.FILLING:
            return False
        gone = await self._copies.gone(_PAGE)
        if gone and self._copier is None:
            target = self._store.sibling(copy.collection)
            try:
                await target.start(copy.model)
                await target.delete([one.id for one in gone])
            finally:
                await target.aclose()
            await self._copies.copied([one.number for one in gone], {})
            gone = await self._copies.gone(1)
        return not gone

    # -- the whole ----------------------------------------------------------------------------

    async def abandon(self) -> None:
        """Delete what an unfinished copy has stored."""
        async with self._deciding:
            await self._abandon()

    async def _abandon(self) -> None:
        copy = await self._copies.current()
        if copy is not None:
            # In this order: a kill in between must not leave a copy to go on with, and no chunks.
            await self._copies.give_up()
            await self._drop(copy)

    async def run(self, model: NewModel, *, render: bool, tell: Tell | None) -> ReembedReport:
        """Fill a second collection with vectors of a model, and exchange the two.

        Args:
            model: The new model.
            render: Whether to render the texts again.
            tell: Called with the progress, about once a second.

        Raises:
            ReembedError: If the new model refuses more than 1 % of the chunks.
        """
        name = model.embedder.model
        target = self._store.sibling(_COLLECTION)
        try:
            async with self._deciding:
                copy = await self._begun(target, name, render=render)
            report = await self._fill_and_replace(copy, target, model, tell)
        finally:
            self._copier = None
            await target.aclose()
        try:
            await self.tidy()
        except StoreError as error:
            _log.warning("the old vectors are deleted later: %s", describe(error))
        _log.info("%s", report)
        return report

    async def _begun(self, target: VectorStore, model: str, *, render: bool) -> Copy:
        """Go on with a copy, or begin one with an empty collection."""
        copy = await self._copies.current()
        if copy is not None and (copy.model, copy.render) == (model, render):
            held = await target.identity()
            if copy.phase is Phase.FILLING and held and held.store_id == copy.store_id:
                await target.start(model)
                return copy
        await self._abandon()
        await target.drop()  # whatever it holds
        copy = await self._copies.begin(model, _COLLECTION, render=render)
        await target.start(model)
        await target.save_identity(await self._identity(copy))
        return copy

    async def _identity(self, copy: Copy) -> StoreIdentity:
        batch = await self._journal.acknowledged_for_good()
        notes = await self._journal.notes()
        return StoreIdentity(copy.store_id, notes.journal_id, batch)

    async def _fill_and_replace(
        self, copy: Copy, target: VectorStore, model: NewModel, tell: Tell | None
    ) -> ReembedReport:
        _log.info("embedding %d chunks with %s", copy.total - copy.done, copy.model)
        writer = ChunkWriter(
            target,
            model.embedding,
            embed_concurrency=model.embed_concurrency,
            limits=model.limits,
            max_attempts=model.max_attempts,
            store_batch=_STORE_BATCH,
        )
        self._copier = copier = Copier(self._copies, copy, writer, model.planner, tell)
        async with writer.running():
            seconds = _CATCH_UP_SECONDS
            while not await self._replace(copy, copier, target, model, seconds):
                seconds *= 2
        return copier.report

    async def _replace(
        self, copy: Copy, copier: Copier, target: VectorStore, model: NewModel, seconds: float
    ) -> bool:
        """Fill the collection and exchange it; False if too much changed meanwhile."""
        await copier.fill()
        async with self._resting():
            try:
                async with asyncio.timeout(seconds):
                    await copier.catch_up()
            except TimeoutError:
                return False
            identity = await self._identity(copy)
            await target.save_identity(identity)
            # Once begun, it is completed even if the caller is cancelled.
            exchanging = asyncio.ensure_future(self._exchange(copy, identity, model))
            try:
                await asyncio.shield(exchanging)
            except asyncio.CancelledError:
                await asyncio.wait([exchanging])
                raise
        return True

    async def _exchange(self, copy: Copy, identity: StoreIdentity, model: NewModel) -> None:
        with self._serving.exchange(model.embedder):
            failures = 0
            while True:
                try:
                    if await self._store.identity() != identity:
                        await self._store.exchange(copy.collection)
                    await self._store.start(copy.model)
                    break
                except Exception as error:
                    failures += 1
                    outage = isinstance(error, StoreUnavailableError | OSError | TimeoutError)
                    if not outage or failures == _ATTEMPTS:
                        await self._undo(error)
                        raise
                    await asyncio.sleep(grown_delay(failures, 0.2, 10.0))
            queued = await self._copies.exchanged(identity.batch)
        self._on_exchanged(model, identity, queued)

    async def _undo(self, error: Exception) -> None:
        """After an exchange that failed: go on with the old collection, if it is in place.

        Raises:
            PipelineError: If it is not known which one is.
        """
        copy = await self._copies.current()
        try:
            held = await self._store.identity()
            if copy is None or held is None or held.store_id == copy.store_id:
                raise StoreUnavailableError("the collections were exchanged")
        except StoreError as unknown:
            raise PipelineError(
                f"the store failed while its collections were exchanged ({describe(error)}; "
                f"{describe(unknown)}): start the pipeline again, which finds out how far it was"
            ) from error
        await self._copies.not_exchanged()

    async def _drop(self, copy: Copy) -> None:
        target = self._store.sibling(copy.collection)
        try:
            await target.drop()
        finally:
            await target.aclose()
        await self._copies.end()

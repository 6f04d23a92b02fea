"""Copies the chunks of one store into another, which embeds them anew."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from autoplay_rag._checks import check_journal_file
from autoplay_rag._serial import SerialThread
from autoplay_rag.content.probe import PROBE_ID
from autoplay_rag.embedders.base import Embedder, as_embedder
from autoplay_rag.errors import ConfigurationError, MissingCapabilityError
from autoplay_rag.ingest.chunk_writer import ChunkWriter, Operation, Upsert
from autoplay_rag.ingest.embedding import Embedding, TokenBudget
from autoplay_rag.ingest.retries import RequestLimits
from autoplay_rag.journal.on_tables import TableJournal
from autoplay_rag.journal.sqlite import SqliteJournal
from autoplay_rag.maintenance.comparing import same_metadata
from autoplay_rag.maintenance.progress import Progress
from autoplay_rag.maintenance.report import CopyReport
from autoplay_rag.stores.base import Chunk, Store, TextStore, VectorStore

__all__ = ["check_embeds", "copy_chunks", "copy_store"]

_PAGE: Final = 500
_ATTEMPTS: Final = 3


async def copy_store(
    source: Store,
    target: VectorStore | TextStore,
    embedder: Embedder | Any | None = None,
    *,
    journal: str | Path | None = None,
    embed_concurrency: int = 4,
    on_progress: Callable[[Progress], None] | None = None,
) -> CopyReport:
    """Copy the chunks of a store into another store, without a pipeline.

    Chunks that the target has with the same text and metadata are left as they are, so a copy that
    was interrupted goes on where it stopped. Nothing is deleted in either store.

    Args:
        source: A store that can be scanned. Not started; closed afterwards.
        target: The other store. Not started; closed afterwards.
        embedder: An `Embedder` or LangChain `Embeddings`, closed afterwards. None for a
            `TextStore`, which embeds texts itself.
        journal: The journal of the source's pipeline, which must not be running. Only chunks that
            it knows are copied. Afterwards, the journal belongs to the target: start the pipeline
            with it.
        embed_concurrency: The most embedding requests in flight.
        on_progress: Called with the progress after each page.

    Returns:
        What was copied.

    Raises:
        ConfigurationError: If an embedder is missing, or is given for a `TextStore`.
        JournalError: If the journal is in use or cannot be used.
        MissingCapabilityError: If the source cannot be scanned.
        StoreError: If a store cannot be used.

    Example:
        >>> from autoplay_rag.embedders import LocalEmbedder
        >>> from autoplay_rag.stores import MemoryStore
        >>> source, target = MemoryStore(), MemoryStore()
        >>> async def main():
        ...     await source.start("other")
        ...     await source.upsert([Chunk("c1", "Opened billing", {})], [[1.0, 0.0]])
        ...     return await copy_store(source, target, LocalEmbedder())
        >>> asyncio.run(main()).copied
        1
    """
    check_embeds(target, embedder)
    new = None if embedder is None else as_embedder(embedder)
    try:
        _check_can_copy(source)
        if journal is None:
            return await _StoreCopy(source, target, new, None, on_progress).run(embed_concurrency)
        check_journal_file(journal)
        catalog = SqliteJournal(Path(journal), on_entry=lambda *_: None, on_returned=lambda _: None)
        await catalog.open()
        try:
            copy = _StoreCopy(source, target, new, catalog, on_progress)
            report = await copy.run(embed_concurrency)
            # The next start compares the journal with the target, and records it.
            await catalog.note_store("", 0, new.model if new else "")
            return report
        finally:
            await catalog.close()
    finally:
        await _close(source, target, new)


async def copy_chunks(
    source: Store,
    target: VectorStore | TextStore,
    embedder: Embedder | None,
    catalog: TableJournal | None,
    *,
    embed_concurrency: int = 4,
    on_progress: Callable[[Progress], None] | None = None,
) -> CopyReport:
    """Copy the chunks of a store that a running pipeline uses; the store stays open.

    Args:
        source: The pipeline's store, started.
        target: The other store. Not started; closed afterwards.
        embedder: Closed afterwards. None for a `TextStore`.
        catalog: The pipeline's journal, which is only read; None to copy whatever the store has.
        embed_concurrency: The most embedding requests in flight.
        on_progress: Called with the progress after each page.
    """
    try:
        _check_can_copy(source)
        copy = _StoreCopy(source, target, embedder, catalog, on_progress)
        return await copy.run(embed_concurrency)
    finally:
        await _close(None, target, embedder)


def check_embeds(target: VectorStore | TextStore, embedder: object | None) -> None:
    """Check that an embedder is given exactly if the store needs one.

    Raises:
        ConfigurationError: If not.
    """
    if isinstance(target, VectorStore) is (embedder is None):
        raise ConfigurationError(
            "a VectorStore needs an embedder, and a TextStore embeds texts itself"
        )


def _check_can_copy(source: Store) -> None:
    """Check that the chunks of a store can be read.

    Raises:
        MissingCapabilityError: If not.
    """
    if "scan" not in source.capabilities:
        raise MissingCapabilityError(type(source).__name__, "scan")


class _StoreCopy:
    def __init__(
        self,
        source: Store,
        target: VectorStore | TextStore,
        embedder: Embedder | None,
        catalog: TableJournal | None,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._source = source
        self._target = target
        self._embedder = embedder
        self._catalog = catalog
        self._on_progress = on_progress
        self._thread = SerialThread("autoplay-copy")
        self._started = time.monotonic()
        self._chunks = self._copied = self._same = self._skipped = self._refused = 0
        self._known = 0

    async def run(self, embed_concurrency: int) -> CopyReport:
        embedder = self._embedder
        embedding, limits = None, None
        if embedder is not None:
            budget = TokenBudget(None, 0, _save_nothing)
            embedding = Embedding(embedder, budget, remembered=1000)
            limits = RequestLimits(embedder.max_inputs, embedder.max_request_tokens)
        total = 0
        if self._catalog:
            known = await self._catalog.known()
            total = known.chunks
        await self._target.start(embedder.model if embedder else "")
        writer = ChunkWriter(
            self._target,
            embedding,
            embed_concurrency=embed_concurrency,
            limits=limits,
            max_attempts=_ATTEMPTS,
        )
        async with writer.running() as running:
            async for page in self._source.scan(_PAGE):
                chunks = [chunk for chunk in page if chunk.id != PROBE_ID]
                self._chunks += len(chunks)
                wanted = await self._wanted(chunks)
                if wanted:
                    await self._write(writer, running, wanted)
                self._tell(total)
        return CopyReport(
            chunks=self._chunks,
            copied=self._copied,
            same=self._same,
            skipped=self._skipped,
            refused=self._refused,
            missing=max(0, total - self._known),
            seconds=time.monotonic() - self._started,
        )

    async def _wanted(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        """Return the chunks that the target lacks or has otherwise."""
        if self._catalog:
            known = await self._catalog.recorded([chunk.id for chunk in chunks])
            own = [chunk for chunk in chunks if chunk.id in known and known[chunk.id].stored]
            self._skipped += len(chunks) - len(own)
            self._known += len(own)
            # The catalog may know people that the source could not be told.
            chunks = [known[chunk.id].chunk if known[chunk.id].has_text else chunk for chunk in own]
        if "get" not in self._target.capabilities:
            return list(chunks)
        there = {one.id: one for one in await self._target.get([chunk.id for chunk in chunks])}
        wanted = [
            chunk
            for chunk in chunks
            if (held := there.get(chunk.id)) is None
            or held.text != chunk.text
            or not same_metadata(chunk.metadata, held.metadata)
        ]
        self._same += len(chunks) - len(wanted)
        return wanted

    async def _write(
        self, writer: ChunkWriter, running: asyncio.Task[None], chunks: Sequence[Chunk]
    ) -> None:
        count = self._embedder.count_tokens if self._embedder else _no_tokens
        tokens = await self._thread.run(lambda: [count(chunk.text) for chunk in chunks])
        left = len(chunks)
        ended = asyncio.Event()

        def one_ended(_: Operation, error: str | None) -> None:
            nonlocal left
            left -= 1
            if error is None:
                self._copied += 1
            else:
                self._refused += 1
            if not left:
                ended.set()

        writer.put(
            [Upsert(chunk, cost) for chunk, cost in zip(chunks, tokens, strict=True)], one_ended
        )
        waiting = asyncio.ensure_future(ended.wait())
        try:
            await asyncio.wait([waiting, running], return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if running.done():
            running.result()

    def _tell(self, total: int) -> None:
        if self._on_progress is None:
            return
        seconds = time.monotonic() - self._started
        rate = self._copied / seconds if seconds else 0.0
        self._on_progress(Progress(self._chunks, total, rate))


async def _close(source: Store | None, target: Store, embedder: Embedder | None) -> None:
    try:
        if source is not None:
            await source.aclose()
    finally:
        try:
            await target.aclose()
        finally:
            if embedder is not None:
                await embedder.aclose()


async def _save_nothing(day: str, tokens: int) -> None:
    """A copy has no budget."""


def _no_tokens(text: str) -> int:  # noqa: ARG001 - as `count_tokens`
    return 0

"""Fills a second collection with vectors of another model, while the first one serves."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, TypeAlias

from autoplay_rag._serial import SerialThread
from autoplay_rag.errors import ReembedError
from autoplay_rag.ingest.chunk_writer import ChunkWriter, Delete, Operation, Upsert
from autoplay_rag.ingest.planner import Planner
from autoplay_rag.journal.copying import AsyncCopies, Copy
from autoplay_rag.maintenance.progress import Progress
from autoplay_rag.maintenance.report import ReembedReport
from autoplay_rag.stores.base import Chunk

__all__ = ["Copier", "Tell"]

_log = logging.getLogger(__name__)

_PAGE: Final = 500
_FEW: Final = 200
"""So many changes are copied while the store rests."""
_ROUNDS: Final = 20
"""How often the changes are copied before the store rests, however many come meanwhile."""
_MOST_REFUSED: Final = 0.01
_PROGRESS_SECONDS: Final = 1.0


Tell: TypeAlias = Callable[[Progress], None]


class Copier:
    """Copies the catalog's chunks into a collection with vectors of another model.

    Args:
        copies: Knows what is left to copy.
        copy: The copy.
        writer: Embeds with the new model, and writes to the second collection. Running.
        planner: Renders texts, and counts tokens for the new model.
        tell: Called with the progress, about once a second.
    """

    def __init__(
        self,
        copies: AsyncCopies,
        copy: Copy,
        writer: ChunkWriter,
        planner: Planner,
        tell: Tell | None,
    ) -> None:
        self._copies = copies
        self._copy = copy
        self._writer = writer
        self._planner = planner
        self._tell_progress = tell
        self._thread = SerialThread("autoplay-reembed")
        self._started = time.monotonic()
        self._before = copy.done
        self._chunks = 0
        self._rendered = 0
        self._refused: dict[str, str] = {}

    @property
    def problems(self) -> list[str]:
        """Current failures, one line each. Readable from any thread."""
        return [f"re-embedding: {problem}" for problem in self._writer.problems]

    @property
    def report(self) -> ReembedReport:
        """What was done so far."""
        return ReembedReport(
            model=self._copy.model,
            chunks=self._chunks,
            refused=len(self._refused),
            rendered=self._rendered,
            seconds=time.monotonic() - self._started,
        )

    async def fill(self) -> None:
        """Copy all chunks, and the changes until few are left.

        Raises:
            ReembedError: If the new model refuses more than 1 % of the chunks.
        """
        ticking = asyncio.create_task(self._tick())
        try:
            while page := await self._copies.page(_PAGE):
                texts = await self._write([chunk for _, chunk in page])
                self._copy = await self._copies.filled([number for number, _ in page], texts)
                await self._copy_some_changes()
            self._copy = await self._copies.filled([], {})
            for _ in range(_ROUNDS):
                if await self._copy_changes() <= _FEW:
                    break
        finally:
            ticking.cancel()
            await asyncio.wait([ticking])
            self._tell()

    async def catch_up(self) -> None:
        """Copy the last changes. The store rests meanwhile, so that few come.

        Raises:
            ReembedError: As in `fill`.
        """
        while not await self._copies.exchanging():
            await self._copy_changes()

    async def _copy_changes(self) -> int:
        """Copy the changes until few are left; returns how many."""
        left = await self._copy_some_changes()
        while left > _FEW:
            before, left = left, await self._copy_some_changes()
            if left >= before:
                break  # more come than are copied
        return left

    async def _copy_some_changes(self) -> int:
        """Copy one page of the changes, and return how many are left."""
        page = await self._copies.changed(_PAGE)
        if not page:
            return 0
        gone = [one.id for one in page if one.chunk is None]
        texts = await self._write([one.chunk for one in page if one.chunk is not None], gone)
        return await self._copies.copied([one.number for one in page], texts)

    async def _write(self, chunks: Sequence[Chunk], gone: Sequence[str] = ()) -> dict[str, str]:
        """Store chunks and delete others; returns the texts that differ from the catalog's."""
        texts: dict[str, str] = {}
        if self._copy.render and chunks:
            sources = await self._copies.payloads([chunk.id for chunk in chunks])
            new = await self._thread.run(
                lambda: [
                    self._planner.render_again(chunk, *sources[chunk.id])
                    if chunk.id in sources
                    else chunk.text
                    for chunk in chunks
                ]
            )
            texts = {
                chunk.id: text
                for chunk, text in zip(chunks, new, strict=True)
                if text != chunk.text
            }
            chunks = [replace(chunk, text=texts.get(chunk.id, chunk.text)) for chunk in chunks]
        tokens = await self._thread.run(self._planner.count, chunks)
        operations: list[Operation] = [
            Upsert(chunk, count) for chunk, count in zip(chunks, tokens, strict=True)
        ]
        operations += [Delete(one) for one in gone]
        if operations:
            await self._carry_out(operations)
        self._rendered += len(texts)
        self._check_refused()
        return texts

    async def _carry_out(self, operations: Sequence[Operation]) -> None:
        left = len(operations)
        ended = asyncio.Event()

        def one_ended(operation: Operation, error: str | None) -> None:
            nonlocal left
            left -= 1
            if isinstance(operation, Upsert):
                self._chunks += 1
                if error is None:
                    self._refused.pop(operation.chunk.id, None)
                else:
                    self._refused[operation.chunk.id] = error
            if not left:
                ended.set()

        self._writer.put(operations, one_ended)
        await ended.wait()

    def _check_refused(self) -> None:
        if len(self._refused) > max(1, _MOST_REFUSED * self._copy.total):
            raise ReembedError(
                f"{self._copy.model} refused {len(self._refused):,} of {self._chunks:,} chunks "
                f"({next(iter(self._refused.values()))}): the old vectors stay in use. Find the "
                "cause, and start it again: it goes on where it stopped"
            )

    async def _tick(self) -> None:
        while True:
            self._tell()
            await asyncio.sleep(_PROGRESS_SECONDS)

    @property
    def progress(self) -> Progress:
        """How far it is. Readable from any thread."""
        copy, seconds = self._copy, time.monotonic() - self._started
        return Progress(
            done=copy.done,
            total=copy.total,
            rate=(copy.done - self._before) / seconds if seconds else 0.0,
            problem=next(iter(self._writer.problems), None),
        )

    def _tell(self) -> None:
        if self._tell_progress is None:
            return
        try:
            self._tell_progress(self.progress)
        except Exception:  # noqa: BLE001 - other people's code
            _log.exception("on_progress failed")
            self._tell_progress = None

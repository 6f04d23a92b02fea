"""Updates the metadata of chunks that were stored before their person was known."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from autoplay_rag._background import BackgroundWork
from autoplay_rag.ingest.chunk_writer import ChunkWriter, Operation, UpdateMetadata
from autoplay_rag.journal.base import Journal, Outdated

__all__ = ["Linker"]

_PAGE: Final = 500


class Linker(BackgroundWork):
    """Copies metadata changes from the catalog to the store.

    The changes are in the journal, so they survive a restart. An update that the store rejects is
    retried with growing pauses. In a store that cannot update metadata, the chunks do not change.

    Call `wake` after putting the operations of the plan that caused the changes, because those must
    run first.

    Args:
        journal: The journal with the changes.
        writer: Executes the updates, in order with other operations on the same chunk.
        able: Whether the store can update metadata.
    """

    def __init__(self, journal: Journal, writer: ChunkWriter, *, able: bool) -> None:
        super().__init__("metadata of stored chunks is not up to date")
        self._journal = journal
        self._writer = writer
        self._able = able

    async def _work(self) -> str | None:
        while page := await self._journal.outdated(_PAGE, own=True):
            done, error = await self._update(page) if self._able else (page, None)
            await self._journal.updated(done)
            if error is not None:
                return error
        return None

    async def _update(self, page: Sequence[Outdated]) -> tuple[list[Outdated], str | None]:
        by_id = {one.id: one for one in page}
        done: list[Outdated] = []
        errors: list[str] = []
        ended = asyncio.Event()

        def update_ended(operation: Operation, error: str | None) -> None:
            assert isinstance(operation, UpdateMetadata)
            if error is None:
                done.append(by_id[operation.id])
            else:
                errors.append(error)
            if len(done) + len(errors) == len(by_id):
                ended.set()

        self._writer.put([UpdateMetadata(one.id, one.changes) for one in page], update_ended)
        await ended.wait()
        return done, errors[0] if errors else None

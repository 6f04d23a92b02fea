"""Compares chunks with the catalog that may have been stored after another process took over.

A request to the store that began before a lease ended may end after it. Meanwhile the next owner may
have stored, changed or deleted the same chunks. So chunks that the catalog does not know are deleted,
and those that it has as stored are stored once more from their texts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from autoplay_rag._background import BackgroundWork
from autoplay_rag.ingest.chunk_writer import ChunkWriter
from autoplay_rag.ingest.upkeep import Upkeep
from autoplay_rag.journal.base import Journal

__all__ = ["Repairer"]

_LOOK_SECONDS: Final = 1.0
_PAGE: Final = 500


class Repairer(BackgroundWork):
    """Repairs what a late request may have done.

    Args:
        journal: Has the catalog.
        writer: Has made the requests.
        upkeep: Deletes chunks and stores them again.
    """

    def __init__(self, journal: Journal, writer: ChunkWriter, upkeep: Upkeep) -> None:
        super().__init__("chunks of lost partitions are not compared with the catalog")
        self._journal = journal
        self._writer = writer
        self._upkeep = upkeep
        self._ids: set[str] = set()

    def add(self, ids: Iterable[str]) -> None:
        """Compare these chunks."""
        self._ids.update(ids)
        self.wake()

    async def _work(self) -> None:
        while self._ids:
            async with self._writer.paused():
                pass  # the request that ran when the lease ended is over
            page = [*self._ids][:_PAGE]
            recorded = await self._journal.recorded(page, in_order=True)
            unknown = [one for one in page if one not in recorded]
            retired = [one for one, found in recorded.items() if found.retired]
            stored = [found.number for found in recorded.values() if found.stored]
            self._upkeep.delete([*await self._journal.delete_unknown(unknown), *retired])
            self._upkeep.store_again(await self._journal.queue_again(stored))
            # Those that the next owner stores just now are looked at again.
            planned = {
                one for one, found in recorded.items() if not found.stored and not found.retired
            }
            self._ids -= set(page) - planned
            if planned:
                await asyncio.sleep(_LOOK_SECONDS)

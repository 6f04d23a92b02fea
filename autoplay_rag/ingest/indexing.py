"""Indexes payloads of older versions and chunks read from a store, in the background."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from autoplay_rag._serial import SerialThread
from autoplay_rag.errors import JournalError
from autoplay_rag.journal.base import Journal
from autoplay_rag.journal.unindexed import entries_of

__all__ = ["Indexer"]

_log = logging.getLogger(__name__)

_PAGE: Final = 200
_PROGRESS_SECONDS: Final = 10.0
_RETRY_SECONDS: Final = 1.0


class Indexer:
    """Adds payloads that are not in the full-text index yet, newest first.

    Args:
        journal: The journal with the payloads and the index.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._thread = SerialThread("autoplay-indexer")

    async def run(self) -> None:
        """Run until all payloads are indexed."""
        done, said = 0, time.monotonic()
        while True:
            try:
                page, left = await self._journal.unindexed(_PAGE)
                if not page:
                    break
                entries = await self._thread.run(entries_of, page)
                await self._journal.index(entries, page[-1].seq)
            except JournalError as error:
                _log.error("full text of older payloads is not indexed now: %s", error)
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            done += len(page)
            if time.monotonic() - said >= _PROGRESS_SECONDS:
                said = time.monotonic()
                _log.info(
                    "full text: %s older payloads done, about %s left", f"{done:,}", f"{left:,}"
                )
        if done:
            _log.info("full text: %s older payloads can be found by their words", f"{done:,}")

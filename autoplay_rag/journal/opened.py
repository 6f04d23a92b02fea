"""A journal's file, opened for reading by a process that does not run its pipeline."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from autoplay_rag.journal.finder import AsyncFinder, AsyncTimeline, ReadThread
from autoplay_rag.journal.reader import JournalReader

__all__ = ["OpenedJournal"]

T = TypeVar("T")


class OpenedJournal:
    """Searches and lists the payloads of a journal while a pipeline may write it.

    The connection is read-only and never waits for the writer. Searches and lists may miss what the
    pipeline accepted in the last seconds; see `journal/index_buffer.py`.

    Args:
        path: The journal's file.

    Attributes:
        finder: Reads the catalog for a search.
        timeline: Lists sessions and reads payloads.

    Raises:
        JournalError: If the journal does not exist or cannot be read.
        JournalVersionError: If another version of this package wrote it.
    """

    def __init__(self, path: Path) -> None:
        self._reader = JournalReader(path)
        self._thread = ReadThread(path)
        self.finder = AsyncFinder(self._thread.opened, self._thread.run)
        self.timeline = AsyncTimeline(self._thread.timeline, self._thread.run)

    @property
    def journal_id(self) -> str:
        """The permanent id of this journal. Its store has the same id."""
        return self._reader.journal_id()

    async def read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """Run a blocking read in the connection's thread.

        Raises:
            JournalError: If the journal cannot be read.
        """
        return await self._thread.run(lambda: read(self._thread.connected()))

    async def aclose(self) -> None:
        """Close the connection."""
        await self._thread.close()

"""A queue and a catalog in one SQLite file or in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from autoplay_rag._filelock import FileLock
from autoplay_rag.errors import JournalError, JournalLockedError
from autoplay_rag.journal.base import (
    Durability,
)
from autoplay_rag.journal.catalog import CatalogTables
from autoplay_rag.journal.copying import CopyTables
from autoplay_rag.journal.database import Clock, wall_clock
from autoplay_rag.journal.expiring import ExpiryTables
from autoplay_rag.journal.file import JournalFile
from autoplay_rag.journal.finder import AsyncFinder, AsyncTimeline, ReadThread
from autoplay_rag.journal.finding import Finder
from autoplay_rag.journal.on_tables import Returned, TableJournal
from autoplay_rag.journal.queue import QueueTables
from autoplay_rag.journal.register import Register, register_of
from autoplay_rag.journal.rows import Connection
from autoplay_rag.journal.timeline import Timeline
from autoplay_rag.journal.writer import OnEntry, Tables

__all__ = ["SqliteJournal"]

T = TypeVar("T")


class SqliteJournal(TableJournal):
    """The journal of one pipeline.

    Args:
        path: The file; None keeps the journal in memory.
        durability: See `IngestPipeline`.
        keep_addresses: Whether upgraded payloads of an older format keep their e-mail addresses.
        max_bytes: The most bytes of queued and dead payloads.
        keep_payloads: Whether the bodies of stored payloads are kept. In memory they never are.
        replace_by_summaries: Whether summaries claim the actions they replace.
        model: The name of the embedder, saved with acknowledged chunks.
        erasure_register: A file with all requests to forget; by default beside the journal.
        clock: Returns the time in Unix seconds.
        on_entry: Called on the loop with each entry and its outcome, in the order of the `accept`
            calls, before the future of `accept` completes. The outcome is None if the entry could
            not be written.
        on_returned: Called on the loop with the list of (lane, sequence number) of retried dead
            letters, after the commit.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        durability: Durability = "normal",
        keep_addresses: bool = True,
        max_bytes: int = 2**30,
        keep_payloads: bool = True,
        replace_by_summaries: bool = True,
        model: str = "",
        erasure_register: Path | None = None,
        clock: Clock = wall_clock,
        on_entry: OnEntry,
        on_returned: Returned,
    ) -> None:
        self._path = path
        self._durability: Durability = durability
        self._keep_addresses = keep_addresses
        self._max_bytes = max_bytes
        self._keep_payloads = keep_payloads and path is not None
        self._replace_by_summaries = replace_by_summaries
        self._clock = clock
        if erasure_register is None and path is not None:
            erasure_register = register_of(path)
        self._register = Register(erasure_register if path is not None else None)
        self._lock = FileLock(path.with_name(path.name + ".lock")) if path else None
        super().__init__(model, str(path or "in memory"), on_entry, on_returned)
        self._batches: int | None = None
        self._finder_tables: Finder
        self._timeline_tables: Timeline
        self._read_thread = ReadThread(path) if path else None
        if self._read_thread:
            self._finder = AsyncFinder(
                self._read_thread.opened, self._read_thread.run, self._run_indexed
            )
            self.timeline = AsyncTimeline(
                self._read_thread.timeline, self._run_indexed, self._read_thread.run
            )
        else:
            # The database in memory is the writer's own.
            self._finder = AsyncFinder(lambda: self._finder_tables, self._writer.look)
            self.timeline = AsyncTimeline(lambda: self._timeline_tables, self._writer.look)

    async def open(self) -> None:
        """Open or create the file, upgrade an older format, and start the writer.

        Raises:
            JournalLockedError: If another pipeline has this journal open.
            JournalDamagedError: If the file is damaged. It was renamed; the message has the new
                name.
            JournalVersionError: If this version cannot read the file's format.
            JournalError: If another program wrote the file, or it cannot be opened.
        """
        self._batches = None
        await self._writer.open()

    async def close(self) -> None:
        """Finish all submitted operations and close the file."""
        if self._read_thread:
            await self._read_thread.close()
        await self._writer.close()

    async def take_batches(self, count: int) -> list[int]:
        """As in `Queue`."""
        if self._batches is None:
            self._batches = (await self.known()).batch
        self._batches += count
        return [*range(self._batches - count + 1, self._batches + 1)]

    def _open_tables(self) -> QueueTables:
        file = self._open_file()
        try:
            catalog = CatalogTables(file)
        except BaseException:
            file.close()
            raise
        self._tables = QueueTables(
            file,
            catalog,
            self._durability,
            max_bytes=self._max_bytes,
            keep_payloads=self._keep_payloads,
            replace_by_summaries=self._replace_by_summaries,
            model=self._model,
            register=self._register,
        )
        try:
            with file.transaction():
                catalog.fulltext.index_rest()
                if self._register.exists():
                    self._tables.erasures.apply_register()
        except BaseException:
            file.close()
            raise
        self._catalog = catalog
        self._copies_tables = CopyTables(catalog)
        self._expiry_tables = ExpiryTables(file, catalog)
        self._finder_tables = Finder(file.connection)
        self._timeline_tables = Timeline(file.connection)
        self.upgraded_from = file.upgraded_from
        return self._tables

    def _open_file(self) -> JournalFile:
        if not self._path or not self._lock:
            return JournalFile(None, self._durability, clock=self._clock)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # A lock file shows that the file was a journal, even if its content is damaged.
        known = self._lock.path.exists()
        if not self._lock.acquire():
            raise JournalLockedError(
                f"the journal {self._path} is in use by process {self._lock.holder()}, and only one "
                "pipeline at a time can use a journal: stop that process or use another file"
            )
        try:
            return JournalFile(
                self._path,
                self._durability,
                known=known,
                keep_addresses=self._keep_addresses,
                clock=self._clock,
            )
        except JournalError:
            if not known:
                self._lock.release(remove=True)
            raise

    def _close_tables(self, tables: Tables | None) -> None:
        if tables is not None:
            tables.file.close()
        if self._lock:
            self._lock.release()

    async def _read(self, read: Callable[[Connection], T]) -> T:
        """Read beside the writer, where the journal is a file."""
        thread = self._read_thread
        if thread is None:
            return await self._writer.look(lambda: read(self._tables.file.connection))
        return await self._run_indexed(lambda: read(thread.connected()))

    async def _run_indexed(self, work: Callable[[], T], /) -> T:
        """Read in the reading thread, when all that was accepted before is in the index."""
        assert self._read_thread is not None
        await self._writer.index_accepted()
        return await self._read_thread.run(work)

"""A queue and a catalog in one SQLite file or in memory."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from autoplay_rag._filelock import FileLock
from autoplay_rag.content.chunks import Chunk
from autoplay_rag.errors import JournalError, JournalLockedError
from autoplay_rag.journal import checking
from autoplay_rag.journal.base import (
    Acknowledged,
    Acknowledgement,
    Claim,
    Claimable,
    DeadLetter,
    Durability,
    Entry,
    Findable,
    Health,
    IndexEntry,
    Journal,
    Known,
    Notes,
    Outcome,
    Outdated,
    Plan,
    QueuedChunk,
    Recorded,
    Session,
    Task,
    Unindexed,
    Waiting,
)
from autoplay_rag.journal.catalog import CatalogTables
from autoplay_rag.journal.copying import AsyncCopies, CopyTables
from autoplay_rag.journal.erasing import AsyncErasures
from autoplay_rag.journal.expiring import AsyncExpiry, ExpiryTables
from autoplay_rag.journal.file import Clock, JournalFile, wall_clock
from autoplay_rag.journal.finder import AsyncFinder, AsyncTimeline, ReadThread
from autoplay_rag.journal.finding import Finder
from autoplay_rag.journal.ledger import Counts
from autoplay_rag.journal.queue import QueueTables
from autoplay_rag.journal.register import Register, register_of
from autoplay_rag.journal.timeline import Timeline
from autoplay_rag.journal.writer import OnEntry, Tables, Writer
from autoplay_rag.payloads import Payload

__all__ = ["SqliteJournal"]

T = TypeVar("T")

Returned = Callable[[list[tuple[int, int]]], None]
_UNKNOWN: Final = "unknown to the catalog"


class SqliteJournal(Journal):
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

    Attributes:
        timeline: Lists sessions and reads payloads, beside the writer.
        erasures: Requests to forget.
        copies: A copy of the store's content for another model, if one is made.
        expiry: Deletes what is older than the retention.
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
        self._model = model
        self._clock = clock
        if erasure_register is None and path is not None:
            erasure_register = register_of(path)
        self._register = Register(erasure_register if path is not None else None)
        self._on_returned = on_returned
        self._batches: int | None = None
        self._lock = FileLock(path.with_name(path.name + ".lock")) if path else None
        self._writer = Writer(path, self._open_tables, self._close_tables, on_entry)
        self._tables: QueueTables
        self._catalog: CatalogTables
        self._copies_tables: CopyTables
        self._expiry_tables: ExpiryTables
        self._finder_tables: Finder
        self._timeline_tables: Timeline
        self._read_thread = ReadThread(path) if path else None
        if self._read_thread:
            self._finder = AsyncFinder(self._read_thread.opened, self._read_thread.run)
            self.timeline = AsyncTimeline(self._read_thread.timeline, self._read_thread.run)
        else:
            # The database in memory is the writer's own.
            self._finder = AsyncFinder(lambda: self._finder_tables, self._writer.look)
            self.timeline = AsyncTimeline(lambda: self._timeline_tables, self._writer.look)

        self.copies = AsyncCopies(self._writer, lambda: self._copies_tables)
        self.erasures = AsyncErasures(self._writer, lambda: self._tables.erasures, self._read)
        self.expiry = AsyncExpiry(self._writer, lambda: self._expiry_tables, self._read)

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
        if self._register.exists():
            try:
                with file.transaction():
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

    def use_model(self, model: str) -> None:
        """Save another name of the embedder with the chunks acknowledged from now on."""
        self._model = self._tables.model = model

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

    # -- queue --------------------------------------------------------------------------------

    @property
    def counts(self) -> Counts:
        """As in `Queue`."""
        return self._tables.file.committed

    @property
    def problem(self) -> str | None:
        """As in `Queue`."""
        return self._writer.problem

    def accept(self, entry: Entry) -> asyncio.Future[Outcome]:
        """As in `Queue`."""
        return self._writer.accept(entry)

    async def known(self) -> Known:
        """As in `Queue`."""
        return await self._writer.run(self._tables.known)

    async def settled_of(self, lane: int) -> int | None:
        """As in `Queue`."""
        return await self._writer.run(self._tables.settled_of, lane)

    async def waiting(self, after: int, limit: int) -> list[tuple[int, int, bool]]:
        """As in `Queue`."""
        return await self._writer.run(self._tables.waiting, after, limit)

    async def read(self, seqs: Sequence[int], most_bytes: int) -> list[Waiting]:
        """As in `Queue`."""
        return await self._writer.run(self._tables.read, seqs, most_bytes)

    async def recent(self, since: float, limit: int) -> list[tuple[float, Payload]]:
        """As in `Queue`."""
        return await self._writer.run(self._tables.recent, since, limit)

    async def plans(self) -> list[Plan]:
        """As in `Queue`."""
        return await self._writer.run(self._tables.plans)

    async def take_batches(self, count: int) -> int:
        """As in `Queue`."""
        if self._batches is None:
            self._batches = (await self.known()).batch
        first = self._batches + 1
        self._batches += count
        return first

    async def record_plans(self, plans: Sequence[Plan], sessions: Sequence[Session]) -> bool:
        """As in `Queue`."""
        return await self._writer.run(self._tables.record_plans, plans, sessions)

    async def replace_plan(self, plan: Plan) -> None:
        """As in `Queue`."""
        await self._writer.run(self._tables.replace_plan, plan)

    async def acknowledge(self, ended: Sequence[Acknowledgement]) -> Acknowledged:
        """As in `Queue`."""
        return await self._writer.run(self._tables.acknowledge, ended)

    async def dead_letters(self, limit: int, after: int = 0) -> list[DeadLetter]:
        """As in `Queue`."""
        return await self._writer.run(self._tables.dead_letters, limit, after)

    async def retry(self, ids: Sequence[int] | None) -> list[tuple[int, int]]:
        """As in `Queue`."""
        return await self._writer.run(self._tables.retry, ids, then=self._on_returned)

    async def discard(self, ids: Sequence[int] | None) -> int:
        """As in `Queue`."""
        return await self._writer.run(self._tables.discard, ids)

    async def carry_out_requests(self) -> list[tuple[int, int]]:
        """As in `Queue`."""
        return await self._writer.run(self._tables.carry_out_requests, then=self._on_returned)

    async def take_tasks(self) -> list[Task]:
        """As in `Queue`."""
        return await self._writer.run(self._tables.take_tasks)

    async def answer_task(self, token: str, answer: Mapping[str, Any]) -> None:
        """As in `Queue`."""
        await self._writer.run(self._tables.answer_task, token, answer)

    async def note_health(self, health: Health) -> None:
        """As in `Queue`."""
        await self._writer.run(self._tables.note_health, health)

    async def tokens(self, day: str) -> int:
        """As in `Queue`."""
        return await self._writer.run(self._tables.tokens, day)

    async def note_tokens(self, day: str, count: int) -> None:
        """As in `Queue`."""
        await self._writer.run(self._tables.note_tokens, day, count)

    # -- catalog ------------------------------------------------------------------------------

    async def sessions(self, lanes: Sequence[int]) -> dict[int, Session]:
        """As in `Catalog`."""
        return await self._writer.run(self._catalog.sessions, lanes)

    async def notes(self) -> Notes:
        """As in `Catalog`."""
        return await self._writer.run(self._catalog.notes)

    async def note_store(self, store_id: str, batch: int, model: str) -> None:
        """As in `Catalog`."""
        await self._writer.run(self._catalog.note_store, store_id, batch, model)

    async def acknowledged_for_good(self) -> int:
        """As in `Catalog`."""
        return await self._writer.run(self._tables.acknowledged_for_good)

    async def sample(self, count: int) -> list[str]:
        """As in `Catalog`."""
        return await self._writer.run(self._catalog.sample, count)

    async def queue_all(self) -> int:
        """As in `Catalog`."""
        return await self._writer.run(self._catalog.queue_all)

    async def queue_unconfirmed(self) -> int:
        """As in `Catalog`."""
        return await self._writer.run(self._tables.queue_unconfirmed)

    async def queued(self, after: int, limit: int) -> list[QueuedChunk]:
        """As in `Catalog`."""
        return await self._writer.run(self._catalog.queued, after, limit)

    async def count_queued(self) -> int:
        """As in `Catalog`."""
        return await self._writer.run(self._catalog.count_queued)

    async def queue_again(self, numbers: Sequence[int]) -> int:
        """As in `Catalog`."""
        return await self._writer.run(self._catalog.queue, numbers)

    async def stored_again(
        self, stored: Mapping[int, str], refused: Mapping[int, str]
    ) -> list[str]:
        """As in `Catalog`."""
        return await self._writer.run(self._tables.stored_again, stored, refused)

    async def recorded(self, ids: Sequence[str], *, in_order: bool = False) -> dict[str, Recorded]:
        """As in `Catalog`."""
        if in_order:
            own = self._tables.file.connection
            return await self._writer.run(checking.recorded, own, ids)
        return await self._read(lambda connection: checking.recorded(connection, ids))

    async def recorded_after(self, number: int, limit: int) -> list[Recorded]:
        """As in `Catalog`."""
        return await self._read(
            lambda connection: checking.recorded_after(connection, number, limit)
        )

    async def stored_after(self, number: int, limit: int) -> list[tuple[int, str]]:
        """As in `Catalog`."""
        return await self._read(lambda connection: checking.stored_after(connection, number, limit))

    async def in_outbox(self, ids: Sequence[str]) -> set[str]:
        """As in `Catalog`."""
        return await self._writer.run(checking.in_outbox, self._tables.file.connection, ids)

    async def delete_unknown(self, ids: Sequence[str]) -> list[str]:
        """As in `Catalog`."""
        return await self._writer.run(self._catalog.delete_unknown, ids, _UNKNOWN)

    async def read_in_order(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """Run a blocking read after all operations that were submitted before."""
        await self.settled_of(0)
        return await self._read(read)

    async def _read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """Read without waiting for the writer, where the journal is a file."""
        thread = self._read_thread
        if thread is None:
            return await self._writer.look(lambda: read(self._tables.file.connection))
        return await thread.run(lambda: read(thread.connected()))

    async def deletions(self, limit: int, *, planned: bool = True) -> list[str]:
        """As in `Catalog`."""
        return await self._writer.run(self._catalog.deletions, limit, planned)

    async def deleted(self, ids: Sequence[str]) -> None:
        """As in `Catalog`."""
        await self._writer.run(self._catalog.deleted, ids)

    async def missing_texts(self) -> int:
        """As in `Catalog`."""
        return await self._writer.run(self._catalog.missing_texts)

    async def fill(self, chunks: Sequence[Chunk]) -> int:
        """As in `Catalog`."""
        return await self._writer.run(self._catalog.fill, chunks)

    async def adopt(self, chunks: Sequence[Chunk]) -> int:
        """As in `Catalog`."""
        return await self._writer.run(self._catalog.adopt, chunks, self._model)

    async def outdated(self, limit: int) -> list[Outdated]:
        """As in `Catalog`."""
        return await self._writer.run(self._catalog.outdated, limit)

    async def updated(self, done: Sequence[Outdated]) -> None:
        """As in `Catalog`."""
        await self._writer.run(self._catalog.updated, done)

    async def claim_lanes(self) -> list[int]:
        """As in `Catalog`."""
        return await self._writer.run(self._catalog.claims.lanes)

    async def open_claims(self, lane: int) -> tuple[list[Claim], list[Claimable]]:
        """As in `Catalog`."""
        return await self._writer.run(self._catalog.claims.open, lane)

    async def apply_claims(self, used: Mapping[int, int], claimed: Mapping[int, int]) -> list[str]:
        """As in `Catalog`."""
        return await self._writer.run(self._catalog.claims.apply, used, claimed)

    @property
    def finder(self) -> Findable:
        """As in `Catalog`."""
        return self._finder

    async def unindexed(self, limit: int) -> tuple[list[Unindexed], int]:
        """As in `Catalog`."""
        return await self._writer.run(self._catalog.fulltext.unindexed, limit)

    async def index(self, entries: Sequence[IndexEntry], below: int) -> None:
        """As in `Catalog`."""
        await self._writer.run(self._catalog.fulltext.add_older, entries, below)

    async def tidy(self) -> None:
        """As in `Catalog`."""
        await self._writer.run(self._tables.tidy)

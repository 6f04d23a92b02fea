"""`PostgresJournal`: a queue and a catalog in PostgreSQL, which several processes share."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeAlias, TypeVar

from autoplay_rag.cluster.copying import PostgresCopyTables
from autoplay_rag.cluster.database import PostgresDatabase
from autoplay_rag.cluster.fulltext import PostgresFullText
from autoplay_rag.cluster.member import Member
from autoplay_rag.cluster.queue import (
    Fence,
    PostgresCatalogTables,
    PostgresExpiryTables,
    PostgresQueueTables,
)
from autoplay_rag.cluster.reading import PostgresReadThread
from autoplay_rag.journal.base import Plan
from autoplay_rag.journal.database import Clock, wall_clock
from autoplay_rag.journal.finder import AsyncFinder, AsyncTimeline
from autoplay_rag.journal.on_tables import Returned, TableJournal
from autoplay_rag.journal.queue import QueueTables
from autoplay_rag.journal.register import Register
from autoplay_rag.journal.rows import Connection
from autoplay_rag.journal.writer import OnEntry, Tables
from autoplay_rag.stores.postgres.dsn import parameters_of, place_of

__all__ = ["PostgresCatalog", "PostgresJournal", "PostgresQueue"]

T = TypeVar("T")


class PostgresJournal(TableJournal):
    """The journal of one or more pipelines, in a schema of PostgreSQL.

    The schema is created if it is missing and the role may. While the server cannot be reached,
    writes wait, and `problem` says why.

    Args:
        dsn: See `PgVectorStore`. The password may come from there too.
        schema: The schema for all tables.
        max_bytes: The most bytes of queued and dead payloads, of all processes.
        keep_payloads: Whether the bodies of stored payloads are kept.
        replace_by_summaries: Whether summaries claim the actions they replace.
        model: The name of the embedder, saved with acknowledged chunks.
        erasure_register: A file with all requests to forget; None keeps none.
        fence: Checks that this process has the partitions for which it writes; with
            `lease_seconds`, that is its lease.
        lease_seconds: The length of the lease by which this process has its partitions. If it is
            killed, others go on with its work after that time. None if it is alone: then it has
            all of them, always.
        takes_work: Whether this process takes partitions. Otherwise it leaves them to others.
        clock: Returns the time in Unix seconds.
        on_entry: See `SqliteJournal`. An entry whose number was assigned by the database has its
            former one in `ticket`.
        on_returned: See `SqliteJournal`.

    Raises:
        ConfigurationError: If the connection string cannot be parsed.
        MissingExtraError: If psycopg is not installed.
    """

    _tables: PostgresQueueTables

    def __init__(
        self,
        dsn: str,
        *,
        schema: str = "autoplay",
        max_bytes: int = 2**30,
        keep_payloads: bool = True,
        replace_by_summaries: bool = True,
        model: str = "",
        erasure_register: Path | None = None,
        fence: Fence | None = None,
        lease_seconds: float | None = None,
        takes_work: bool = True,
        clock: Clock = wall_clock,
        on_entry: OnEntry,
        on_returned: Returned,
    ) -> None:
        self._parameters = parameters_of(dsn)
        self._schema = schema
        self._max_bytes = max_bytes
        self._keep_payloads = keep_payloads
        self._replace_by_summaries = replace_by_summaries
        self._register = Register(erasure_register)
        self._fence = fence
        self._member: Member | None = None
        if lease_seconds is not None:
            self._member = Member(
                self._parameters, schema, self, seconds=lease_seconds, takes=takes_work
            )
            self._fence = self._member.ownership
        self.membership = self._member
        self._clock = clock
        place = place_of(self._parameters)
        super().__init__(model, f"in PostgreSQL ({place})", on_entry, on_returned)
        self._reader = PostgresReadThread(self._parameters, schema)
        self._finder = AsyncFinder(lambda: self._reader.finder, self._reader.run)
        self.timeline = AsyncTimeline(lambda: self._reader.timeline, self._reader.run)

    def __repr__(self) -> str:
        return f"<PostgresJournal: schema {self._schema!r} of {place_of(self._parameters)}>"

    async def open(self) -> None:
        """Connect, create what is missing, and start the writer.

        Raises:
            ConfigurationError: If the role may not create what is missing.
            JournalVersionError: If a newer version of this package made the tables.
            JournalError: If the server cannot be reached.
        """
        await self._writer.open()

    async def close(self) -> None:
        """Finish all submitted operations and close the connections.

        Also allowed after `open` has failed.
        """
        await self._reader.close()
        await self._writer.close()

    # -- for several processes ----------------------------------------------------------------

    async def take_batches(self, count: int) -> list[int]:
        """As in `Queue`. No other process has these numbers."""
        return await self._writer.run(self._tables.take_batches, count)

    async def waiting_of(
        self, parts: Collection[int], after: int, limit: int
    ) -> list[tuple[int, int, bool]]:
        """Return queued payloads of partitions, as `waiting` does."""
        return await self._writer.run(self._tables.waiting_of, parts, after, limit)

    async def plans_of(self, parts: Collection[int]) -> list[Plan]:
        """Return the plans of partitions that are not acknowledged, oldest first."""
        return await self._writer.run(self._tables.plans_of, parts)

    # -- on the writer's thread ---------------------------------------------------------------

    def _open_tables(self) -> QueueTables:
        file = PostgresDatabase(self._parameters, self._schema, clock=self._clock)
        try:
            with file.transaction():
                self._make_tables(file)
        except BaseException:
            file.close()
            raise
        return self._tables

    def _make_tables(self, file: PostgresDatabase) -> None:
        catalog = PostgresCatalogTables(file, PostgresFullText(file))
        tables = PostgresQueueTables(
            file,
            catalog,
            "normal",
            max_bytes=self._max_bytes,
            keep_payloads=self._keep_payloads,
            replace_by_summaries=self._replace_by_summaries,
            model=self._model,
            register=self._register,
        )
        catalog.fence = self._fence
        if self._member is not None:
            leases = self._member.ownership
            catalog.owned = lambda: leases.partitions
        expiry = PostgresExpiryTables(file, catalog)
        if self._register.exists():
            tables.erasures.apply_register()

        def load() -> None:
            tables.erasures.load()
            expiry.load()

        file.on_begin = load
        self._tables = tables
        self._catalog = catalog
        self._copies_tables = PostgresCopyTables(catalog)
        self._expiry_tables = expiry

    def _close_tables(self, tables: Tables | None) -> None:
        if tables is not None:
            tables.file.close()

    async def _read(self, read: Callable[[Connection], T]) -> T:
        return await self._reader.run(lambda: read(self._reader.connection))


# One transaction moves a payload from the queue to the catalog, so one class is both.
PostgresQueue: TypeAlias = PostgresJournal
"""The queue of a journal in PostgreSQL: what was accepted and is not stored yet."""
PostgresCatalog: TypeAlias = PostgresJournal
"""The catalog of a journal in PostgreSQL: what is stored, and its full text."""

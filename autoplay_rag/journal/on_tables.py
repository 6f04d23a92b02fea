"""A journal on tables: runs each operation where it may block, on whatever database."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, TypeVar

from autoplay_rag.content.chunks import Chunk
from autoplay_rag.journal import checking
from autoplay_rag.journal.base import (
    Acknowledged,
    Acknowledgement,
    Claim,
    Claimable,
    DeadLetter,
    Entry,
    Findable,
    Health,
    IndexEntry,
    Journal,
    Known,
    NewPlans,
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
from autoplay_rag.journal.finder import AsyncFinder, AsyncTimeline
from autoplay_rag.journal.inflow import Inflow
from autoplay_rag.journal.ledger import Counts
from autoplay_rag.journal.outbox import FORGOTTEN
from autoplay_rag.journal.ownership import Membership
from autoplay_rag.journal.queue import QueueTables
from autoplay_rag.journal.rows import Connection
from autoplay_rag.journal.writer import OnEntry, Tables, Writer
from autoplay_rag.payloads import Payload

__all__ = ["Returned", "TableJournal"]

T = TypeVar("T")

Returned = Callable[[list[tuple[int, int]]], None]
_UNKNOWN: Final = "unknown to the catalog"


class TableJournal(Journal):
    """The operations of a journal, run by its tables on the writer's thread.

    Args:
        model: The name of the embedder, saved with acknowledged chunks.
        name: What messages call the journal before it is open.
        on_entry: See `SqliteJournal`.
        on_returned: See `SqliteJournal`.

    Attributes:
        timeline: Lists sessions and reads payloads, beside the writer.
        erasures: Requests to forget.
        copies: A copy of the store's content for another model, if one is made.
        expiry: Deletes what is older than the retention.
        membership: This process among those that share the journal; None if it is the only one.
        inflow: What brings payloads into the journal by itself; None if there is nothing.
    """

    _tables: QueueTables
    _catalog: CatalogTables
    _copies_tables: CopyTables
    _expiry_tables: ExpiryTables
    _finder: AsyncFinder
    timeline: AsyncTimeline
    membership: Membership | None = None
    inflow: Inflow | None = None

    def __init__(self, model: str, name: str, on_entry: OnEntry, on_returned: Returned) -> None:
        self._model = model
        self._on_returned = on_returned
        self._writer = Writer(name, self._open_tables, self._close_tables, on_entry)
        self.copies = AsyncCopies(self._writer, lambda: self._copies_tables)
        self.erasures = AsyncErasures(self._writer, lambda: self._tables.erasures, self._read)
        self.expiry = AsyncExpiry(self._writer, lambda: self._expiry_tables, self._read)

    @abstractmethod
    def _open_tables(self) -> QueueTables:
        """Open the tables. Runs on the writer's thread."""

    @abstractmethod
    def _close_tables(self, tables: Tables | None) -> None:
        """Close the tables, if they were opened. Runs on the writer's thread."""

    @abstractmethod
    async def _read(self, read: Callable[[Connection], T]) -> T:
        """Read beside the writer, where the database is not the writer's own."""

    def use_model(self, model: str) -> None:
        """Save another name of the embedder with the chunks acknowledged from now on."""
        self._model = self._tables.model = model

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

    async def under_way(self, lanes: Collection[int]) -> set[int]:
        """As in `Queue`."""
        return await self._writer.run(self._tables.under_way, lanes)

    async def record_plans(self, plans: Sequence[Plan], sessions: Sequence[Session]) -> NewPlans:
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
        return await self._writer.run(
            self._tables.carry_out_requests, then=self._on_returned, reads_index=False
        )

    async def take_tasks(self) -> list[Task]:
        """As in `Queue`."""
        return await self._writer.run(self._tables.take_tasks, reads_index=False)

    async def answer_task(self, token: str, answer: Mapping[str, Any]) -> None:
        """As in `Queue`."""
        await self._writer.run(self._tables.answer_task, token, answer)

    async def note_health(self, health: Health) -> None:
        """As in `Queue`."""
        await self._writer.run(self._tables.note_health, health, reads_index=False)

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

    async def queued(self, after: int, limit: int, *, own: bool = False) -> list[QueuedChunk]:
        """As in `Catalog`."""
        return await self._writer.run(self._catalog.queued, after, limit, own)

    async def count_queued(self, *, own: bool = False) -> int:
        """As in `Catalog`."""
        return await self._writer.run(self._catalog.count_queued, own)

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

    async def delete_unknown(self, ids: Sequence[str], *, forgotten: bool = False) -> list[str]:
        """As in `Catalog`."""
        reason = FORGOTTEN if forgotten else _UNKNOWN
        return await self._writer.run(self._catalog.delete_unknown, ids, reason)

    async def read_in_order(self, read: Callable[[Connection], T]) -> T:
        """Run a blocking read after all operations that were submitted before."""
        await self.settled_of(0)
        return await self._read(read)

    async def deletions(self, limit: int, *, planned: bool = True, own: bool = False) -> list[str]:
        """As in `Catalog`."""
        return await self._writer.run(self._catalog.deletions, limit, planned, own)

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

    async def outdated(self, limit: int, *, own: bool = False) -> list[Outdated]:
        """As in `Catalog`."""
        return await self._writer.run(self._catalog.outdated, limit, own)

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

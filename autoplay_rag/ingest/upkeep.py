"""Background work on the store: re-embeds queued chunks and repeats deletions until confirmed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress

from autoplay_rag._backoff import grown_delay
from autoplay_rag._serial import SerialThread
from autoplay_rag.errors import FencedError, JournalError
from autoplay_rag.ingest.chunk_writer import (
    ChunkWriter,
    Delete,
    Operation,
    UpdateMetadata,
    Upsert,
)
from autoplay_rag.ingest.planner import Planner
from autoplay_rag.journal.base import Journal, QueuedChunk
from autoplay_rag.stores.base import Changes

__all__ = ["Upkeep"]

_log = logging.getLogger(__name__)

_PAGE = 200
_LOOK_DELETIONS = 2000
"""The most deletions to start at once that other processes left."""
_JOURNAL_RETRY_SECONDS = 1.0
_FIRST_REPEAT_SECONDS = 5.0
_LONGEST_REPEAT_SECONDS = 600.0
"""The shortest and the longest pause between attempts of rejected deletions."""


class Upkeep:
    """Embeds and stores queued chunks of the catalog again, and empties the deletion outbox.

    This work does not block new chunks, which use the same writer.

    Args:
        journal: Keeps the queued chunks and the outbox.
        writer: Embeds and stores the chunks.
        planner: Counts tokens.
    """

    def __init__(self, journal: Journal, writer: ChunkWriter, planner: Planner) -> None:
        self._journal = journal
        self._writer = writer
        self._planner = planner
        self._thread = SerialThread("autoplay-upkeep")
        self._queued = 0
        self._deleting: set[str] = set()
        self._deleted: list[str] = []
        self._refused: dict[str, str] = {}
        self._changed = asyncio.Event()
        self._more = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._problem: str | None = None

    @property
    def problems(self) -> list[str]:
        """Current failures and unfinished work, one line each. Readable from any thread."""
        found = [self._problem] if self._problem else []
        if self._queued:
            found.append(f"{self._queued:,} stored chunks are still to be embedded again")
        if refused := list(self._refused.values()):  # a copy: the loop may change it meanwhile
            found.append(f"{len(refused):,} chunks cannot be deleted from the store: {refused[0]}")
        return found

    async def resume(self) -> None:
        """Resume the work of an earlier run."""
        self._queued = await self._journal.count_queued(own=True)
        self._note_idle()
        self.delete(await self._journal.deletions(-1, planned=False, own=True))

    def delete(self, ids: Sequence[str]) -> None:
        """Start to delete chunks that are in the outbox."""
        fresh = [one for one in ids if one not in self._deleting]
        self._deleting.update(fresh)
        self._note_idle()
        self._writer.put([Delete(one) for one in fresh], self._delete_ended)

    async def look(self) -> None:
        """Start the work that other processes have left for this one."""
        if not self._queued and (count := await self._journal.count_queued(own=True)):
            self.store_again(count)
        limit = _LOOK_DELETIONS + len(self._refused)  # those that are refused stay the oldest
        found = await self._journal.deletions(limit, planned=False, own=True)
        self.delete([one for one in found if one not in self._refused])

    async def is_anything_left(self) -> bool:
        """Whether a chunk is left for any process to store again, or to delete.

        Those that the store has refused to delete here do not count.
        """
        if await self._journal.count_queued():
            return True
        found = await self._journal.deletions(len(self._refused) + 1, planned=False)
        return any(one not in self._refused for one in found)

    @property
    def deleting(self) -> int:
        """How many chunks are being deleted. Rejected ones do not count."""
        return len(self._deleting)

    def is_refused(self, id: str) -> bool:
        """Whether the store has refused to delete this chunk."""
        return id in self._refused

    def store_again(self, count: int) -> None:
        """Start to store `count` chunks that the catalog has just queued."""
        self._queued += count
        self._note_idle()
        self._more.set()

    async def carry_out(self, changes: Mapping[str, Changes], copies: Sequence[str]) -> set[str]:
        """Change metadata of chunks, and delete all copies of others.

        The operations start before the first suspension, so they keep their place among those of
        later plans and deletions.

        Args:
            changes: For each chunk id the keys to set; None removes a key.
            copies: Ids of chunks to be deleted, which the caller queues to be stored again.

        Returns:
            The ids of the chunks whose operation failed.
        """
        operations: list[UpdateMetadata | Delete] = [Delete(one) for one in copies]
        operations += [UpdateMetadata(one, wanted) for one, wanted in changes.items()]
        if not operations:
            return set()
        failed: set[str] = set()
        left = len(operations)
        ended = asyncio.Event()

        def one_ended(operation: Operation, error: str | None) -> None:
            nonlocal left
            assert not isinstance(operation, Upsert)
            left -= 1
            if error is not None:
                failed.add(operation.id)
            if not left:
                ended.set()

        self._writer.put(operations, one_ended)
        await ended.wait()
        return failed

    @property
    def idle(self) -> bool:
        """Whether no chunk is queued and no deletion in progress. Rejected ones do not count."""
        return self._idle.is_set()

    async def wait(self) -> None:
        """Wait until `idle`."""
        await self._idle.wait()

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._store_again())
            group.create_task(self._confirm_deletions())
            group.create_task(self._repeat_deletions())

    def _note_idle(self) -> None:
        if self._queued or self._deleting or self._deleted:
            self._idle.clear()
        else:
            self._idle.set()

    # -- stored again -------------------------------------------------------------------------

    async def _store_again(self) -> None:
        while True:
            self._more.clear()
            await self._store_queued()
            self._note_idle()
            await self._more.wait()

    async def _store_queued(self) -> None:
        after = 0
        while self._queued:
            try:
                page = await self._journal.queued(after, _PAGE, own=True)
                if not page:
                    # A deletion may have removed queued chunks since the last count.
                    self._queued = await self._journal.count_queued(own=True) if after else 0
                    after = 0
                    continue
                await self._store_page(page, after)
                after = page[-1].number
                self._problem = None
            except FencedError:  # those that are still ours are read again
                await asyncio.sleep(_JOURNAL_RETRY_SECONDS)
            except JournalError as error:
                self._problem = f"storing chunks again failed: {error}"
                await asyncio.sleep(_JOURNAL_RETRY_SECONDS)

    async def _store_page(self, page: Sequence[QueuedChunk], after: int) -> None:
        counts = await self._thread.run(self._planner.count, [queued.chunk for queued in page])
        tokens = {queued.number: count for queued, count in zip(page, counts, strict=True)}
        before = {queued.number: queued for queued in page}
        # Chunks may have been deleted, changed or planned anew while tokens were counted. This read
        # has its place among the journal's transactions: operations of a later one start after ours.
        known = [
            queued
            for queued in await self._journal.queued(after, _PAGE, own=True)
            if queued.number in before
        ]
        page = [queued for queued in known if queued.chunk.text == before[queued.number].chunk.text]
        left = len(known) - len(page)  # another text: they come in the next round
        number_of = {queued.chunk.id: queued.number for queued in page}
        refused: dict[int, str] = {}
        stored: dict[int, str] = {}
        ended = asyncio.Event()

        def chunk_ended(operation: Operation, error: str | None) -> None:
            assert isinstance(operation, Upsert)
            number = number_of[operation.chunk.id]
            if error is None:
                stored[number] = operation.chunk.id
            else:
                refused[number] = error
            if len(stored) + len(refused) == len(page):
                ended.set()

        self._writer.put(
            [Upsert(queued.chunk, tokens[queued.number]) for queued in page],
            chunk_ended,
        )
        if page:
            await ended.wait()
            try:
                self.delete(await self._journal.stored_again(stored, refused))
            except FencedError:
                # The next owner stores them again. It may have deleted some before they were stored
                # here.
                self.delete(await self._journal.delete_unknown([*stored.values()]))
                raise
        self._queued = max(0, self._queued - len(before) + left)

    # -- deletions ----------------------------------------------------------------------------

    def _delete_ended(self, operation: Operation, error: str | None) -> None:
        assert isinstance(operation, Delete)
        self._deleting.discard(operation.id)
        if error is None:
            self._refused.pop(operation.id, None)
            self._deleted.append(operation.id)
            self._changed.set()
        else:
            if not self._refused:
                _log.error(
                    "chunks of dead or replaced payloads stay in the store, because it did not "
                    "delete them (%s); retrying",
                    error,
                )
            self._refused[operation.id] = error
        self._note_idle()

    async def _confirm_deletions(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            ids = list(self._deleted)
            try:
                await self._journal.deleted(ids)
            except FencedError:
                pass  # those that are still ours are in the outbox, and deleted once more
            except JournalError:
                self._changed.set()  # if this is never recorded, deleting again does no harm
                await asyncio.sleep(_JOURNAL_RETRY_SECONDS)
                continue
            del self._deleted[: len(ids)]
            self._note_idle()

    async def _repeat_deletions(self) -> None:
        failures = 0
        while True:
            await asyncio.sleep(
                grown_delay(failures, _FIRST_REPEAT_SECONDS, _LONGEST_REPEAT_SECONDS)
            )
            failures = failures + 1 if self._refused else 0
            with suppress(JournalError):
                outbox = await self._journal.deletions(-1, planned=False, own=True)
                # Forget chunks that left the outbox because they were stored again.
                self._refused = {one: self._refused[one] for one in outbox if one in self._refused}
                self.delete(outbox)

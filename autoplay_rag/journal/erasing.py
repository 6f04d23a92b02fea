"""Forgetting, for an event loop: each operation runs where it may block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Protocol, TypeVar

from autoplay_rag.journal.forgetting import Begun, Deleted, ErasureState, ErasureTables
from autoplay_rag.journal.rows import Connection
from autoplay_rag.journal.selecting import Asked, Selected, Sizes, count, select
from autoplay_rag.journal.writer import Writer

__all__ = ["AsyncErasures"]

T = TypeVar("T")

_PAGE: Final = 250
"""Payloads deleted in one transaction, while new payloads wait. It takes about 30 ms."""


class _Read(Protocol):
    async def __call__(self, read: Callable[[Connection], T], /) -> T: ...


class AsyncErasures:
    """Requests to forget, in the journal.

    Args:
        writer: Runs what changes the journal.
        tables: The tables; known once the journal is open.
        read: Runs a read where it does not hold up the writer.
    """

    def __init__(self, writer: Writer, tables: Callable[[], ErasureTables], read: _Read) -> None:
        self._writer = writer
        self._tables = tables
        self._read = read

    async def select(self, asked: Asked) -> tuple[Selected, Sizes]:
        """Return the payloads that a request concerns, and how much that is."""

        def read(connection: Connection) -> tuple[Selected, Sizes]:
            with _one_moment(connection):
                selected = select(connection, asked)
                return selected, count(connection, asked, selected)

        return await self._read(read)

    async def begin(self, asked: Asked, selected: Selected, *, block: bool) -> Begun | None:
        """Record a request; see `ErasureTables.begin`."""
        return await self._writer.run(
            self._tables().begin, asked, selected, self._tables().file.clock(), block
        )

    async def delete_all(self, then: Callable[[Deleted], None] | None = None) -> None:
        """Delete all payloads of recorded requests, in small transactions.

        Args:
            then: Called on the loop after each commit.
        """
        more = True
        while more:
            page = await self._writer.run(self._tables().delete_page, _PAGE, then=then)
            more = page.more

    async def state(self, number: int) -> ErasureState | None:
        """Return a request and its progress; None if there is no such request."""
        return await self._writer.run(self._tables().state, number)

    async def open_requests(self) -> list[ErasureState]:
        """Return the requests that are not complete, oldest first."""
        return await self._writer.run(self._tables().open_requests)

    async def mark_deleted(self, numbers: Sequence[int]) -> None:
        """Record that nothing of these requests is found any more."""
        await self._writer.run(self._tables().mark_deleted, numbers, self._tables().file.clock())

    async def mark_erased(self, numbers: Sequence[int]) -> None:
        """Record that no file holds anything of these requests any more."""
        await self._writer.run(self._tables().mark_erased, numbers, self._tables().file.clock())

    @property
    def remains(self) -> tuple[str, ...]:
        """What may hold deleted payloads even after `rewrite`, a sentence each."""
        return self._tables().file.remains

    async def rewrite(self) -> bool:
        """Write the journal's file anew, without the remains of deleted rows.

        The full-text index is merged in small transactions. New payloads wait while the file is
        written.

        Returns:
            Whether the write-ahead log was emptied too. A reader of an older state prevents that.
        """
        first = True
        while await self._writer.run(self._tables().merge_words, first):
            first = False
        return await self._writer.look(self._tables().file.rewrite)

    async def empty_log(self) -> bool:
        """Empty the write-ahead log; False if a reader of an older state prevents it."""
        return await self._writer.look(self._tables().file.empty_log)


@contextmanager
def _one_moment(connection: Connection) -> Iterator[None]:
    if connection.in_transaction:
        yield
        return
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")

"""The writer: one thread that commits submitted items in groups.

A commit starts as soon as the thread is free. It takes all items submitted since the last one,
without a timer. A single caller that awaits each payload causes one commit per payload. A thousand
concurrent callers share a few commits.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeAlias, TypeVar

from autoplay_rag.errors import (
    AutoplayError,
    JournalError,
    JournalFullError,
    PipelineClosedError,
)
from autoplay_rag.journal.base import Entry, Outcome, Prepared
from autoplay_rag.journal.database import JournalDatabase
from autoplay_rag.journal.fulltext import FullTextTables
from autoplay_rag.journal.index_buffer import IndexBuffer

__all__ = ["OnEntry", "Tables", "Writer"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

OnEntry: TypeAlias = Callable[[Entry, Outcome | None], None]

_GROUP = 256
"""The most items in one commit. A larger commit would delay the items behind it."""
_GROUP_BYTES = 4 * 2**20
_REPORTED = 50
"""As many results are reported without a pause for other callbacks of the loop: about 2 ms."""
_READER_SECONDS = 1.0
"""How long a reader waits for the index. It does not wait for a locked journal."""


class Tables(Protocol):
    """The operations on the journal's tables that the writer needs.

    Attributes:
        file: The database with the tables.
        fulltext: The full-text index in it.
    """

    file: JournalDatabase
    fulltext: FullTextTables

    def prepare(self, entry: Entry) -> Prepared:
        """Return an entry's body and words in the form to be kept. Runs before the transaction."""

    def number(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        """Return the entries with the sequence numbers that they are saved with."""

    def accept(self, entries: Sequence[Entry], prepared: Sequence[Prepared]) -> list[Outcome]:
        """Add payloads to the queue, and return the outcome of each, in order."""

    def overflow(self, entry: Entry) -> Outcome:
        """Count an entry that could not be written."""


_NOTHING = Prepared()


@dataclass(slots=True)
class _Accept:
    entry: Entry
    future: asyncio.Future[Outcome]
    prepared: Prepared = _NOTHING

    @property
    def size(self) -> int:
        """The size of its payload in bytes."""
        return self.entry.size


@dataclass(slots=True)
class _TakeIn:
    entries: Sequence[Entry]
    confirm: Callable[[], None]
    future: asyncio.Future[list[Outcome]]
    prepared: list[Prepared] = field(default_factory=list)

    @property
    def size(self) -> int:
        """The size of its payloads in bytes."""
        return sum(entry.size for entry in self.entries)


@dataclass(slots=True)
class _Work:
    operation: Callable[..., Any]
    arguments: tuple[Any, ...]
    future: asyncio.Future[Any]
    then: Callable[[Any], None] | None
    reads_index: bool


@dataclass(slots=True)
class _Look:
    look: Callable[[], Any]
    future: Future[Any]


_Change: TypeAlias = _Accept | _TakeIn | _Work
_Item: TypeAlias = _Change | _Look


@dataclass(frozen=True, slots=True)
class _Failure:
    error: BaseException


class Writer:
    """Runs operations on the journal's tables in order, many in one transaction.

    Args:
        name: What messages call the journal before it is open.
        open_tables: Opens the tables. Runs on the writer thread.
        close_tables: Closes the tables. Runs on the writer thread at the end. If opening failed, it
            is called with None.
        on_entry: Called on the loop with each entry and its outcome, in the order of the `accept`
            calls, before the entry's future completes. The outcome is None if the entry could not
            be written.

    Attributes:
        problem: What prevents writing, in one line; None if writing works.
    """

    def __init__(
        self,
        name: str,
        open_tables: Callable[[], Tables],
        close_tables: Callable[[Tables | None], None],
        on_entry: OnEntry,
    ) -> None:
        self._name = name
        self._open_tables = open_tables
        self._close_tables = close_tables
        self._on_entry = on_entry
        self._queue: SimpleQueue[_Item | None] = SimpleQueue()
        self._reports: deque[tuple[_Change, Any]] = deque()
        self._closed = False
        self.problem: str | None = None
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread
        self._tables: Tables
        self._ended: asyncio.Event

    async def open(self) -> None:
        """Start the thread and open the tables.

        Raises:
            JournalError: If `open_tables` raises it, an `OSError` or a `sqlite3.Error`.
        """
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        opened: asyncio.Future[None] = self._loop.create_future()
        # A daemon thread does not delay the interpreter's exit. Committed data is safe.
        self._thread = threading.Thread(
            target=self._write, args=(opened,), name="autoplay-journal", daemon=True
        )
        self._thread.start()
        try:
            await asyncio.shield(opened)
        except asyncio.CancelledError:
            # The caller will not call `close`, so the writer closes the tables after opening them.
            self._queue.put(None)
            opened.add_done_callback(_retrieve_exception)
            raise

    async def close(self) -> None:
        """Finish all submitted items and close the tables. Also allowed after `open` has failed."""
        self._closed = True
        self._queue.put(None)
        await self._ended.wait()
        self._thread.join()

    def accept(self, entry: Entry) -> asyncio.Future[Outcome]:
        """Submit an entry. The future completes when the entry is committed.

        Cancelling the future does not cancel the commit.
        """
        future: asyncio.Future[Outcome] = self._loop.create_future()
        self._submit(_Accept(entry, future))
        return future

    def take_in(
        self, entries: Sequence[Entry], confirm: Callable[[], None]
    ) -> asyncio.Future[list[Outcome]]:
        """Submit entries that are committed together with what `confirm` writes, or not at all.

        Args:
            entries: The entries.
            confirm: Called on the writer's thread in the transaction, before the entries are
                written, and again if the transaction is repeated.

        Returns:
            A future with the outcome of each. It fails with what `confirm` raises, and with
            `JournalFullError` if one of the entries has no room.
        """
        future: asyncio.Future[list[Outcome]] = self._loop.create_future()
        self._submit(_TakeIn(entries, confirm, future))
        return future

    async def run(
        self,
        operation: Callable[..., T],
        *arguments: Any,
        then: Callable[[T], None] | None = None,
        reads_index: bool = True,
    ) -> T:
        """Run an operation of the tables in a transaction.

        Args:
            operation: A method of the tables. It runs even if the caller is cancelled.
            arguments: Its arguments.
            then: Called on the loop with the result after the commit, even if the caller was
                cancelled.
            reads_index: Whether it may read the full-text index, or the tables of sessions. Then all
                that was accepted before is written into them first.

        Raises:
            JournalError: If the journal cannot be written.
            PipelineClosedError: If it is closed.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self._submit(_Work(operation, arguments, future, then, reads_index))
        return await future

    async def look(self, look: Callable[[], T], /) -> T:
        """Read in the writer's thread, after all operations that were submitted before.

        Works on any event loop, also while the writer's own is blocked.

        Raises:
            PipelineClosedError: If the journal is closed.
        """
        future: Future[T] = Future()
        self._submit(_Look(look, future))
        return await asyncio.wrap_future(future)

    def _submit(self, item: _Item) -> None:
        if self._closed:
            raise PipelineClosedError("the pipeline is not running: its journal is closed")
        self._queue.put(item)

    async def index_accepted(self) -> None:
        """Write what was accepted before into the full-text index, for a reader beside the writer.

        Does not raise: what cannot be written now is in the index later.
        """
        if self._tables.fulltext.buffer:
            with suppress(PipelineClosedError, TimeoutError):
                # Before it looks, the writer writes the index.
                await asyncio.wait_for(self.look(lambda: None), _READER_SECONDS)

    # -- on the writer thread -----------------------------------------------------------------

    def _write(self, opened: asyncio.Future[None]) -> None:
        try:
            self._tables = self._open_tables()
        except BaseException as error:  # noqa: BLE001 - raised again in `open`
            self._close_tables(None)
            if isinstance(error, (OSError, sqlite3.Error)):  # those of a server are JournalErrors
                error = JournalError(f"the journal {self._name} cannot be opened: {error}")
            self._call_soon(_settle, opened, _Failure(error))
            self._call_soon(self._end)
            return
        self._call_soon(_settle, opened, None)
        try:
            while group := self._next_group():
                for item in group:
                    # Not on the loop: zlib releases the GIL, and the loop would have to wait to
                    # get it back.
                    if isinstance(item, _Accept):
                        item.prepared = self._tables.prepare(item.entry)
                    elif isinstance(item, _TakeIn):
                        item.prepared = [self._tables.prepare(entry) for entry in item.entries]
                for changes in self._transactions(group):
                    self._commit(changes)
                looks = [item for item in group if isinstance(item, _Look)]
                if looks or self._buffer.seconds_left() == 0:
                    self._write_index()
                for look in looks:
                    _carry_out_look(look)
            self._write_index()
        finally:
            self._close_tables(self._tables)
            self._call_soon(self._end)

    def _next_group(self) -> list[_Item]:
        """Wait for an item, and return it with the items behind it; an empty list at the end."""
        first = self._next_item()
        group: list[_Item] = []
        size = 0
        while first is not None:
            group.append(first)
            size += first.size if isinstance(first, _Accept | _TakeIn) else 0
            if len(group) >= _GROUP or size >= _GROUP_BYTES:
                break
            try:
                first = self._queue.get_nowait()
            except Empty:
                break
        else:
            if group:
                self._queue.put(None)  # read again after this group, and ends the thread
        return group

    def _next_item(self) -> _Item | None:
        """Wait for an item. If none comes for a while, write the index meanwhile."""
        while (left := self._buffer.seconds_left()) is not None:
            try:
                return self._queue.get(timeout=left)
            except Empty:
                self._write_index()
        return self._queue.get()

    def _transactions(self, group: Sequence[_Item]) -> Iterator[Sequence[_Change]]:
        """Yield the changes of a group as they are to be committed together.

        Operations may read the index, so they come after what was accepted before is in it. Where
        several processes use the database, intake holds up the intake of the others, so nothing
        else goes along.
        """
        changes = [item for item in group if not isinstance(item, _Look)]
        for _, some in groupby(changes, lambda item: isinstance(item, _Work)):
            together = list(some)
            if any(isinstance(item, _Work) and item.reads_index for item in together):
                self._write_index()
            yield together

    @property
    def _buffer(self) -> IndexBuffer:
        return self._tables.fulltext.buffer

    def _write_index(self) -> None:
        """Write what is accepted and not in the index yet. What cannot be written now is kept."""
        file, buffer = self._tables.file, self._buffer
        if not buffer:
            return
        seqs = buffer.seqs
        if (error := self._index(seqs)) is None:
            return
        buffer.put_off()
        if file.is_full(error) or file.reason_to_wait(error) is not None:
            return  # the commits of payloads say so
        for seq in seqs:
            if (error := self._index([seq])) is not None:
                buffer.drop([seq])
                _log.error("a payload is not found by its words: %s", file.describe(error))

    def _index(self, seqs: Collection[int]) -> Exception | None:
        try:
            with self._tables.file.transaction():
                self._buffer.write(seqs)
        except Exception as error:  # noqa: BLE001 - payloads and operations go on
            return error
        self._buffer.drop(seqs)
        return None

    def _commit(self, group: Sequence[_Change]) -> None:
        try:
            results = self._committed(group)
        except BaseException as error:  # noqa: BLE001 - raised again in the callers
            if len(group) > 1 and self._tables.file.reason_to_wait(error) is None:
                # One item rolled back the group. Run each alone, so that only that item fails.
                for item in group:
                    self._commit([item])
                return
            results = [self._failed(item, error) for item in group]
        self._call_soon(self._report, group, results)

    def _committed(self, group: Sequence[_Change]) -> list[Any]:
        """Run a group. Wait while the database cannot be written, unless closing."""
        file = self._tables.file
        results: list[Any] | None = None
        while True:
            try:
                if results is None or not file.was_committed():
                    results = None
                    with file.transaction():
                        results = self._run_operations(group)
            except Exception as error:
                reason = file.reason_to_wait(error)
                if self._closed or reason is None:
                    raise
                if self.problem is None and reason:
                    self.problem = reason
                    _log.warning("%s; writes wait until that is over", reason)
            else:
                self.problem = None
                return results

    def _run_operations(self, group: Sequence[_Change]) -> list[Any]:
        results: list[Any] = []
        for accepting, items in groupby(group, lambda item: isinstance(item, _Accept)):
            if accepting:
                accepts = [item for item in items if isinstance(item, _Accept)]
                entries = self._tables.number([item.entry for item in accepts])
                for item, entry in zip(accepts, entries, strict=True):
                    item.entry = entry
                results += self._tables.accept(entries, [item.prepared for item in accepts])
                continue
            for change in items:
                if isinstance(change, _TakeIn):
                    results.append(self._take_in(change))
                elif isinstance(change, _Work):
                    results.append(change.operation(*change.arguments))
        return results

    def _take_in(self, item: _TakeIn) -> list[Outcome]:
        item.confirm()
        item.entries = self._tables.number(item.entries)
        outcomes = self._tables.accept(item.entries, item.prepared)
        if "overflow" in outcomes:
            raise JournalFullError(
                f"the journal {self._tables.file.name} is full: raise journal_max_bytes, or check "
                "why the store does not keep up"
            )
        return outcomes

    def _failed(self, item: _Change, error: BaseException) -> Any:
        file = self._tables.file
        if isinstance(item, _Accept) and file.is_failure(error):
            overflow = self._tables.overflow(item.entry)
            if file.is_full(error):
                return overflow
        if not isinstance(error, AutoplayError):
            failed = JournalError(
                f"the journal {file.name} could not be used: {file.describe(error)}"
            )
            if file.alone:  # errors of servers quote the values of rows
                failed.__cause__ = error
            return _Failure(failed)
        return _Failure(error)

    def _call_soon(self, call: Callable[..., None], *args: Any) -> None:
        # The loop is closed, so no caller is waiting.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *args)

    def _end(self) -> None:
        self._closed = True
        try:
            while self._reports:
                self._report_some()
        finally:
            self._ended.set()
        with suppress(Empty):
            while True:
                if item := self._queue.get_nowait():
                    closed = PipelineClosedError(
                        "the pipeline is not running: its journal is closed"
                    )
                    if isinstance(item, _Look):
                        if item.future.set_running_or_notify_cancel():
                            item.future.set_exception(closed)
                    else:
                        _settle(item.future, _Failure(closed))

    # -- on the loop --------------------------------------------------------------------------

    def _report(self, group: Sequence[_Change], results: list[Any]) -> None:
        is_under_way = bool(self._reports)
        self._reports.extend(zip(group, results, strict=True))
        if not is_under_way:
            self._report_some()

    def _report_some(self) -> None:
        try:
            for _ in range(min(_REPORTED, len(self._reports))):
                self._report_one(*self._reports.popleft())
        finally:
            if self._reports:
                self._loop.call_soon(self._report_some)

    def _report_one(self, item: _Change, result: Any) -> None:
        if isinstance(item, _Work):
            if item.then and not isinstance(result, _Failure):
                # In the next turn, and before the caller goes on. Those whose operations came
                # before are woken first: what they start has its place before what this starts.
                self._loop.call_soon(item.then, result)
        elif isinstance(item, _TakeIn):
            # After a failure the source keeps them, and they are submitted again.
            if not isinstance(result, _Failure):
                for entry, outcome in zip(item.entries, result, strict=True):
                    self._on_entry(entry, outcome)
        else:
            self._on_entry(item.entry, None if isinstance(result, _Failure) else result)
        _settle(item.future, result)


def _settle(future: asyncio.Future[Any], result: Any) -> None:
    if future.done():  # cancelled by its caller
        return
    if isinstance(result, _Failure):
        future.set_exception(result.error)
    else:
        future.set_result(result)


def _carry_out_look(item: _Look) -> None:
    if not item.future.set_running_or_notify_cancel():
        return
    try:
        item.future.set_result(item.look())
    except BaseException as error:  # noqa: BLE001 - raised again in the caller
        item.future.set_exception(error)


def _retrieve_exception(future: asyncio.Future[Any]) -> None:
    """Asyncio logs an exception that nobody has asked for."""
    future.exception()

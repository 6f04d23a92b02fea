"""The one writer: a thread that commits what has gathered.

A commit starts as soon as the writer is free and takes everything handed over meanwhile. There
is no timer: one caller that awaits each payload pays for one commit each, a thousand callers at
once share a few.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeAlias, TypeVar

from autoplay_rag._describe import describe
from autoplay_rag.errors import AutoplayError, JournalError, PipelineClosedError
from autoplay_rag.journal.base import Entry, Outcome, Prepared
from autoplay_rag.journal.file import JournalFile

__all__ = ["OnEntry", "Tables", "Writer"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

OnEntry: TypeAlias = Callable[[Entry, Outcome | None], None]

_GROUP = 256
"""The most entries in one commit: more would delay whoever waits behind them."""
_GROUP_BYTES = 4 * 2**20


class Tables(Protocol):
    """What the writer needs of the journal's tables.

    Attributes:
        file: The file they are in.
    """

    file: JournalFile

    def prepare(self, entry: Entry) -> Prepared:
        """An entry's body and words as they are kept. Runs before the transaction."""

    def accept(self, entries: Sequence[Entry], prepared: Sequence[Prepared]) -> list[Outcome]:
        """Take payloads in; what became of each, in order."""

    def overflow(self, entry: Entry) -> Outcome:
        """Count an entry that could not be written."""


@dataclass(slots=True)
class _Accept:
    entry: Entry
    future: asyncio.Future[Outcome]
    prepared: Prepared = Prepared()


@dataclass(slots=True)
class _Work:
    operation: Callable[..., Any]
    arguments: tuple[Any, ...]
    future: asyncio.Future[Any]
    then: Callable[[Any], None] | None


@dataclass(slots=True)
class _Look:
    look: Callable[[], Any]
    future: Future[Any]


_Change: TypeAlias = _Accept | _Work
_Item: TypeAlias = _Accept | _Work | _Look


@dataclass(frozen=True, slots=True)
class _Failure:
    error: BaseException


class Writer:
    """Runs the operations of a journal's tables, in order, many in one transaction.

    Args:
        name: The file, for messages; None for a journal in memory.
        open_tables: Opens the tables; runs in the writer's thread.
        close_tables: Runs in the writer's thread at the end, also if opening failed: then with
            None.
        on_entry: Called on the loop for each entry with what became of it, in the order in which
            they were handed over, before its future ends; None if it could not be written.

    Attributes:
        problem: What prevents writing, in one line; None while all is well.
    """

    def __init__(
        self,
        name: Path | None,
        open_tables: Callable[[], Tables],
        close_tables: Callable[[Tables | None], None],
        on_entry: OnEntry,
    ) -> None:
        self._name = name
        self._open_tables = open_tables
        self._close_tables = close_tables
        self._on_entry = on_entry
        self._queue: SimpleQueue[_Item | None] = SimpleQueue()
        self._closed = False
        self.problem: str | None = None
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread
        self._tables: Tables
        self._ended: asyncio.Event

    async def open(self) -> None:
        """Start the thread and open the tables.

        Raises:
            JournalError: As `open_tables` does.
        """
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        opened: asyncio.Future[None] = self._loop.create_future()
        # A daemon: what it has committed is safe, so it need not delay the interpreter's end.
        self._thread = threading.Thread(
            target=self._write, args=(opened,), name="autoplay-journal", daemon=True
        )
        self._thread.start()
        try:
            await asyncio.shield(opened)
        except asyncio.CancelledError:
            # Nobody will close what is being opened: the writer does, as soon as it is open.
            self._queue.put(None)
            opened.add_done_callback(_take_note)
            raise

    async def close(self) -> None:
        """Carry out what was handed over and close the tables."""
        self._closed = True
        self._queue.put(None)
        await self._ended.wait()
        self._thread.join()

    def accept(self, entry: Entry) -> asyncio.Future[Outcome]:
        """Hand an entry over; the future ends when it is committed.

        Cancelling the future changes nothing: what was handed over is taken in.
        """
        future: asyncio.Future[Outcome] = self._loop.create_future()
        self._hand_over(_Accept(entry, future))
        return future

    async def run(
        self,
        operation: Callable[..., T],
        *arguments: Any,
        then: Callable[[T], None] | None = None,
    ) -> T:
        """Have an operation of the tables carried out in a transaction.

        Args:
            operation: A method of the tables. It runs even if the caller is cancelled.
            arguments: Its arguments.
            then: Called on the loop with the result once it is committed, also if the caller was
                cancelled meanwhile.

        Raises:
            JournalError: If the journal cannot be written.
            PipelineClosedError: If it is closed.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self._hand_over(_Work(operation, arguments, future, then))
        return await future

    async def look(self, look: Callable[[], T], /) -> T:
        """Have something read in the writer's thread, after what was handed over before.

        Works on any event loop, also while the writer's own is blocked.

        Raises:
            PipelineClosedError: If the journal is closed.
        """
        future: Future[T] = Future()
        self._hand_over(_Look(look, future))
        return await asyncio.wrap_future(future)

    def _hand_over(self, item: _Item) -> None:
        if self._closed:
            raise PipelineClosedError("the pipeline is not running: its journal is closed")
        self._queue.put(item)

    # -- the writer's thread ------------------------------------------------------------------

    def _write(self, opened: asyncio.Future[None]) -> None:
        try:
            self._tables = self._open_tables()
        except BaseException as error:  # noqa: BLE001 - raised again in `open`
            self._close_tables(None)
            if isinstance(error, (OSError, sqlite3.Error)):
                error = JournalError(f"the journal {self._name} cannot be opened: {error}")
            self._call_soon(_settle, opened, _Failure(error))
            return
        self._call_soon(_settle, opened, None)
        try:
            while group := self._next_group():
                for item in group:
                    # Here, not on the loop: at each call of zlib the loop would lose Python's lock
                    # to whoever waits for it.
                    if isinstance(item, _Accept):
                        item.prepared = self._tables.prepare(item.entry)
                if changes := [item for item in group if not isinstance(item, _Look)]:
                    self._commit(changes)
                for item in group:
                    if isinstance(item, _Look):
                        _carry_out_look(item)
        finally:
            self._close_tables(self._tables)
            self._call_soon(self._end)

    def _next_group(self) -> list[_Item]:
        """Wait for something to do and take what has gathered with it; nothing at the end."""
        first = self._queue.get()
        group: list[_Item] = []
        size = 0
        while first is not None:
            group.append(first)
            size += first.entry.size if isinstance(first, _Accept) else 0
            if len(group) >= _GROUP or size >= _GROUP_BYTES:
                break
            try:
                first = self._queue.get_nowait()
            except Empty:
                break
        else:
            if group:
                self._queue.put(None)  # the end comes again, after this group
        return group

    def _commit(self, group: Sequence[_Change]) -> None:
        try:
            results = self._committed(group)
        except BaseException as error:  # noqa: BLE001 - raised again in the callers
            if len(group) > 1 and not _is_busy(error):
                # One of them failed for all: each alone, so that only that one fails.
                for item in group:
                    self._commit([item])
                return
            results = [self._failed(item, error) for item in group]
        self._call_soon(self._report, group, results)

    def _committed(self, group: Sequence[_Change]) -> list[Any]:
        """Carry out a group; wait as long as another program holds the file, but not to close."""
        while True:
            try:
                with self._tables.file.transaction():
                    results = self._carry_out(group)
            except sqlite3.OperationalError as error:
                if self._closed or not _is_busy(error):
                    raise
                if self.problem is None:
                    self.problem = f"another program holds the lock of {self._name}"
                    _log.warning("%s: what comes waits for it", self.problem)
            else:
                self.problem = None
                return results

    def _carry_out(self, group: Sequence[_Change]) -> list[Any]:
        results: list[Any] = []
        for accepting, items in groupby(group, lambda item: isinstance(item, _Accept)):
            if accepting:
                accepts = [item for item in items if isinstance(item, _Accept)]
                results += self._tables.accept(
                    [item.entry for item in accepts], [item.prepared for item in accepts]
                )
            else:
                results += [i.operation(*i.arguments) for i in items if isinstance(i, _Work)]
        return results

    def _failed(self, item: _Change, error: BaseException) -> Any:
        if isinstance(item, _Accept) and isinstance(error, sqlite3.Error):
            overflow = self._tables.overflow(item.entry)
            if _is_full(error):
                return overflow
        if not isinstance(error, AutoplayError):
            name = self._name or "in memory"
            failed = JournalError(f"the journal {name} could not be used: {describe(error)}")
            failed.__cause__ = error
            return _Failure(failed)
        return _Failure(error)

    def _call_soon(self, call: Callable[..., None], *args: Any) -> None:
        # A loop that is closed has nobody left to inform.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *args)

    def _end(self) -> None:
        self._closed = True
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

    # -- back on the loop ---------------------------------------------------------------------

    def _report(self, group: Sequence[_Change], results: list[Any]) -> None:
        for item, result in zip(group, results, strict=True):
            if isinstance(item, _Work):
                if item.then and not isinstance(result, _Failure):
                    item.then(result)
            else:
                self._on_entry(item.entry, None if isinstance(result, _Failure) else result)
            _settle(item.future, result)


def _settle(future: asyncio.Future[Any], result: Any) -> None:
    if future.done():  # cancelled by a caller that no longer waits
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


def _take_note(future: asyncio.Future[Any]) -> None:
    """Asyncio logs an exception that nobody has asked for."""
    future.exception()


def _is_full(error: BaseException) -> bool:
    return _code(error) == sqlite3.SQLITE_FULL


def _is_busy(error: BaseException) -> bool:
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _code(error: BaseException) -> int | None:
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF

"""The journal beside the event loop: one thread writes, and commits what has gathered.

A commit starts as soon as the writer is free and takes everything handed over meanwhile. There
is no timer: one caller that awaits each payload pays for one commit each, a thousand callers at
once share a few.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias, TypeVar

from autoplay_rag._describe import describe
from autoplay_rag._filelock import FileLock
from autoplay_rag.errors import AutoplayError, JournalError, JournalLockedError, PipelineClosedError
from autoplay_rag.ingest.journal_db import JournalDb
from autoplay_rag.ingest.journal_rows import Durability, Entry, Outcome

__all__ = ["Journal"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

_GROUP = 256
"""The most entries in one commit: more would hold up whoever waits behind them."""
_GROUP_BYTES = 4 * 2**20


@dataclass(slots=True)
class _Accept:
    entry: Entry
    future: asyncio.Future[Outcome]


@dataclass(slots=True)
class _Work:
    call: Callable[[JournalDb], Any]
    future: asyncio.Future[Any]
    then: Callable[[Any], None] | None


_Item: TypeAlias = _Accept | _Work


@dataclass(frozen=True, slots=True)
class _Failure:
    error: BaseException


class Journal:
    """What was received, kept until it is stored and known afterwards.

    Args:
        path: The file; None keeps the journal in memory.
        durability: See `IngestPipeline`.
        max_bytes: The most bytes of payloads waiting or dead.
        recent_seconds: How long what was stored stays readable for other processes.
        on_accepted: Called on the loop for each entry that was taken into the queue, in the order
            in which they were handed over, before its `accept` returns.

    Attributes:
        trouble: What keeps it from being written, in one line; None while all is well.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        durability: Durability,
        max_bytes: int,
        recent_seconds: float = 0.0,
        on_accepted: Callable[[Entry], None],
    ) -> None:
        self._path = path
        self._durability: Durability = durability
        self._max_bytes = max_bytes
        self._recent_seconds = recent_seconds
        self._on_accepted = on_accepted
        self._lock = FileLock(path.with_name(path.name + ".lock")) if path else None
        self._queue: SimpleQueue[_Item | None] = SimpleQueue()
        self._closed = False
        self.trouble: str | None = None
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread
        self._db: JournalDb
        self._ended: asyncio.Event

    async def open(self) -> None:
        """Open or make the file and start the writer.

        Raises:
            JournalLockedError: If another pipeline has this journal open.
            JournalDamagedError: If the file is damaged; it was renamed to the name in the message.
            JournalVersionError: If another version of this package wrote it.
            JournalError: If it is another program's file or cannot be opened.
        """
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        opened: asyncio.Future[None] = self._loop.create_future()
        # A daemon: whatever it has committed is safe, so it need not hold up the interpreter's end.
        self._thread = threading.Thread(
            target=self._write, args=(opened,), name="autoplay-journal", daemon=True
        )
        self._thread.start()
        try:
            await asyncio.shield(opened)
        except asyncio.CancelledError:
            # Nobody will close what is being opened: the writer does, as soon as it is open.
            self._queue.put(None)
            opened.add_done_callback(_forget)
            raise

    async def close(self) -> None:
        """Carry out what was handed over and close the file."""
        self._closed = True
        self._queue.put(None)
        await self._ended.wait()
        self._thread.join()

    @property
    def counters(self) -> dict[str, int]:
        """The ledger's durable counts, as of the last commit."""
        return self._db.committed

    def accept(self, entry: Entry) -> asyncio.Future[Outcome]:
        """Hand an entry over; the future ends when it is committed.

        Cancelling the future changes nothing: what was handed over is taken in.
        """
        future: asyncio.Future[Outcome] = self._loop.create_future()
        self._hand_over(_Accept(entry, future))
        return future

    async def do(
        self, call: Callable[[JournalDb], T], then: Callable[[T], None] | None = None
    ) -> T:
        """Have the writer carry out `call` inside a transaction and await its result.

        Args:
            call: What to do. It is done even if the caller is cancelled.
            then: Called on the loop with the result as soon as it is committed, also if the
                caller was cancelled meanwhile.

        Raises:
            JournalError: If the journal cannot be written.
            PipelineClosedError: If it is closed.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self._hand_over(_Work(call, future, then))
        return await future

    def _hand_over(self, item: _Item) -> None:
        if self._closed:
            raise PipelineClosedError("the pipeline is not running: its journal is closed")
        self._queue.put(item)

    # -- the writer's thread ------------------------------------------------------------------

    def _write(self, opened: asyncio.Future[None]) -> None:
        try:
            self._db = self._open_db()
        except BaseException as error:  # noqa: BLE001 - handed to whoever opens
            if self._lock:
                self._lock.release()
            if isinstance(error, OSError):
                error = JournalError(f"the journal {self._path} cannot be opened: {error}")
            self._call_soon(_settle, opened, _Failure(error))
            return
        self._call_soon(_settle, opened, None)
        try:
            while group := self._next_group():
                self._commit(group)
        finally:
            self._db.close()
            if self._lock:
                self._lock.release()
            self._call_soon(self._end)

    def _open_db(self) -> JournalDb:
        if not self._path or not self._lock:
            return JournalDb(None, self._durability, self._max_bytes)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # A lock file beside it shows that this was a journal, even if nothing in it does any more.
        known = self._lock.path.exists()
        if not self._lock.acquire():
            raise JournalLockedError(
                f"the journal {self._path} is in use by process {self._lock.holder()}: one "
                "pipeline writes a journal at a time; stop that one or name another file"
            )
        try:
            return JournalDb(
                self._path, self._durability, self._max_bytes, self._recent_seconds, known=known
            )
        except JournalError:
            if not known:
                self._lock.release(remove=True)
            raise

    def _next_group(self) -> list[_Item]:
        """Wait for something to do and take what has gathered with it; nothing at the end."""
        first = self._queue.get()
        group: list[_Item] = []
        size = 0
        while first is not None:
            group.append(first)
            size += len(first.entry.body or "") if isinstance(first, _Accept) else 0
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

    def _commit(self, group: list[_Item]) -> None:
        try:
            results = self._committed(group)
        except BaseException as error:  # noqa: BLE001 - handed to whoever asked for it
            if len(group) > 1 and not _is_busy(error):
                # One of them spoiled it for all: each for itself, so that only that one fails.
                for item in group:
                    self._commit([item])
                return
            results = [self._failed(item, error) for item in group]
        self._call_soon(self._tell, group, results)

    def _committed(self, group: list[_Item]) -> list[Any]:
        """Carry out a group; wait for as long as another program holds the file, but not to close."""
        while True:
            try:
                with self._db.transaction():
                    results = self._carry_out(group)
            except sqlite3.OperationalError as error:
                if self._closed or not _is_busy(error):
                    raise
                if self.trouble is None:
                    self.trouble = f"another program holds the lock of {self._path}"
                    _log.warning("%s: what comes waits for it", self.trouble)
            else:
                self.trouble = None
                return results

    def _carry_out(self, group: list[_Item]) -> list[Any]:
        results: list[Any] = []
        for accepting, items in groupby(group, lambda item: isinstance(item, _Accept)):
            if accepting:
                results += self._db.accept([i.entry for i in items if isinstance(i, _Accept)])
            else:
                results += [i.call(self._db) for i in items if isinstance(i, _Work)]
        return results

    def _failed(self, item: _Item, error: BaseException) -> Any:
        if isinstance(item, _Accept) and isinstance(error, sqlite3.Error):
            overflow = self._db.overflow([item.entry])[0]
            if _is_full(error):
                return overflow
        if not isinstance(error, AutoplayError):
            name = self._path or "in memory"
            failed = JournalError(f"the journal {name} could not be used: {describe(error)}")
            failed.__cause__ = error
            return _Failure(failed)
        return _Failure(error)

    def _call_soon(self, call: Callable[..., None], *args: Any) -> None:
        # A loop that is closed has nobody left to tell.
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
                    _settle(item.future, _Failure(closed))

    # -- back on the loop ---------------------------------------------------------------------

    def _tell(self, group: list[_Item], results: list[Any]) -> None:
        for item, result in zip(group, results, strict=True):
            if isinstance(item, _Work):
                if item.then and not isinstance(result, _Failure):
                    item.then(result)
            elif result == "accepted":
                self._on_accepted(item.entry)
            _settle(item.future, result)


def _settle(future: asyncio.Future[Any], result: Any) -> None:
    if future.done():  # cancelled by a caller that no longer waits
        return
    if isinstance(result, _Failure):
        future.set_exception(result.error)
    else:
        future.set_result(result)


def _forget(future: asyncio.Future[Any]) -> None:
    future.exception()


def _is_full(error: BaseException) -> bool:
    return _code(error) == sqlite3.SQLITE_FULL


def _is_busy(error: BaseException) -> bool:
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _code(error: BaseException) -> int | None:
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF

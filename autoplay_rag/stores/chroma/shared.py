"""One Chroma worker per folder, shared by all stores of this process and restarted if it dies."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from autoplay_rag._serial import SerialThread
from autoplay_rag.errors import StoreRejectedError
from autoplay_rag.stores.chroma.frames import Answer, Request, encode
from autoplay_rag.stores.chroma.process import ChromaProcess, Interpreter

__all__ = ["SharedWorker"]

_RELEASE_TIMEOUT_S = 10.0
"""Seconds that the last user waits for a busy worker."""


class SharedWorker:
    """The worker of one folder and the one thread that talks to it.

    Requests keep their order. The worker starts with the first request.

    Args:
        folder: The folder's absolute and resolved path, so that each folder has one worker.
        interpreter: The interpreter that runs the worker.
    """

    def __init__(self, folder: Path, interpreter: Interpreter) -> None:
        self._folder = folder
        self._interpreter = interpreter
        self._users = 0
        self._scans: Counter[str] = Counter()
        self._thread = SerialThread("autoplay-chroma-store")
        self._process: ChromaProcess | None = None

    @classmethod
    def acquire(cls, folder: Path, interpreter: Interpreter | None = None) -> SharedWorker:
        """Return the worker of this folder. Each caller must `release` it.

        Args:
            folder: The folder's absolute and resolved path.
            interpreter: The interpreter that runs the worker; by default that of this process. The
                choice of a folder's first user applies as long as the worker is in use.
        """
        with _lock:
            worker = _by_folder.get(folder)
            if worker is None:
                worker = _by_folder[folder] = cls(folder, interpreter or Interpreter.named(None))
            worker._users += 1
            return worker

    async def release(self) -> None:
        """Release the worker. After the last release it finishes its requests and ends.

        A stuck worker is killed. Pending calls then raise `StoreUnavailableError` and can be
        repeated.
        """
        with _lock:
            self._users -= 1
        try:
            async with asyncio.timeout(_RELEASE_TIMEOUT_S):
                await self._thread.finish(self._end_if_unused)
        except TimeoutError:
            self._kill_if_unused()
            await self._thread.finish(self._end_if_unused)

    async def ask(self, make_request: Callable[[], Request]) -> Answer:
        """Send a request and await the reply.

        Args:
            make_request: Makes the request. Runs in this object's thread, because packing a batch
                takes time.

        Raises:
            ConfigurationError: If the interpreter does not run the worker.
            MissingExtraError: If chromadb is not installed.
            StoreLockedError: If another process uses the folder.
            StoreMismatchError: If the collection holds another model's vectors.
            StoreRejectedError: If the request will never be accepted.
            StoreUnavailableError: If Chroma failed, or the worker died or did not answer.
        """
        return await self._thread.run(self._ask, make_request)

    @contextmanager
    def scanning(self, collection: str) -> Iterator[None]:
        """Mark a collection as being scanned."""
        with _lock:
            self._scans[collection] += 1
        try:
            yield
        finally:
            with _lock:
                self._scans[collection] -= 1

    def is_scanned(self, collection: str) -> bool:
        """Whether a scan of this collection is under way. Readable from any thread."""
        return self._scans[collection] > 0

    def _ask(self, make_request: Callable[[], Request]) -> Answer:
        try:
            request = make_request()
            frame = encode(request)
        except UnicodeEncodeError:
            raise StoreRejectedError(
                "an id, a filter or an identity has a lone surrogate; replace it"
            ) from None
        if self._process is None or not self._process.is_alive:
            self._end()
            self._process = ChromaProcess(self._folder, self._interpreter, request.timeout)
        return self._process.ask(frame, request.timeout)

    def _end_if_unused(self) -> None:
        with _lock:
            unused = self._users == 0
        if unused:
            self._end()

    def _kill_if_unused(self) -> None:
        with _lock:
            process = None if self._users else self._process
        if process is not None:
            process.kill()

    def _end(self) -> None:
        if self._process is not None:
            self._process.end()
            self._process = None


_by_folder: weakref.WeakValueDictionary[Path, SharedWorker] = weakref.WeakValueDictionary()
_lock = threading.Lock()

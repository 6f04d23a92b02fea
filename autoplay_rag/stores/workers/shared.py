"""One worker process shared by all stores of this process that need the same, restarted if it dies."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any, Generic, Self, TypeVar

from autoplay_rag._serial import SerialThread
from autoplay_rag.errors import StoreRejectedError
from autoplay_rag.stores.workers.child import Launch, WorkerProcess
from autoplay_rag.stores.workers.pipe import Timed, encode

__all__ = ["SharedWorker"]

_RELEASE_TIMEOUT_S = 10.0
"""Seconds that the last user waits for a busy worker."""
R = TypeVar("R")


class SharedWorker(Generic[R]):
    """A worker process and the one thread that talks to it.

    Requests keep their order. The worker starts with the first request. Get one with `shared`, and
    `release` it.

    Args:
        launch: How to start the worker.
    """

    def __init__(self, launch: Launch[R]) -> None:
        self._launch = launch
        self._users = 0
        self._thread = SerialThread("autoplay-store-worker")
        self._process: WorkerProcess[R] | None = None

    @classmethod
    def shared(cls, key: Hashable, make_launch: Callable[[], Launch[R]]) -> Self:
        """Return the worker of this key. Each caller must `release` it.

        Args:
            key: Equal keys share a worker.
            make_launch: How to start it. The first caller's applies while the worker is in use.
        """
        with _lock:
            worker = _by_key.get((cls, key))
            if not isinstance(worker, cls):
                worker = _by_key[cls, key] = cls(make_launch())
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

    async def ask(self, make_request: Callable[[], Timed]) -> R:
        """Send a request and await the reply.

        Args:
            make_request: Makes the request. Runs in this object's thread, because packing a batch
                takes time.

        Raises:
            AutoplayError: If the worker reports it.
            ConfigurationError: If the interpreter does not run the worker.
            StoreRejectedError: If the request cannot be encoded.
            StoreUnavailableError: If the worker died or did not answer.
        """
        return await self._thread.run(self._ask, make_request)

    def _ask(self, make_request: Callable[[], Timed]) -> R:
        try:
            request = make_request()
            frame = encode(request)
        except UnicodeEncodeError:
            raise StoreRejectedError(
                "an id, a filter or an identity has a lone surrogate; replace it"
            ) from None
        if self._process is None or not self._process.is_alive:
            self._end()
            self._process = WorkerProcess(self._launch, request.timeout)
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


_by_key: weakref.WeakValueDictionary[object, SharedWorker[Any]] = weakref.WeakValueDictionary()
_lock = threading.Lock()

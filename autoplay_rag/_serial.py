"""One thread for a store's blocking work, in order, for any number of event loops."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

__all__ = ["SerialThread"]

P = ParamSpec("P")
T = TypeVar("T")


class SerialThread:
    """Runs functions one after another, off the event loop.

    Data that only this thread uses needs no lock. The thread starts with the first call and ends
    when the object is no longer referenced. Asyncio's default pool is not suitable: it is small,
    shared by the whole process, and does not keep the order of calls.

    Args:
        name: The thread's name in debuggers.

    Example:
        >>> import asyncio
        >>> asyncio.run(SerialThread("example").run(sum, [1, 2]))
        3
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._new_executor()

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Await `work(*args, **kwargs)`.

        A cancelled caller returns immediately. Work that has started runs to its end, so that its
        data stays consistent. Work that has not started is dropped.
        """
        return await asyncio.wrap_future(self._submit(work, *args, **kwargs))

    async def finish(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Await `work(*args, **kwargs)`, which runs even if the caller is cancelled."""
        future = asyncio.wrap_future(self._submit(work, *args, **kwargs))
        return await asyncio.shield(future)

    def _submit(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        if self._pid != os.getpid():
            # A forked child inherits the executor without its thread.
            self._new_executor()
        return self._executor.submit(work, *args, **kwargs)

    def _new_executor(self) -> None:
        self._pid = os.getpid()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=self._name)

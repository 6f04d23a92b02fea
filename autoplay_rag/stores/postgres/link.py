"""The thread, the connections and the errors of one store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import psycopg
from psycopg import AsyncConnection, pq
from psycopg.adapt import Buffer, Dumper
from psycopg.conninfo import make_conninfo

from autoplay_rag._loop_thread import LoopClosedError, LoopThread
from autoplay_rag.errors import ConfigurationError, StoreError, StoreUnavailableError
from autoplay_rag.stores.postgres.dsn import CONNECTION_DEFAULTS, place_of
from autoplay_rag.stores.postgres.encoding import Binary
from autoplay_rag.stores.postgres.failures import store_error

__all__ = ["Connection", "Link"]

T = TypeVar("T")
Connection: TypeAlias = AsyncConnection[tuple[Any, ...]]

_IDLE_SECONDS = 240.0
"""Firewalls forget idle connections, mostly after five minutes or more. These are closed before."""


class Link:
    """Runs calls on an event loop in a thread of its own, with a bounded number of connections.

    A connection belongs to one event loop, and a store may be used from several. So all
    connections of a store are used in the store's own loop. Packing of batches and decoding of
    results happen there too, outside of the caller's loop.

    Connections are opened on demand. If the server does not answer, a call fails at once with the
    reason, and the caller decides when to try again.

    Args:
        parameters: The parameters of a connection.
        size: The most connections.
        timeout: Seconds that a call may take.
    """

    def __init__(self, parameters: Mapping[str, str], size: int, timeout: float) -> None:
        self._parameters = {**CONNECTION_DEFAULTS, **parameters}
        self._place = place_of(parameters)
        self._timeout = timeout
        self._thread = LoopThread("autoplay-postgres")
        self._calls: set[_Call[Any]] = set()
        self._slots = asyncio.Semaphore(size)
        self._free: list[_Idle] = []
        self._closing = False

    # -- in the caller's loop -------------------------------------------------------------------

    async def run(self, work: Callable[[], Coroutine[Any, Any, T]], *, limited: bool = True) -> T:
        """Await `work()`, which runs in the store's loop.

        If the caller is cancelled, the statement is cancelled on the server, and this returns when
        it has ended. So nothing of it happens later.

        Args:
            work: Makes the coroutine.
            limited: Whether the call may take `timeout` seconds only.

        Raises:
            StoreError: What PostgreSQL's error means.
        """
        call = _Call(lambda: self._translated(work, limited=limited))
        try:
            waiting = asyncio.wrap_future(self._thread.submit(call.run()))
        except LoopClosedError:
            raise self._closed_error() from None
        self._calls.add(call)
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            if waiting.cancelled():
                raise self._closed_error() from None
            self._thread.call_soon(call.cancel)
            await asyncio.wait([waiting])
            if not waiting.cancelled():
                waiting.exception()  # nobody else asks for it
            raise
        finally:
            self._calls.discard(call)

    async def close(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Wait for running calls, then close the connections and end the thread.

        Args:
            last: Awaited in the store's loop after the running calls.
        """
        with suppress(LoopClosedError):
            await asyncio.shield(asyncio.wrap_future(self._thread.submit(self._close(last))))
        await asyncio.to_thread(self._thread.close)

    # -- in the store's loop --------------------------------------------------------------------

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection in a transaction. It is committed at the end, or rolled back by an error."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection without a transaction: the server commits each statement by itself."""
        async with self._slots:
            connection = await self._taken()
            try:
                yield connection
            finally:
                await self._give_back(connection)

    async def connect(self) -> Connection:
        """Open a connection that belongs to the caller."""
        connection = await AsyncConnection.connect(
            make_conninfo("", **self._parameters),
            # What is prepared in one transaction is unknown in the next one behind a pooler; and
            # a plan for any filter is slow for most filters.
            prepare_threshold=None,
            autocommit=True,
        )
        connection.adapters.register_dumper(Binary, _BinaryDumper)
        return connection

    def explained(self, error: Exception) -> StoreError | ConfigurationError:
        """Return the store's error for an error of psycopg."""
        return store_error(error, self._place)

    async def _taken(self) -> Connection:
        while self._free:
            idle = self._free.pop()
            if time.monotonic() - idle.since < _IDLE_SECONDS and _is_alive(idle.connection):
                return idle.connection
            await idle.connection.close()
        return await self.connect()

    async def _give_back(self, connection: Connection) -> None:
        idle = connection.info.transaction_status == pq.TransactionStatus.IDLE
        if idle and not self._closing:
            self._free.append(_Idle(connection, time.monotonic()))
        else:
            await connection.close()

    async def _translated(self, work: Callable[[], Coroutine[Any, Any, T]], *, limited: bool) -> T:
        try:
            async with asyncio.timeout(self._timeout if limited else None):
                return await work()
        except TimeoutError:
            raise StoreUnavailableError(
                f"PostgreSQL ({self._place}) did not answer within {self._timeout:g} s"
            ) from None
        except (psycopg.Error, OSError) as error:
            raise self.explained(error) from None

    async def _close(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        running = [call.task for call in self._calls if call.task is not None]
        if running:
            await asyncio.wait(running, timeout=self._timeout)
        await last()
        self._closing = True
        while self._free:
            await self._free.pop().connection.close()

    def _closed_error(self) -> StoreUnavailableError:
        return StoreUnavailableError(f"the store was closed during the call ({self._place})")


class _Idle(NamedTuple):
    connection: Connection
    since: float


class _Call(Generic[T]):
    """One call in the store's loop, which another thread may cancel."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._work = work
        self._cancelled = False
        self.task: asyncio.Task[T] | None = None

    async def run(self) -> T:
        self.task = asyncio.ensure_future(self._work())
        if self._cancelled:
            self.task.cancel()
        return await self.task

    def cancel(self) -> None:
        self._cancelled = True
        if self.task is not None:
            self.task.cancel()


class _BinaryDumper(Dumper):
    """Sends bytes as they are. The server takes the type from the cast in the statement."""

    format = pq.Format.BINARY

    def dump(self, obj: Binary) -> Buffer:
        return obj.value


def _is_alive(connection: Connection) -> bool:
    """Whether the server has not closed an idle connection. Reads what has come; sends nothing."""
    try:
        connection.pgconn.consume_input()
        connection.pgconn.consume_input()  # the end of the stream comes after the last message
    except psycopg.Error:
        return False
    return connection.pgconn.transaction_status == pq.TransactionStatus.IDLE

"""The client's sockets: asyncio's own transports under httpcore.

httpcore's own backend uses anyio. For each read, it starts and stops a timer, and registers the socket
with the kernel and unregisters it. In a stream of small reads this takes a third of the processor
time. Here the socket stays registered, and one timer serves all reads.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import math
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import zip_longest
from typing import Any, Final

import httpcore

__all__ = ["AsyncioBackend"]

_MAX_BUFFERED: Final = 65_536
"""Bytes that may wait for a read; with more, the socket is no longer read. asyncio takes up to 256 KiB
from a socket at once, so that up to 320 KiB may wait."""

_NEXT_ADDRESS: Final = 0.25
"""Seconds until a host's next address is tried in parallel, as RFC 8305 recommends."""


class AsyncioBackend(httpcore.AsyncNetworkBackend):
    """Opens TCP connections on the running event loop.

    The loop must be one of asyncio's own: this is not tested with others, such as uvloop.
    """

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to a host.

        Args:
            host: Its name or address.
            port: Its port.
            timeout: Seconds to connect; None waits for as long as it takes.
            local_address: The address to connect from; by default the system chooses.
            socket_options: The arguments of calls of `setsockopt`.

        Raises:
            httpcore.ConnectTimeout: If the time is over.
            httpcore.ConnectError: If there is no such host, or it cannot be reached.
        """
        with _connect_errors(timeout):
            async with asyncio.timeout(timeout):
                stream = await _first_of(
                    [
                        functools.partial(_connect, address, port, local_address)
                        for address in await _addresses(host, port)
                    ]
                )
        for option in socket_options or ():
            stream.get_extra_info("socket").setsockopt(*option)
        return stream


async def _addresses(host: str, port: int) -> Sequence[str]:
    """Return the addresses of a host: those of both families in turn, the preferred one first."""
    with suppress(ValueError):
        return [str(ipaddress.ip_address(host))]
    loop = asyncio.get_running_loop()
    families: dict[int, dict[str, None]] = {}
    for family, _, _, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        families.setdefault(family, {})[str(address[0])] = None
    return [one for some in zip_longest(*families.values()) for one in some if one]


async def _connect(address: str, port: int, local_address: str | None) -> _Stream:
    loop = asyncio.get_running_loop()
    local = None if local_address is None else (local_address, 0)
    _, stream = await loop.create_connection(_Stream, address, port, local_addr=local)
    return stream


async def _first_of(connects: Sequence[Callable[[], Coroutine[Any, Any, _Stream]]]) -> _Stream:
    """Return the first connection, and begin each a moment after the one before.

    The option `happy_eyeballs_delay` of asyncio does the same. But if it is cancelled in the moment of
    the connection, as by a timeout, the socket stays open (seen in Python 3.11).
    """
    if len(connects) == 1:
        return await connects[0]()
    waiting = list(reversed(connects))
    running: set[asyncio.Task[_Stream]] = set()
    failure: BaseException | None = None
    try:
        while waiting or running:
            if waiting:
                running.add(asyncio.create_task(waiting.pop()()))
            done, _ = await asyncio.wait(
                running,
                timeout=_NEXT_ADDRESS if waiting else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in done:
                running.discard(task)
                if (failure := task.exception()) is None:
                    return task.result()
        assert failure is not None
        raise failure
    finally:
        for task in running:
            task.add_done_callback(_close_late)
            task.cancel()
        if running:
            await asyncio.wait(running)


def _close_late(task: asyncio.Task[_Stream]) -> None:
    """Close a connection that is not needed."""
    if not task.cancelled() and task.exception() is None:
        task.result().abort()


class _Stream(asyncio.Protocol, httpcore.AsyncNetworkStream):
    """One connection. One task reads at a time.

    It is not a `BufferedProtocol`, which has a buffer of fixed size: over TLS, asyncio loses what
    does not fit into that buffer when the other side closes.
    """

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        # Kept until a read returns it, so that a cancelled read loses nothing.
        self._received = b""
        self._ended = False  # whether no more will be received
        self._error: Exception | None = None
        self._paused = False
        # The pending read. Its result: False if its time is over.
        self._waiter: asyncio.Future[bool] | None = None
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received = self._received + data if self._received else data
        if len(self._received) > _MAX_BUFFERED and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._wake(came=True)

    def eof_received(self) -> None:
        self._ended = True
        self._wake(came=True)

    def connection_lost(self, exc: Exception | None) -> None:
        self._error = self._error or exc
        self._stop_timer()
        self._writable.set()
        self.eof_received()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def read(
        self,
        max_bytes: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
    ) -> bytes:
        if self._received:
            await asyncio.sleep(0)  # in a long backlog, other tasks must run too
        elif not (self._ended or await self._something_came(timeout)):
            raise httpcore.ReadTimeout(f"nothing was received for {timeout:g} s")
        data = self._received
        if not data and self._error is not None:
            raise httpcore.ReadError(str(self._error)) from self._error
        data, self._received = data[:max_bytes], data[max_bytes:]
        if self._paused and not self._received:
            self._paused = False
            self._transport.resume_reading()
        return data

    async def write(
        self,
        buffer: bytes,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
    ) -> None:
        if not self._transport.is_closing():
            self._transport.write(buffer)
            try:
                async with asyncio.timeout(timeout):
                    await self._writable.wait()
            except TimeoutError as error:
                raise httpcore.WriteTimeout(f"nothing could be sent for {timeout:g} s") from error
        if self._transport.is_closing():
            raise httpcore.WriteError("the connection is closed") from self._error

    async def aclose(self) -> None:
        self.abort()
        await asyncio.sleep(0)  # asyncio closes the socket in the loop's next turn

    def abort(self) -> None:
        """Close the connection at once; asyncio closes the socket in its next turn."""
        self._error = self._error or ConnectionAbortedError("the connection was closed")
        self._stop_timer()
        # Not `close()`: over TLS, that would wait for the peer's close_notify.
        self._transport.abort()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
    ) -> httpcore.AsyncNetworkStream:
        # Data may come with the end of the handshake, when `_transport` is still the one below TLS.
        # That one must not be paused.
        self._paused = True
        try:
            with _connect_errors(timeout):
                async with asyncio.timeout(timeout):
                    transport = await self._loop.start_tls(
                        self._transport,
                        self,
                        ssl_context,
                        server_hostname=server_hostname,
                        ssl_handshake_timeout=math.inf,  # `timeout` is the limit
                    )
        except BaseException:
            await self.aclose()
            raise
        if transport is None:  # the socket was closed at the same moment
            raise httpcore.ConnectError("the connection was closed in the TLS handshake")
        self._transport = transport
        self._paused = False
        return self

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":  # for an idle connection: whether it can no longer be used
            return self._ended or bool(self._received)
        name = {"client_addr": "sockname", "server_addr": "peername"}.get(info, info)
        return self._transport.get_extra_info(name)

    async def _something_came(self, seconds: float | None) -> bool:
        """Wait for data or the end of the connection; False if the time is over before."""
        if seconds is None:
            self._stop_timer()
        else:
            self._deadline = self._loop.time() + seconds
            if self._timer is None or self._timer.when() > self._deadline:
                self._stop_timer()
                self._timer = self._loop.call_at(self._deadline, self._time_is_over)
        self._waiter = self._loop.create_future()
        try:
            return await self._waiter
        finally:
            self._waiter = None

    def _time_is_over(self) -> None:
        """End the read that waits, unless it began later than the one this timer was set for."""
        self._timer = None
        if self._waiter is None:
            return
        if self._deadline > self._loop.time():
            self._timer = self._loop.call_at(self._deadline, self._time_is_over)
        else:
            self._wake(came=False)

    def _wake(self, *, came: bool) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(came)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


@contextmanager
def _connect_errors(seconds: float | None) -> Iterator[None]:
    """Raise httpcore's errors for those of a connect or a handshake."""
    try:
        yield
    except TimeoutError as error:
        raise httpcore.ConnectTimeout(
            str(error) or f"not connected within {seconds:g} s"
        ) from error
    except OSError as error:  # ssl.SSLError is one
        raise httpcore.ConnectError(str(error)) from error

"""HTTP requests on an event loop in a thread, for callers on any event loop or on none."""

from __future__ import annotations

import asyncio
import os
import ssl
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

import httpx
import msgspec

from autoplay_rag._cancelled import is_cancelled
from autoplay_rag._describe import describe
from autoplay_rag._http_environment import environment_proxy, tls_context
from autoplay_rag._loop_thread import LoopClosedError, LoopThread
from autoplay_rag.content.passages import storable
from autoplay_rag.errors import (
    ClientStateError,
    ConfigurationError,
    ServerError,
    ServerUnavailableError,
)
from autoplay_rag.remote.answers import check_answer

__all__ = ["Asked", "Connections"]

T = TypeVar("T")

_MOST_BYTES: Final = 256 * 2**20
"""Of an answer, or of one line of a streamed answer."""
_LIMITS: Final = httpx.Limits(
    max_connections=100,
    max_keepalive_connections=20,
    # Below the 5 seconds after which servers close idle connections by default.
    keepalive_expiry=4.0,
)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request.

    Attributes:
        method: The HTTP method.
        path: The path, below the server's URL.
        params: The query of the URL. None leaves a parameter out.
        body: The JSON body; None for no body.
        repeatable: Whether it may be sent again if a kept connection was closed meanwhile.
        answered_with: Statuses besides success with which a JSON body is the answer.
    """

    method: str
    path: str
    params: Mapping[str, Any] | None = None
    body: Mapping[str, Any] | None = None
    repeatable: bool = True
    answered_with: tuple[int, ...] = ()


class Connections:
    """Connections to one server, shared by all threads and event loops of a process.

    They belong to the event loop of a daemon thread, which starts with the first request and ends
    with `close`, or when this object is collected.

    Args:
        url: The server.
        key: The key or token; None for none.
        transport: Sends the requests; None for a pool of connections.
    """

    def __init__(
        self, url: httpx.URL, key: str | None, transport: httpx.AsyncBaseTransport | None
    ) -> None:
        self._url = url
        self._key = key
        self._transport = transport
        self._lock = threading.Lock()
        self._opened: _Opened | None = None
        self._is_closed = False

    async def send(self, asked: Asked, seconds: float) -> bytes:
        """Send a request and return the body of the answer.

        Args:
            asked: The request.
            seconds: The time for all of it.

        Raises:
            ServerError: If there is no usable answer.
            ConfigurationError: If the server refused the arguments, or the proxy cannot be used.
            ClientStateError: If the connections are closed.
        """
        return await self._run(lambda pool: pool.send(asked, seconds))

    async def lines(self, asked: Asked, seconds: float) -> AsyncGenerator[list[bytes], None]:
        """Send a request and yield the lines of the answer, as they arrive.

        Args:
            asked: The request.
            seconds: The time for the start of the answer, and for each of its parts.

        Raises:
            AutoplayError: As `send`.
        """
        answer = await self._run(lambda pool: pool.open(asked, seconds))
        try:
            while found := await self._run(lambda _: answer.more(seconds)):
                yield found
        finally:
            with suppress(ClientStateError):  # closed with the connections
                await self._run(lambda _: answer.aclose())

    def run_sync(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the event loop of the thread, and wait for it.

        Raises:
            ClientStateError: If the connections are closed.
        """
        try:
            thread = self._open().thread
        except BaseException:
            work.close()
            raise
        try:
            return thread.run(work)
        except LoopClosedError:
            raise ClientStateError(_CLOSED) from None

    async def aclose(self) -> None:
        """Close the connections; requests that are under way fail. May be called repeatedly."""
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Like `aclose`, for any thread."""
        with self._lock:
            self._is_closed = True
            opened, self._opened = self._opened, None
        if opened is not None:
            opened.thread.close()

    async def _run(self, start: Callable[[_Pool], Coroutine[Any, Any, T]]) -> T:
        opened = self._open()
        try:
            return await asyncio.wrap_future(opened.thread.submit(start(opened.pool)))
        except LoopClosedError:
            raise ClientStateError(_CLOSED) from None
        except asyncio.CancelledError:
            if is_cancelled() or not self._is_closed:
                raise
            raise ClientStateError(_CLOSED) from None

    def _open(self) -> _Opened:
        with self._lock:
            if self._is_closed:
                raise ClientStateError(_CLOSED)
            if self._opened is None or self._opened.process != os.getpid():
                # Not after a fork: the thread and its connections belong to the other process.
                pool = _Pool(self._url, self._key, self._transport)
                thread = LoopThread("autoplay-client")
                # `pool` does not refer to this object, so that it can be collected.
                weakref.finalize(self, _close, thread, thread.submit(pool.keep()))
                self._opened = _Opened(os.getpid(), thread, pool)
            return self._opened


class _Opened(NamedTuple):
    process: int
    thread: LoopThread
    pool: _Pool


_CLOSED: Final = "the ServeClient was closed: make another one"


def _close(thread: LoopThread, keeping: Future[None]) -> None:  # noqa: ARG001
    """Close a thread. Until then the registry of finalizers refers to the task that closes the pool.

    An event loop alone does not: the task would be collected while it waits.
    """
    thread.close()


class _Pool:
    """Sends requests. Used on one event loop."""

    def __init__(
        self, url: httpx.URL, key: str | None, transport: httpx.AsyncBaseTransport | None
    ) -> None:
        self._url = url
        self._headers = {"accept": "application/json, application/x-ndjson"}
        if key is not None:
            self._headers["authorization"] = f"Bearer {key}"
        self._transport = transport

    async def keep(self) -> None:
        """Close the connections once this is cancelled."""
        try:
            await asyncio.Event().wait()
        finally:
            if self._transport is not None:
                await self._transport.aclose()

    async def send(self, asked: Asked, seconds: float) -> bytes:
        async def whole() -> bytes:
            answer = await self._answer(asked, seconds)
            async with aclosing(answer):
                return await answer.read()

        return await self._within(whole(), seconds)

    async def open(self, asked: Asked, seconds: float) -> _Answer:
        return await self._within(self._answer(asked, seconds), seconds)

    async def _within(self, work: Coroutine[Any, Any, T], seconds: float) -> T:
        """Await what uses the network.

        The errors of httpx hold the request and thus the key, so they are not the context either.
        """
        try:
            async with asyncio.timeout(seconds):
                return await work
        except (httpx.TransportError, TimeoutError) as error:
            said = _said(self._url, error, seconds)
        raise ServerUnavailableError(said)

    async def _answer(self, asked: Asked, seconds: float) -> _Answer:
        request = self._request(asked, seconds)
        try:
            answer = await self._sent(request)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            # Perhaps the server closed a kept connection at this moment.
            if not asked.repeatable:
                raise
            answer = await self._sent(self._request(asked, seconds))
        response = answer.response
        if response.is_success or (
            response.status_code in asked.answered_with and _is_json(response)
        ):
            return answer
        async with aclosing(answer):
            check_answer(answer.response, await answer.read(), self._url)
        raise AssertionError("an answer without success raises")

    def _request(self, asked: Asked, seconds: float) -> httpx.Request:
        params = _sendable(asked.params or {})
        headers = dict(self._headers)
        if asked.body is not None:
            headers["content-type"] = "application/json"
        return httpx.Request(
            asked.method,
            f"{self._url}{asked.path}",
            params=params or None,
            headers=headers,
            content=None if asked.body is None else msgspec.json.encode(_sendable(asked.body)),
            extensions={"timeout": httpx.Timeout(seconds).as_dict()},
        )

    async def _sent(self, request: httpx.Request) -> _Answer:
        # Not with an `httpx.AsyncClient`, which logs the URL of each request: it may have ids of
        # people. It would not follow redirects either, because of the key.
        if self._transport is None:
            self._transport = await _transport(self._url)
        return _Answer(await self._transport.handle_async_request(request), self._url)


class _Answer:
    """An answer that is read in parts."""

    def __init__(self, response: httpx.Response, url: httpx.URL) -> None:
        self.response = response
        self._url = url
        self._parts: AsyncIterator[bytes] = response.aiter_bytes()
        self._rest = b""

    async def read(self) -> bytes:
        """Return the whole body."""
        body = bytearray()
        async for part in self._parts:
            body += part
            self._check_size(len(body))
        return bytes(body)

    async def more(self, seconds: float) -> list[bytes]:
        """Return the next lines, at least one; none at the end."""
        try:
            async with asyncio.timeout(seconds):
                return await self._next_lines()
        except (httpx.TransportError, TimeoutError) as error:
            said = _said(self._url, error, seconds)
        raise ServerUnavailableError(said)

    async def _next_lines(self) -> list[bytes]:
        pieces = [self._rest]
        size = len(self._rest)
        async for part in self._parts:
            pieces.append(part)
            size += len(part)
            self._check_size(size)
            if b"\n" in part:
                *lines, self._rest = b"".join(pieces).split(b"\n")
                return lines
        self._rest = b""
        return [line for line in (b"".join(pieces),) if line]

    def _check_size(self, size: int) -> None:
        if size > _MOST_BYTES:
            raise ServerError(f"{self._url} answered with more than {_MOST_BYTES:,} bytes")

    async def aclose(self) -> None:
        with suppress(httpx.TransportError):
            await self.response.aclose()


async def _transport(url: httpx.URL) -> httpx.AsyncHTTPTransport:
    """Make a pool of connections.

    Raises:
        ConfigurationError: If the environment names a proxy or certificates that cannot be used.
    """
    proxy = environment_proxy(str(url))
    if url.scheme == "https" or (proxy or "").startswith("https:"):
        # In a thread: reading the trusted certificates takes tens of milliseconds.
        context = await asyncio.to_thread(tls_context, httpx.create_ssl_context)
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # not used; trusts nobody
    try:
        return httpx.AsyncHTTPTransport(
            verify=context, trust_env=False, limits=_LIMITS, proxy=proxy
        )
    except (ValueError, ImportError, httpx.InvalidURL):
        # `from None`: the message may quote the proxy's URL, which may hold a password.
        raise ConfigurationError(
            "the proxy that the environment names cannot be used; see HTTP_PROXY, HTTPS_PROXY "
            "and ALL_PROXY"
        ) from None


def _sendable(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are given. A text that is not valid Unicode matches what the journal has."""
    return {
        name: storable(value) if isinstance(value, str) else value
        for name, value in values.items()
        if value is not None
    }


def _is_json(response: httpx.Response) -> bool:
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    return bool(kind == "application/json")


def _said(url: httpx.URL, error: Exception, seconds: float) -> str:
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return f"{url} did not answer within {seconds:g} seconds"
    return f"{url} cannot be reached: {describe(error)}; is `autoplay-rag serve` running there?"

"""Requests to a pull endpoint from any event loop and any thread, with one pause for all."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import httpx

from autoplay_rag._describe import describe
from autoplay_rag._loop_thread import LoopThread
from autoplay_rag.connector.backoff import REFUSALS
from autoplay_rag.connector.connection import display
from autoplay_rag.errors import ConnectorError, TransientError
from autoplay_rag.sources.activity_endpoint import Activity, ActivityEndpoint, Validators
from autoplay_rag.sources.cooldown import Cooldown

__all__ = ["ActivityClient", "PullCounts"]

_log = logging.getLogger(__name__)

_COMPLAIN_EVERY: Final = 60.0

T = TypeVar("T")


@dataclass(slots=True)
class PullCounts:
    """Totals of a pull source.

    Attributes:
        requests: Requests that were answered.
        unchanged: Answers without content, because nothing had changed.
        failures: Requests that failed, and callbacks that raised.
        actions: New actions that went on.
        full: Answers with 50 new actions and none that was known: earlier ones may be missing.
        connections: How often the server answered after it had not.
    """

    requests: int = 0
    unchanged: int = 0
    failures: int = 0
    actions: int = 0
    full: int = 0
    connections: int = 0


class ActivityClient:
    """Asks a pull endpoint, from the loop of a run or else from a thread of its own.

    Connections belong to one event loop. So requests are forwarded to the loop inside `connected`, or
    to the own thread if there is none.

    Args:
        endpoint: The endpoint.

    Attributes:
        counts: The totals.
        cooldown: The pause of all requests.
        last_error: Why the last request failed; None if none has.
        is_reached: Whether the last request was answered.
        worked: Whether any request was answered.
    """

    def __init__(self, endpoint: ActivityEndpoint) -> None:
        self.counts = PullCounts()
        self.cooldown = Cooldown()
        self.last_error: Exception | None = None
        self.is_reached = False
        self.worked = False
        self._endpoint = endpoint
        self._home: tuple[asyncio.AbstractEventLoop, httpx.AsyncHTTPTransport] | None = None
        self._lock = threading.Lock()
        self._thread: LoopThread | None = None
        self._thread_transport: httpx.AsyncHTTPTransport | None = None
        self._complained_at = -_COMPLAIN_EVERY

    @property
    def refusal(self) -> Exception | None:
        """The last request's error, if the server refused it; None once it answered."""
        error = self.last_error
        return error if not self.is_reached and isinstance(error, REFUSALS) else None

    @property
    def url(self) -> str:
        """The server, safe to show."""
        return display(self._endpoint.url)

    async def ask(self, user_id: str, known: Validators) -> Activity | None:
        """Send one request, unless there is a pause; see `ActivityEndpoint.ask`.

        Raises:
            TransientError: Also during a pause.
        """
        if left := self.cooldown.left(time.monotonic()):
            why = describe(self.last_error) if self.last_error else "it asked for it"
            raise TransientError(f"no request to {self.url} for another {left:.1f} s: {why}")
        try:
            found = await self._endpoint.ask(self._transport(), user_id, known)
        except ConnectorError as error:
            self.failed(error)
            if isinstance(error, TransientError):
                self.cooldown.failed(time.monotonic(), error.retry_after)
            raise
        self.cooldown.succeeded()
        self.counts.requests += 1
        self.counts.unchanged += found is None
        if not self.is_reached:
            self.is_reached = self.worked = True
            self.counts.connections += 1
        return found

    def failed(self, error: Exception) -> None:
        """Note why a request, or everything, failed."""
        self.counts.failures += 1
        self.last_error = error
        self.is_reached = False

    def complain(self, about: str) -> None:
        """Warn at most once a minute: a broken server fails for every user."""
        now = time.monotonic()
        if now - self._complained_at >= _COMPLAIN_EVERY:
            self._complained_at = now
            _log.warning("pulling from %s: %s", self.url, about)

    # -- loops and threads --------------------------------------------------------------------

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Inside the block, all requests use the running event loop.

        Raises:
            ConfigurationError: If the environment names a proxy or certificates that cannot be
                used.
        """
        transport = await asyncio.to_thread(self._endpoint.transport)
        async with transport:
            self._home = (asyncio.get_running_loop(), transport)
            try:
                yield
            finally:
                self._home = None

    async def elsewhere(self, work: Coroutine[Any, Any, T]) -> T:
        """Await work on the loop that has the connections."""
        here = asyncio.get_running_loop()
        if (home := self._home) is not None and not home[0].is_closed():
            if home[0] is here:
                return await work
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, home[0]))
        thread = self.thread()
        if thread.loop is here:
            return await work
        return await asyncio.wrap_future(thread.submit(work))

    def thread(self) -> LoopThread:
        """The own thread."""
        with self._lock:
            if self._thread is None:
                self._thread = LoopThread("autoplay-pull")
            return self._thread

    def _transport(self) -> httpx.AsyncHTTPTransport:
        """The transport of the loop that this runs on."""
        if (home := self._home) is not None and home[0] is asyncio.get_running_loop():
            return home[1]
        if self._thread_transport is None:
            # This blocks the own thread alone.
            self._thread_transport = self._endpoint.transport()
        return self._thread_transport

    async def aclose(self) -> None:
        """Close the own thread and its connections. May be called more than once."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.to_thread(self._close, thread)

    def _close(self, thread: LoopThread) -> None:
        transport, self._thread_transport = self._thread_transport, None
        if transport is not None:
            with suppress(RuntimeError, OSError, httpx.HTTPError):
                thread.run(transport.aclose())
        thread.close()

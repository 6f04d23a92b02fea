"""The sources of a loader's payloads: a live stream, a file, or any other source."""

from __future__ import annotations

import asyncio
import copy
import logging
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Final, Protocol, Self

import httpx

from autoplay_rag._describe import describe
from autoplay_rag.connector.client import AsyncConnectorClient
from autoplay_rag.connector.connection import display
from autoplay_rag.connector.recording import next_lot, read_recording
from autoplay_rag.errors import ConfigurationError, RecordingError
from autoplay_rag.loading.limits import Limits
from autoplay_rag.payloads import Payload
from autoplay_rag.sources.base import Source as AnySource

__all__ = ["GivenSource", "LiveSource", "RecordingSource", "Source"]

_log = logging.getLogger(__name__)

_MOST_LOGGED: Final = 3
"""The number of skipped lines of one load that are logged individually."""


class Source(Protocol):
    """Yields payloads, to any number of readers.

    Attributes:
        name: The source's name in the documents' metadata.
        live: Whether it continues forever, in real time.
        dropped: The number of payloads dropped because a consumer was slow.
        last_failure: The error of the latest reader, in one line, if it never had a connection;
            None otherwise.
    """

    name: str
    live: bool
    dropped: int
    last_failure: str | None

    def stream(self, limits: Limits) -> AsyncGenerator[Payload, None]:
        """Yield the payloads, within the time limits."""


class LiveSource(Source):
    """A connector's stream, read at network speed. Each reader has its own connection.

    Args:
        url: The stream's URL.
        token: The product's token; by default the value of `AUTOPLAY_APP_UNKEY_TOKEN`. The repr
            and pickles do not contain it. An unpickled source takes it from the environment.
            Copies keep it.
        max_pending: The most payloads buffered for a slow consumer. Beyond it, the oldest are
            dropped.
        on_drop: Called on the event loop with a dropped payload and the total so far.
        options: Other arguments of `AsyncConnectorClient`, such as `max_retries`.

    Raises:
        ConfigurationError: If an argument is invalid.
    """

    live = True

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        max_pending: int = 10_000,
        on_drop: Callable[[Payload, int], Any] | None = None,
        **options: Any,
    ) -> None:
        self._url = url
        self._token = token or ""
        self._on_drop = on_drop
        self._max_pending = max_pending
        self._options = options
        self.dropped = 0
        self.last_failure: str | None = None
        self._client()  # raises now if an argument is invalid
        self.name = display(httpx.URL(url))

    def __repr__(self) -> str:
        return repr(self.name)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_token": ""}

    # A copy stays in the process, so it keeps the token. A pickle may leave it.
    def __copy__(self) -> Self:
        return self._with(self.__dict__)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self._with(copy.deepcopy(self.__dict__, memo))

    def _with(self, state: dict[str, Any]) -> Self:
        made = type(self).__new__(type(self))
        made.__dict__.update(state)
        return made

    async def stream(self, limits: Limits) -> AsyncGenerator[Payload, None]:
        """As in `Source`."""
        left = False

        def on_drop(payload: Payload, total: int) -> None:
            if not left:  # after the consumer has left, drops are not due to slowness
                self.dropped += 1
                if self._on_drop:
                    self._on_drop(payload, total)

        client = self._client(on_drop=on_drop)
        payloads = client.stream(seconds=limits.max_seconds, idle=limits.idle_seconds)
        async with aclosing(payloads):
            try:
                async for payload in payloads:
                    yield payload
            finally:
                left = True
                error = None if client.counts.connections else client.last_error
                self.last_failure = None if error is None else describe(error)

    def _client(
        self, on_drop: Callable[[Payload, int], None] | None = None
    ) -> AsyncConnectorClient:
        return AsyncConnectorClient(
            self._url,
            self._token,
            max_pending=self._max_pending,
            overflow="drop_oldest",
            on_drop=on_drop,
            **self._options,
        )


class GivenSource(Source):
    """Any source, such as a `LiveActivitySource`. It has one reader at a time.

    Args:
        source: The source. Not closed.

    Raises:
        ConfigurationError: If it cannot be streamed.
    """

    live = True

    def __init__(self, source: AnySource) -> None:
        if not callable(getattr(source, "stream", None)):
            raise ConfigurationError(f"{type(source).__name__} is not a source: it has no stream()")
        self._source = source
        self.name = display(httpx.URL(source.url))
        self.dropped = 0
        self.last_failure: str | None = None

    def __repr__(self) -> str:
        return repr(self.name)

    async def stream(self, limits: Limits) -> AsyncGenerator[Payload, None]:
        """As in `Source`."""
        payloads = self._source.stream(seconds=limits.max_seconds, idle=limits.idle_seconds)
        async with aclosing(payloads):
            try:
                async for payload in payloads:
                    yield payload
            finally:
                reached = getattr(getattr(self._source, "counts", None), "connections", 0)
                error = None if reached else self._source.last_error
                self.last_failure = None if error is None else describe(error)


class RecordingSource(Source):
    """A file of JSON Lines, in the format of `read_recording`.

    Lines that cannot be read are skipped. The first few are logged, then the total.

    Args:
        path: The file.
    """

    live = False

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        self.dropped = 0
        self.last_failure = None

    def __repr__(self) -> str:
        return repr(self.name)

    async def stream(self, limits: Limits) -> AsyncGenerator[Payload, None]:
        """As in `Source`."""
        loop = asyncio.get_running_loop()
        end = None if limits.max_seconds is None else loop.time() + limits.max_seconds
        skipped = _Skipped(self.name)
        payloads = read_recording(self.name, on_error=skipped)
        try:
            while lot := await next_lot(payloads):
                for payload in lot:
                    yield payload
                if end is not None and loop.time() >= end:
                    return
        finally:
            skipped.say_total()


class _Skipped:
    """Logs the first skipped lines and the total, because a file may contain many of them.

    Args:
        name: The file.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._count = 0

    def __call__(self, error: RecordingError) -> None:
        self._count += 1
        if self._count <= _MOST_LOGGED:
            _log.warning("skipped a line of a recording: %s", error)

    def say_total(self) -> None:
        """Log the total if not every line was logged."""
        if self._count > _MOST_LOGGED:
            _log.warning("skipped %d lines of %s in all", self._count, self._name)

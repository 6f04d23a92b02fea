"""Where a loader's payloads come from: the wire, or a file."""

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
from autoplay_rag.errors import RecordingError
from autoplay_rag.loading.limits import Limits
from autoplay_rag.payloads import Payload

__all__ = ["LiveSource", "RecordingSource", "Source"]

_log = logging.getLogger(__name__)

_MOST_LOGGED: Final = 3
"""Skipped lines of one load that are logged one by one."""


class Source(Protocol):
    """Gives payloads, to any number of readers.

    Attributes:
        name: Stands in the documents' metadata.
        live: Whether it goes on for ever, and in real time.
        dropped: How many payloads were given up because a consumer was slow.
        last_failure: The error of the latest reader, in one line, if it never had a connection;
            None otherwise.
    """

    name: str
    live: bool
    dropped: int
    last_failure: str | None

    def stream(self, limits: Limits) -> AsyncGenerator[Payload, None]:
        """The payloads, within the limits of time."""


class LiveSource(Source):
    """A connector's stream, read at network speed. Each reader has a connection of its own.

    Args:
        url: The stream's address.
        token: The product's token; by default what `AUTOPLAY_APP_UNKEY_TOKEN` holds. It stands in
            no repr and no pickle: what was unpickled takes it from the environment. Copies keep it.
        max_pending: The most payloads that wait for a slow consumer; then the oldest go.
        on_drop: Called on the event loop with a payload given up and the total so far.
        options: What else `AsyncConnectorClient` takes, such as `max_retries`.

    Raises:
        ConfigurationError: If an argument can never work.
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
        self._client()  # what cannot work is told at once
        self.name = display(httpx.URL(url))

    def __repr__(self) -> str:
        return repr(self.name)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_token": ""}

    # A copy stays in the process: only what leaves it goes without the token.
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
            if not left:  # what waits when the consumer leaves was not given up for slowness
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


class RecordingSource(Source):
    """A file of JSON Lines, as `read_recording` takes it.

    Lines that cannot be read are skipped; the first few are logged, then their number.

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
    """Logs the first lines that were skipped, and how many there were: a file may be full of them.

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
        """Log the number, if not every line was logged."""
        if self._count > _MOST_LOGGED:
            _log.warning("skipped %d lines of %s in all", self._count, self._name)

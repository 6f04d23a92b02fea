"""What comes in at a running server, as payloads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Final

import httpx
import msgspec

from autoplay_rag.cli.console import clean, note, stream_closed
from autoplay_rag.cli.interrupts import Interrupts
from autoplay_rag.cli.remote import Api, Server
from autoplay_rag.connector.sse import MAX_EVENT_BYTES, EventParser
from autoplay_rag.decoding import decode
from autoplay_rag.errors import ServerUnavailableError
from autoplay_rag.payloads import Payload

__all__ = ["follow_server"]

_READ: Final = httpx.Timeout(45.0, connect=5.0)
"""The server sends something every 15 seconds."""
_PAUSES: Final = (0.2, 1.0, 5.0)
"""Seconds before each new attempt after a lost connection."""


class _Shown(msgspec.Struct):
    payload: msgspec.Raw


async def follow_server(
    server: Server,
    show: Callable[[Payload], None],
    *,
    limit: int | None,
    idle_seconds: float | None,
) -> int:
    """Show the payloads that a server receives from now on, until Ctrl-C, a limit or its end.

    Args:
        server: The server.
        show: Called in a thread. A `BrokenPipeError` ends it.
        limit: Stop after this many payloads.
        idle_seconds: Stop after this many seconds without one.

    Returns:
        The number of payloads.

    Raises:
        ServerError: If the server cannot be reached or refuses, or a lost connection does not
            come back.
    """
    count = 0

    async def follow() -> None:
        nonlocal count
        loop = asyncio.get_running_loop()
        try:
            async with (
                asyncio.timeout(idle_seconds) as idle,
                Api(server) as api,
                aclosing(_payloads(api, server)) as payloads,
            ):
                async for payload in payloads:
                    idle.reschedule(None)
                    # In a thread: a slow terminal must not block reading the stream.
                    await asyncio.to_thread(show, payload)
                    count += 1
                    if count == limit:
                        return
                    if idle_seconds is not None:
                        idle.reschedule(loop.time() + idle_seconds)
        except TimeoutError:
            return
        except BrokenPipeError:  # the reader of the output has exited, as in `| head`
            stream_closed()

    with Interrupts() as interrupts:
        following = asyncio.create_task(follow(), name="autoplay-tail")
        with interrupts.calling(following.cancel):
            await asyncio.wait([following])
        if not following.cancelled():
            following.result()
    return count


async def _payloads(api: Api, server: Server) -> AsyncGenerator[Payload, None]:
    """Yield payloads; after a lost connection, continue after the last one."""
    follower = _Follower(api)
    failures = 0
    while not follower.ended:
        try:
            async with aclosing(follower.read()) as payloads:
                async for payload in payloads:
                    failures = 0
                    yield payload
        except ServerUnavailableError:
            if not follower.connected or failures == len(_PAUSES):
                raise
        if not follower.ended:
            note(f"the connection to {server.url} was lost: connecting again")
            await asyncio.sleep(_PAUSES[min(failures, len(_PAUSES) - 1)])
            failures += 1


class _Follower:
    """Reads the stream of a server.

    Attributes:
        connected: Whether there ever was a connection.
        ended: Whether the server ended the stream.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self._last_id = ""
        self.connected = False
        self.ended = False

    async def read(self) -> AsyncGenerator[Payload, None]:
        """Yield the payloads of one connection."""
        parser = EventParser(self._last_id, max_event_bytes=MAX_EVENT_BYTES, on_oversize=_skipped)
        query = {"after": self._last_id} if self._last_id else {}
        async with self._api.parts("GET", "/v1/stream", params=query, timeout=_READ) as parts:
            if not self.connected:
                note("connected; what comes in is shown from now on")
            self.connected = True
            async for part in parts:
                for event in parser.feed(part):
                    self._last_id = parser.last_event_id
                    payload = None if isinstance(event, bytes) else self._take(event)
                    if payload is not None:
                        yield payload

    def _take(self, event: Any) -> Payload | None:
        if event.event == "end":
            self.ended = True
            note(clean(str(msgspec.json.decode(event.data)["reason"])))
        elif event.event == "gap":
            missed = msgspec.json.decode(event.data)["missed"]
            note("some events are missing" if missed is None else f"{missed:,} events are missing")
        elif event.event in ("actions", "summary", "chat"):
            return decode(bytes(msgspec.json.decode(event.data, type=_Shown).payload))
        return None


def _skipped() -> None:
    note("an event was too large, and is not shown")

"""A response of server-sent events that ends with its token, its reader or the server."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from typing import Final

from msgspec.json import encode
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from autoplay_rag.live.feed import Subscription
from autoplay_rag.serve.access import Access
from autoplay_rag.serve.serving import Serving

__all__ = ["EventResponse", "event_bytes"]

_log = logging.getLogger(__name__)

_PING_SECONDS: Final = 15.0
_STALLED_SECONDS: Final = 60.0
"""A client that takes nothing for so long is cut off."""
_LAST_SECONDS: Final = 1.0
"""How long the last event of a stream may take."""
_GATHER_SECONDS: Final = 0.05
"""Events within this time are sent together: it costs far less, and nobody notices."""
_MOST_SENDS: Final = 500
"""About how many parts a second are sent to all clients together. For each, the event loop gives up
Python's lock, and waits until a thread that scores a search gives it back. At 2,000 a second, searches
waited longer than they took."""
_PREAMBLE: Final = b"retry: 2000\n\n"


class EventResponse(ABC, Response):
    """Sends events until the client leaves, the token expires or the server stops.

    The last event is `end`, with the reason.

    Args:
        subscription: Wakes the stream. It is closed at the end.
        access: Its token limits and ends the stream.
        serving: Ends all streams.
        gather: Seconds within which events are sent together; more if many streams are open.
        look: Seconds after which `take` is called without an event; None for never.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        subscription: Subscription,
        access: Access,
        serving: Serving,
        *,
        gather: float = _GATHER_SECONDS,
        look: float | None = None,
    ) -> None:
        super().__init__(headers={"x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.subscription = subscription
        self.access = access
        self.serving = serving
        self._gather = gather
        self._look = _PING_SECONDS if look is None else look
        self._sending: asyncio.Timeout | None = None
        serving.add_stream(self, access.principal.name if access.principal else "")

    @abstractmethod
    def take(self) -> bytes:
        """Return the events to send now; b"" if there are none.

        What it leaves in the subscription is taken in the next call, at once.
        """

    def end(self) -> None:
        """Tell the client that the server stops, and end soon, whether it reads or not."""
        self.subscription.close()
        if self._sending is not None:
            self._sending.reschedule(asyncio.get_running_loop().time() + _LAST_SECONDS)

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        sending = asyncio.create_task(self._send_all(send), name="autoplay-stream")
        leaving = asyncio.create_task(_left(receive), name="autoplay-stream-left")
        try:
            await asyncio.wait([sending, leaving], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.subscription.close()
            self.serving.remove_stream(self)
            for task in (sending, leaving):
                task.cancel()
            await asyncio.wait([sending, leaving])
        if not sending.cancelled() and (error := sending.exception()):
            raise error

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            await self._put(send, _PREAMBLE)
            reason = await self._send_events(send)
            await self._put(send, event_bytes("end", encode({"reason": reason})), _LAST_SECONDS)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            _log.warning("a subscriber took nothing for too long, and is cut off")

    async def _send_events(self, send: Send) -> str:
        """Send until the end; returns why it ended."""
        bound = self.access.principal.bound if self.access.principal else None
        sent = time.monotonic()
        while True:
            if data := self.take():
                seconds = _LAST_SECONDS if self.subscription.closed else _STALLED_SECONDS
                await self._put(send, data, seconds)
                sent = time.monotonic()
            left = self._look if bound is None else bound.expires_at - time.time()
            if left <= 0:
                return "the token expired"
            if self.subscription.waiting:  # not all of what waited was taken
                continue
            if self.subscription.closed:
                return "the server stops"
            try:
                async with asyncio.timeout(min(self._look, left)):
                    gather = max(self._gather, len(self.serving.streams) / _MOST_SENDS)
                    await self.subscription.gather(gather)
                    await self.subscription.wait()
            except TimeoutError:
                if time.monotonic() - sent >= _PING_SECONDS:
                    await self._put(send, b": ping\n\n")
                    sent = time.monotonic()

    async def _put(self, send: Send, data: bytes, seconds: float = _STALLED_SECONDS) -> None:
        """Send a part of the body.

        Raises:
            TimeoutError: If the client does not take it in time.
        """
        async with asyncio.timeout(seconds) as self._sending:
            await send({"type": "http.response.body", "body": data, "more_body": True})
        self._sending = None


def event_bytes(name: str, data: bytes) -> bytes:
    """Return one event. The data may have several lines."""
    lines = b"\ndata: ".join(data.splitlines() or [b""])
    return b"event: %b\ndata: %b\n\n" % (name.encode(), lines)


async def _left(receive: Receive) -> None:
    """Wait until the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass

"""What comes in, as server-sent events.

    id: 42
    event: actions          or summary, chat
    data: {"seq": 42, "at": 1764.5, "user_id": "ann", "payload": {...}}

The id is the sequence number. A client that comes back with `Last-Event-ID` gets what it missed.
`event: gap` says that events are missing: the client read too slowly (`missed` counts them), or it
was away for too long (`missed` is null). `event: end` is the last event, with the reason: "the
server stops", or "the token expired".
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Annotated, Any, Final, Literal

import msgspec
from fastapi import APIRouter, Depends, Header, Query, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from autoplay_rag.live.feed import FeedEvent, Subscription
from autoplay_rag.payloads import Payload
from autoplay_rag.serve.access import Access, Ids, Needs
from autoplay_rag.serve.bounds import own_payload
from autoplay_rag.serve.models import Id
from autoplay_rag.serve.serving import Serving, serving_of
from autoplay_rag.serve.tokens import Bound

__all__ = ["router"]

_log = logging.getLogger(__name__)

router = APIRouter(tags=["live"])

_PING_SECONDS: Final = 15.0
_STALLED_SECONDS: Final = 60.0
"""A client that takes nothing for so long is cut off."""
_LAST_SECONDS: Final = 1.0
"""How long the last event of a stream may take."""
_GATHER_SECONDS: Final = 0.05
"""Events within this time are sent together: it costs far less, and nobody notices."""
_WAITING: Final = 1_000
_WAITING_BYTES: Final = 2**20
"""The most events, and their bytes, that wait for a client that reads slowly."""
_PREAMBLE: Final = b"retry: 2000\n\n"


class EventStream(Response):
    """The response: sends events until the client leaves, the token expires or the server stops.

    Args:
        subscription: What comes in.
        access: Counts what was sent; its token limits and ends the stream.
        serving: Ends all streams.
        gap: Whether events before the first one are missing.
    """

    media_type = "text/event-stream"

    def __init__(
        self, subscription: Subscription, access: Access, serving: Serving, *, gap: bool
    ) -> None:
        super().__init__(headers={"x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._subscription = subscription
        self._access = access
        self._serving = serving
        self._gap = gap
        self._sending: asyncio.Timeout | None = None
        serving.add_stream(self, access.principal.name if access.principal else "")

    def end(self) -> None:
        """Tell the client that the server stops, and end soon, whether it reads or not."""
        self._subscription.close()
        if self._sending is not None:
            self._sending.reschedule(asyncio.get_running_loop().time() + _LAST_SECONDS)

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        sending = asyncio.create_task(self._send_all(send), name="autoplay-stream")
        leaving = asyncio.create_task(_left(receive), name="autoplay-stream-left")
        try:
            await asyncio.wait([sending, leaving], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._subscription.close()
            self._serving.remove_stream(self)
            for task in (sending, leaving):
                task.cancel()
            await asyncio.wait([sending, leaving])
        if not sending.cancelled() and (error := sending.exception()):
            raise error

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            await self._put(
                send, _PREAMBLE + (_event("gap", {"missed": None}) if self._gap else b"")
            )
            reason = await self._send_events(send)
            await self._put(send, _event("end", {"reason": reason}), _LAST_SECONDS)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            _log.warning("a subscriber took nothing for too long, and is cut off")

    async def _send_events(self, send: Send) -> str:
        """Send until the end; returns why it ended."""
        subscription, counts = self._subscription, self._access.audit.counts
        bound = self._access.principal.bound if self._access.principal else None
        while True:
            missed, events = subscription.take()
            parts = [_event("gap", {"missed": missed})] if missed else []
            shown = [part for event in events if (part := _shown(event, bound)) is not None]
            if parts := parts + shown:
                await self._put(send, b"".join(parts))
                counts["events"] = counts.get("events", 0) + len(shown)
            left = _PING_SECONDS if bound is None else bound.expires_at - time.time()
            if left <= 0:
                return "the token expired"
            if subscription.closed:
                return "the server stops"
            try:
                async with asyncio.timeout(min(_PING_SECONDS, left)):
                    await asyncio.sleep(_GATHER_SECONDS)
                    await subscription.wait()
            except TimeoutError:
                await self._put(send, b": ping\n\n")

    async def _put(self, send: Send, data: bytes, seconds: float = _STALLED_SECONDS) -> None:
        """Send a part of the body.

        Raises:
            TimeoutError: If the client does not take it in time.
        """
        async with asyncio.timeout(seconds) as self._sending:
            await send({"type": "http.response.body", "body": data, "more_body": True})
        self._sending = None


class _Wanted:
    """Selects the events of a stream. Without a product, the first event decides which one."""

    def __init__(self, ids: Ids, kind: str | None) -> None:
        self._user_id = ids.user_id
        self._session_id = ids.session_id
        self._product_id = ids.product_id
        self._is_of_someone = ids.user_id is not None or ids.session_id is not None
        self._kind = kind

    def __call__(self, event: FeedEvent) -> bool:
        payload = event.payload
        if self._user_id is not None and event.user_id != self._user_id:
            return False
        if self._session_id is not None and payload.session_id != self._session_id:
            return False
        if self._kind is not None and payload.kind != self._kind:
            return False
        if self._product_id is None and self._is_of_someone:
            self._product_id = payload.product_id
        return self._product_id is None or payload.product_id == self._product_id


@router.get(
    "/v1/stream",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def stream(
    request: Request,
    access: Annotated[Access, Depends(Needs("own", audited=True))],
    *,
    user_id: Annotated[Id | None, Query()] = None,
    session_id: Annotated[Id | None, Query()] = None,
    product_id: Annotated[Id | None, Query()] = None,
    kind: Annotated[Literal["actions", "summary", "chat"] | None, Query()] = None,
    after: Annotated[int | None, Query(ge=0, le=2**53)] = None,
    last_event_id: Annotated[int | None, Header(ge=0, le=2**53)] = None,
) -> Response:
    """Stream what comes in, as server-sent events, until the client leaves.

    `Last-Event-ID` or `after` resumes after an event. A client that reads too slowly misses events,
    and is told with `event: gap`.
    """
    ids = await access.select(Ids(user_id, session_id, product_id))
    after = last_event_id if last_event_id is not None else after
    feed = access.pipeline.feed
    gap = after is not None and not feed.keeps(after)
    subscription = feed.subscribe(
        _Wanted(ids, kind), after=after, limit=_WAITING, max_bytes=_WAITING_BYTES
    )
    try:
        return EventStream(subscription, access, serving_of(request), gap=gap)
    except BaseException:
        subscription.close()
        raise


def _shown(event: FeedEvent, bound: Bound | None) -> bytes | None:
    """The event as sent; None if a token may see nothing of it."""
    if bound is not None and bound.user_id is not None:
        payload = own_payload(event, bound.user_id)
        return None if payload is None else _encoded(event, payload)
    if event.encoded is None:
        event.encoded = _encoded(event, event.payload)
    return event.encoded


def _encoded(event: FeedEvent, payload: Payload) -> bytes:
    data = {
        "seq": event.seq,
        "at": event.at,
        "user_id": event.user_id,
        "payload": payload,
    }
    return b"id: %d\n%b" % (event.seq, _event(payload.kind, data))


def _event(name: str, data: Any) -> bytes:
    # JSON has no line breaks, so one line of data is enough.
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(data))


async def _left(receive: Receive) -> None:
    """Wait until the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass

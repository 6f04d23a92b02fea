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

from typing import Annotated, Final, Literal

from fastapi import APIRouter, Depends, Header, Query, Request
from msgspec.json import encode
from starlette.responses import Response, StreamingResponse

from autoplay_rag.live.feed import FeedEvent, Subscription
from autoplay_rag.payloads import Payload
from autoplay_rag.serve.access import Access, Ids, Needs
from autoplay_rag.serve.bounds import own_payload
from autoplay_rag.serve.models import Id
from autoplay_rag.serve.serving import Serving, serving_of
from autoplay_rag.serve.sse import EventResponse, event_bytes
from autoplay_rag.serve.tokens import Bound

__all__ = ["router"]

router = APIRouter(tags=["live"])

_WAITING: Final = 1_000
_WAITING_BYTES: Final = 2**20
"""The most events, and their bytes, that wait for a client that reads slowly."""
_SENT_BYTES: Final = 2**17
"""The most bytes of events that are sent at once. What waits is shared by all clients; what is sent is a
copy for each, and a hundred clients fall behind at the same moment if the processor is busy."""


class EventStream(EventResponse):
    """The response: sends what comes in.

    Args:
        subscription: What comes in.
        access: Counts what was sent; its token limits and ends the stream.
        serving: Ends all streams.
        gap: Whether events before the first one are missing.
    """

    def __init__(
        self, subscription: Subscription, access: Access, serving: Serving, *, gap: bool
    ) -> None:
        super().__init__(subscription, access, serving)
        self._first = event_bytes("gap", encode({"missed": None})) if gap else b""

    def take(self) -> bytes:
        """Return the events that wait."""
        first, self._first = self._first, b""
        missed, events = self.subscription.take(_SENT_BYTES)
        parts = [first, event_bytes("gap", encode({"missed": missed}))] if missed else [first]
        bound = self.access.principal.bound if self.access.principal else None
        shown = [part for event in events if (part := _shown(event, bound)) is not None]
        counts = self.access.audit.counts
        if shown:
            counts["events"] = counts.get("events", 0) + len(shown)
        return b"".join(parts + shown)


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
    return b"id: %d\n%b" % (event.seq, event_bytes(payload.kind, encode(data)))

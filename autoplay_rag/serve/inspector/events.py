"""`/events`: what makes a page move, as server-sent events with HTML. One stream for each page.

Only what changed is sent. A reader that is slow gets the newest state, not every step to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Depends, Query, Request
from msgspec.json import encode
from starlette.responses import Response

from autoplay_rag.live.feed import Subscription
from autoplay_rag.serve.access import Access, Ids, Needs
from autoplay_rag.serve.inspector.live import MOST_LIVE, live_key, live_of
from autoplay_rag.serve.inspector.overview import MOST_ON_OVERVIEW, counts_of
from autoplay_rag.serve.inspector.pages import IdField, fragment
from autoplay_rag.serve.inspector.state import state_of
from autoplay_rag.serve.serving import Serving, serving_of
from autoplay_rag.serve.sse import EventResponse, event_bytes

__all__ = ["router"]

router = APIRouter(include_in_schema=False)

_GATHER_SECONDS: Final = 0.25
_LOOK_SECONDS: Final = 1.0
"""How often a page moves at most, and how often it is looked whether it should."""

View = Literal["overview", "sessions", "session", "search", "people", "dead-letters", "settings"]
Part = tuple[str, object, Callable[[], bytes]]
"""The name of an event, what changes when its data does, and the data."""


class PageStream(EventResponse):
    """The response: sends the parts of one page that changed.

    Args:
        subscription: Wakes the stream.
        access: Whose data is shown.
        serving: What is shown.
        parts: Returns the parts of the page as of now.
    """

    def __init__(
        self,
        subscription: Subscription,
        access: Access,
        serving: Serving,
        parts: Callable[[], Iterator[Part]],
    ) -> None:
        super().__init__(
            subscription, access, serving, gather=_GATHER_SECONDS, look=_LOOK_SECONDS
        )
        self._parts = parts
        self._sent: dict[str, object] = {}

    def take(self) -> bytes:
        """Return the parts that changed."""
        self.subscription.take()
        events = []
        for name, key, data in self._parts():
            if self._sent.get(name, self) != key:
                self._sent[name] = key
                events.append(event_bytes(name, data()))
        return b"".join(events)


@router.get("/events")
async def events(
    request: Request,
    access: Annotated[Access, Depends(Needs("own", audited=True))],
    *,
    page: Annotated[View, Query()] = "overview",
    user_id: IdField = "",
    session_id: IdField = "",
    product_id: IdField = "",
    after: Annotated[float, Query(ge=0, le=1e11)] = 0.0,
) -> Response:
    """Stream the parts of a page as they change, until the client leaves."""
    serving = serving_of(request)
    ids = await access.select(Ids(user_id or None, session_id or None, product_id or None))
    base = "../" if page == "session" else "./"

    def parts() -> Iterator[Part]:
        if not access.is_bound:
            yield _state(serving, base)
        if page == "overview":
            if not access.is_bound:
                yield from _numbers(serving)
            yield _live(access, ids, MOST_ON_OVERVIEW)
        elif page == "sessions":
            yield _live(access, ids, MOST_LIVE)
        elif page == "session":
            yield from _session(access, ids, after)

    # One event is enough to wake the stream.
    subscription = access.pipeline.feed.subscribe(limit=1)
    try:
        return PageStream(subscription, access, serving, parts)
    except BaseException:
        subscription.close()
        raise


def _state(serving: Serving, base: str) -> Part:
    state = state_of(serving)
    connections = tuple((one.product, one.state, one.since) for one in state.connections)
    key = (state.word, tuple(state.todo), connections)
    return "state", key, lambda: fragment("parts/state.html", base=base, state=state).encode()


def _numbers(serving: Serving) -> Iterator[Part]:
    counts = counts_of(serving)
    key = tuple(counts.values())
    yield "counts", key, lambda: fragment("parts/counts.html", base="./", counts=counts).encode()
    state = state_of(serving)
    said = (state.word, tuple(state.todo), tuple((c.product, c.state) for c in state.connections))
    yield (
        "connections",
        said,
        lambda: fragment("parts/connections.html", base="./", state=state).encode(),
    )
    sample = serving.history.latest
    if sample is not None:
        yield "sample", sample, lambda: encode(sample)


def _live(access: Access, ids: Ids, limit: int) -> Part:
    live = live_of(access, ids, limit)
    return (
        "live",
        live_key(live),
        lambda: fragment("parts/live.html", base="./", live=live).encode(),
    )


def _session(access: Access, ids: Ids, after: float) -> Iterator[Part]:
    found = live_of(access, ids, 1)
    newer = [event for one in found for event in one.events if event.at > after]
    if newer:
        last = newer[-1]
        yield (
            "newer",
            (len(newer), last.at),
            lambda: fragment("parts/newer.html", count_of=len(newer), last=last).encode(),
        )

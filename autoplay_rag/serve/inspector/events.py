"""`/events`: what makes a page move, as server-sent events with HTML. One stream for each page.

Only what changed is sent. A reader that is slow gets the newest state, not every step to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Query, Request
from msgspec.json import encode
from starlette.responses import Response

from autoplay_rag.journal.ownership import Replicas
from autoplay_rag.live.feed import Subscription
from autoplay_rag.serve.access import Access, Ids, Needs
from autoplay_rag.serve.inspector.live import FEW_LIVE, MOST_LIVE, live_key, live_of
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
        super().__init__(subscription, access, serving, gather=_GATHER_SECONDS, look=_LOOK_SECONDS)
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
    live: Annotated[Literal["", "all"], Query()] = "",
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
            yield _live(serving, access, ids, MOST_ON_OVERVIEW)
        elif page == "sessions":
            yield _live(serving, access, ids, MOST_LIVE if live else FEW_LIVE)
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
    return _shared(serving, ("state", base), key, "parts/state.html", base=base, state=state)


def _numbers(serving: Serving) -> Iterator[Part]:
    state, counts = state_of(serving), counts_of(serving)
    yield _shared(
        serving, ("counts",), tuple(counts.values()), "parts/counts.html", base="./", counts=counts
    )
    connections = tuple((one.product, one.state, one.since) for one in state.connections)
    said = (state.word, tuple(state.todo), connections)
    yield _shared(serving, ("connections",), said, "parts/connections.html", base="./", state=state)
    if (replicas := serving.pipeline.replicas) is not None:
        yield _shared(
            serving, ("replicas",), _seconds(replicas), "parts/replicas.html", replicas=replicas
        )
    if (topic := serving.pipeline.topic) is not None:
        yield _shared(serving, ("topic",), topic, "parts/topic.html", topic=topic)
    serving.history.sample()
    sample = serving.history.latest
    if sample is not None:
        yield "sample", sample, lambda: encode(sample)


def _seconds(replicas: Replicas) -> object:
    """What the part shows: the page does not move for a fraction of a second."""
    shown = [replace(one, lag=round(one.lag)) for one in replicas.replicas]
    return shown, replicas.unowned, round(replicas.lag)


def _live(serving: Serving, access: Access, ids: Ids, limit: int) -> Part:
    live = live_of(access, ids, limit)
    key, name = live_key(live), "parts/live.html"
    if ids.given:
        return "live", key, lambda: fragment(name, base="./", live=live).encode()
    return _shared(serving, ("live", str(limit)), key, name, base="./", live=live)


def _session(access: Access, ids: Ids, after: float) -> Iterator[Part]:
    found = live_of(access, ids, 1)
    newer = [event for one in found for event in one.events if event.at > after]
    if newer:
        count, last = len(newer), newer[-1]
        yield (
            "newer",
            (count, last.at),
            lambda: fragment("parts/newer.html", newer=count, last=last).encode(),
        )


def _shared(
    serving: Serving, name: tuple[str, ...], key: object, template: str, **values: Any
) -> Part:
    """A part that looks the same to all who may see it."""

    def data() -> bytes:
        known = serving.fragments.get(name)
        if known is None or known[0] != key:
            known = serving.fragments[name] = (key, fragment(template, **values).encode())
        return known[1]

    return name[0], key, data

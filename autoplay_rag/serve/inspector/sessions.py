"""`/sessions`: live and stored sessions; `/sessions/{session_id}`: one as a timeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.responses import Response

from autoplay_rag.search.timeline import SessionChunk
from autoplay_rag.serve.access import Access, Ids, Needs
from autoplay_rag.serve.bounds import own_part
from autoplay_rag.serve.inspector.live import FEW_LIVE, MOST_LIVE, live_of
from autoplay_rag.serve.inspector.pages import IdField, PageRoute, TextField, page, query_of
from autoplay_rag.serve.inspector.timeline import rows_of
from autoplay_rag.serve.models import Id
from autoplay_rag.serve.problems import ProblemError
from autoplay_rag.serve.routes.sessions import moment_of

__all__ = ["router"]

router = APIRouter(include_in_schema=False, route_class=PageRoute)

Own = Annotated[Access, Depends(Needs("own", audited=True))]
Time = Annotated[str, Query(max_length=64)]
_LISTED: Final = 50
_EVENTS: Final = 300
_CHUNKS: Final = 30
"""The sessions, about how many events, and the chunks of a page."""


@router.get("/sessions")
async def sessions(
    request: Request,
    access: Own,
    *,
    user_id: IdField = "",
    session_id: IdField = "",
    product_id: IdField = "",
    since: Time = "",
    until: Time = "",
    matching: TextField = "",
    cursor: Annotated[str, Query(max_length=200)] = "",
    live: Annotated[Literal["", "all"], Query()] = "",
) -> Response:
    """List sessions: the live ones, then the stored ones, latest first."""
    ids = await access.select(Ids(user_id or None, session_id or None, product_id or None))
    found = await access.pipeline.sessions(
        ids.user_id,
        ids.product_id,
        session_id=ids.session_id,
        # As for `/v1/sessions`: what several people share is not shown to one of them.
        shared=access.bound_user is None,
        since=moment_of(since or None),
        until=moment_of(until or None),
        matching=matching.strip() or None,
        limit=_LISTED,
        cursor=cursor or None,
        count=ids.user_id is not None,  # a person has few
    )
    timed = bool(since or until or matching.strip())
    most = MOST_LIVE if live else FEW_LIVE
    shown = [] if cursor or timed else live_of(access, ids, most)
    access.audit.counts |= {"sessions": len(found), "live": len(shown)}
    given = {"user_id": user_id, "session_id": session_id, "product_id": product_id,
             "since": since, "until": until, "matching": matching}  # fmt: skip
    ids_given = {name: value for name, value in given.items() if name.endswith("_id")}
    return page(
        request,
        "sessions.html",
        "Sessions",
        stream=query_of(page="sessions", live=live, **ids_given),
        found=found,
        live=shown,
        more_live=len(shown) == most and most < MOST_LIVE,
        all_live=query_of(**given, live="all"),
        given=given,
        first=not cursor,
        shows_live=not (cursor or timed),
        may_choose=not access.is_bound,
        more=query_of(**given, cursor=found.next) if found.next else None,
        start=query_of(**given),
    )


@router.get("/sessions/{session_id:path}")
async def session(
    request: Request,
    session_id: Annotated[Id, Path()],
    access: Own,
    *,
    user_id: IdField = "",
    product_id: IdField = "",
    after: Annotated[int | None, Query(ge=-(2**53), le=2**53)] = None,
) -> Response:
    """Show one session in order, a part at a time."""
    ids = await access.select(Ids(user_id or None, session_id, product_id or None))
    part = await access.pipeline.session_part(
        session_id, ids.product_id, user_id=ids.user_id, after=after, limit=_EVENTS
    )
    found = None if part is None else part.session
    shared = found is not None and found.ambiguous
    if part is not None and found is not None and access.bound_user is not None:
        found = own_part(found, access.bound_user)
        if not (found.events or found.missing or after is not None or part.next is not None):
            found = None
    if part is None or found is None:
        # The same answer whether it is someone else's or unknown.
        detail = "No session of this id is known here, or you may not see it."
        raise ProblemError(403 if access.is_bound else 404, detail)
    access.audit.counts["events"] = len(found.events)
    chunks = None
    if not access.is_bound:
        chunks = await access.pipeline.session_chunks(session_id, found.product_id)
    live = access.pipeline.live.get(
        session_id=session_id, product_id=found.product_id, user_id=access.bound_user
    )
    newest = live.events[-1].at if live else 0.0
    return page(
        request,
        "session.html",
        "Session",
        stream=query_of(
            page="session", session_id=session_id, product_id=found.product_id, after=repr(newest)
        ),
        session=found,
        # Of a session that several people used, the totals are not this person's.
        actions=None if shared and access.bound_user is not None else part.actions,
        rows=rows_of(found.events),
        chunks=chunks and _shown(chunks),
        hidden_chunks=max(0, len(chunks or ()) - _CHUNKS),
        store=type(access.pipeline.store).__name__,
        live=live,
        after=after,
        next=part.next,
        user_id=user_id,
    )


def _shown(chunks: Sequence[SessionChunk]) -> list[SessionChunk]:
    """The chunks that a page shows: what is in none, and the latest."""
    chosen = sorted(chunks, key=lambda one: (one.id is not None, -(one.ended_at or 0.0)))
    return chosen[:_CHUNKS]

"""`/sessions`: live and stored sessions; `/sessions/{session_id}`: one as a timeline."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.responses import Response

from autoplay_rag.serve.access import Access, Ids, Needs
from autoplay_rag.serve.bounds import own_part
from autoplay_rag.serve.inspector.live import live_of
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
_EVENTS: Final = 200
"""The sessions and the events of a page."""


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
    )
    timed = bool(since or until or matching.strip())
    live = [] if cursor or timed else live_of(access, ids)
    access.audit.counts |= {"sessions": len(found), "live": len(live)}
    given = {"user_id": user_id, "session_id": session_id, "product_id": product_id,
             "since": since, "until": until, "matching": matching}  # fmt: skip
    ids_given = {name: value for name, value in given.items() if name.endswith("_id")}
    return page(
        request,
        "sessions.html",
        "Sessions",
        stream=f"?page=sessions{query_of(**ids_given).replace('?', '&')}",
        found=found,
        live=live,
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
    at: Annotated[int, Query(ge=1, le=10**6)] = 1,
) -> Response:
    """Show one session in order, a page of events at a time."""
    ids = await access.select(Ids(user_id or None, session_id, product_id or None))
    found = await access.pipeline.session(session_id, ids.product_id, user_id=ids.user_id)
    if found is not None and access.bound_user is not None:
        found = own_part(found, access.bound_user)
        if not (found.events or found.missing):
            found = None
    if found is None:
        # The same answer whether it is someone else's or unknown.
        detail = "No session of this id is known here, or you may not see it."
        raise ProblemError(403 if access.bound_user is not None else 404, detail)
    pages = max(1, -(-len(found.events) // _EVENTS))
    at = min(at, pages)
    events = found.events[(at - 1) * _EVENTS : at * _EVENTS]
    before = found.events[(at - 1) * _EVENTS - 1] if at > 1 else None
    access.audit.counts["events"] = len(events)
    live = access.pipeline.live.get(
        session_id=session_id, product_id=found.product_id, user_id=access.bound_user
    )
    newest = live.events[-1].at if live else 0.0
    return page(
        request,
        "session.html",
        "Session",
        stream=query_of(page="session", session_id=session_id, product_id=found.product_id,
                        after=repr(newest)),  # fmt: skip
        session=found,
        rows=rows_of(events, before),
        live=live,
        kinds=[(kind, sum(one.kind == kind for one in found.events)) for kind in
               ("actions", "summary", "chat")],  # fmt: skip
        at=at,
        last=pages,
        first_number=(at - 1) * _EVENTS + 1,
        user_id=user_id,
    )

"""`/search`: a question, the filters above the answer, and both sides' scores."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from autoplay_rag.errors import AutoplayError
from autoplay_rag.search.hits import Hits, SessionHit
from autoplay_rag.serve.access import Access, Ids, Needs
from autoplay_rag.serve.bounds import own_session_hits
from autoplay_rag.serve.inspector.pages import IdField, PageRoute, TextField, page
from autoplay_rag.serve.inspector.sessions import Time
from autoplay_rag.serve.problems import ProblemError, problem_of
from autoplay_rag.serve.routes.sessions import moment_of

__all__ = ["router"]

router = APIRouter(include_in_schema=False, route_class=PageRoute)

_FOUND: Final = 20
Kind = Literal["", "actions", "summary", "chat"]


@router.get("/search")
async def search(
    request: Request,
    access: Annotated[Access, Depends(Needs("own", audited=True))],
    *,
    q: TextField = "",
    user_id: IdField = "",
    product_id: IdField = "",
    since: Time = "",
    until: Time = "",
    kind: Annotated[Kind, Query()] = "",
) -> Response:
    """Show the sessions that answer a question best."""
    found: Hits[SessionHit] | None = None
    problem, status = None, 200
    if q.strip():
        try:
            ids = await access.select(Ids(user_id or None, None, product_id or None))
            found = await access.pipeline.search_sessions(
                q,
                _FOUND,
                user_id=ids.user_id,
                session_id=ids.session_id,
                product_id=ids.product_id,
                kind=kind or None,
                since=moment_of(since or None),
                until=moment_of(until or None),
            )
        except ProblemError as error:
            problem, status = error.detail, error.status
        except AutoplayError as error:
            said = problem_of(error)
            problem, status = said.detail, said.status
    if found is not None and access.is_bound:
        found = own_session_hits(found)
    access.audit.counts["sessions"] = len(found or ())
    return page(
        request,
        "search.html",
        "Search",
        status=status,
        stream="?page=search",
        q=q,
        given={
            "user_id": user_id,
            "product_id": product_id,
            "since": since,
            "until": until,
            "kind": kind,
        },
        found=found,
        problem=problem,
        may_choose=not access.is_bound,
    )

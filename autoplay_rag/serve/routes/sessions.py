"""Lists of sessions, and one complete session."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query

from autoplay_rag.remote.answers import UNKNOWN_SESSION
from autoplay_rag.serve.access import Access, Ids, Needs
from autoplay_rag.serve.bounds import own_part
from autoplay_rag.serve.models import Id, SessionModel, SessionsAnswer, SessionSummaryModel
from autoplay_rag.serve.problems import ProblemError

__all__ = ["Text", "Time", "moment_of", "router"]

router = APIRouter(tags=["sessions"])

Own = Annotated[Access, Depends(Needs("own", audited=True))]
Text = Annotated[str | None, Query(min_length=1, max_length=2000)]
Time = Annotated[str | None, Query(max_length=64)]


@router.get("/v1/sessions")
async def sessions(
    access: Own,
    *,
    user_id: Annotated[Id | None, Query()] = None,
    session_id: Annotated[Id | None, Query()] = None,
    product_id: Annotated[Id | None, Query()] = None,
    since: Time = None,
    until: Time = None,
    matching: Text = None,
    without: Text = None,
    page: Text = None,
    shared: bool = True,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
    count: bool = True,
) -> SessionsAnswer:
    """List sessions, latest first. `next` is the `cursor` of the next page.

    `shared=false` leaves out sessions that several people used. With `count=false`, `total` is 0,
    and the answer comes sooner if there are many.

    Under a token of a person, sessions that several people used are left out: their counts, times
    and words are not this person's alone. `GET /v1/sessions/{session_id}` has the person's part.
    """
    ids = await access.select(Ids(user_id, session_id, product_id))
    found = await access.pipeline.sessions(
        ids.user_id,
        ids.product_id,
        session_id=ids.session_id,
        shared=shared and access.bound_user is None,
        since=moment_of(since),
        until=moment_of(until),
        matching=matching,
        without=without,
        page=page,
        limit=limit,
        cursor=cursor,
        count=count,
    )
    access.audit.counts["sessions"] = len(found)
    listed = [SessionSummaryModel.model_validate(one) for one in found]
    return SessionsAnswer(sessions=listed, total=found.total, next=found.next)


@router.get("/v1/sessions/{session_id:path}")
async def session(
    session_id: Annotated[Id, Path()],
    access: Own,
    user_id: Annotated[Id | None, Query()] = None,
    product_id: Annotated[Id | None, Query()] = None,
) -> SessionModel:
    """Return one complete session, in order. With `user_id`, only this person's part."""
    ids = await access.select(Ids(user_id, session_id, product_id))
    found = await access.pipeline.session(session_id, ids.product_id, user_id=ids.user_id)
    if access.bound_user is not None:
        if found is not None:
            found = own_part(found, access.bound_user)
        if found is None or not (found.events or found.missing):
            # The same answer whether it is someone else's or unknown.
            raise ProblemError(
                403, "The token gives no access to a session of this id.", type=UNKNOWN_SESSION
            )
    if found is None:
        raise ProblemError(404, "No session of this id is known.", type=UNKNOWN_SESSION)
    access.audit.counts["events"] = len(found.events)
    return SessionModel.model_validate(found)


def moment_of(text: str | None) -> float | str | None:
    """Return a time of a query string: a number of seconds, or a text."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return text

"""Lists of sessions, and one complete session."""

from __future__ import annotations

import re
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Path, Query

from autoplay_rag.errors import ConfigurationError
from autoplay_rag.remote.answers import UNKNOWN_SESSION
from autoplay_rag.search.timeline import WholeSession
from autoplay_rag.serve.access import Access, Ids, Needs
from autoplay_rag.serve.bounds import own_part
from autoplay_rag.serve.models import Id, SessionModel, SessionsAnswer, SessionSummaryModel
from autoplay_rag.serve.problems import ProblemError

__all__ = ["MOST_EVENTS", "Text", "Time", "moment_of", "router", "whole_session"]

router = APIRouter(tags=["sessions"])

MOST_EVENTS: Final = 5_000
"""The largest `limit` of one session: a part of about 1.5 MB."""
_CURSOR: Final = re.compile(r"-?[0-9]{1,18}")

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
    *,
    user_id: Annotated[Id | None, Query()] = None,
    product_id: Annotated[Id | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=MOST_EVENTS)] = 500,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> SessionModel:
    """Return one session, in order. `next` is the `cursor` of the next part.

    With `user_id`, only this person's part. A part ends after `limit` events; payloads are not
    divided. Payloads are in the order of acceptance, and the events of a part are ordered by time.

    `events`, `text` and `missing` are of the part, all other values of the session. Under a token of
    a person, in a session that several people used, they are of the part as well.
    """
    ids = await access.select(Ids(user_id, session_id, product_id))
    part = await access.pipeline.session_part(
        session_id, ids.product_id, user_id=ids.user_id, after=_after(cursor), limit=limit
    )
    found = _readable(access, None if part is None else part.session, is_first=cursor is None)
    answer = SessionModel.model_validate(found)
    if part is not None and part.next is not None:
        answer.next = str(part.next)
    return answer


async def whole_session(
    session_id: str, access: Access, user_id: str | None, product_id: str | None
) -> SessionModel:
    """Return one complete session, however long. As the route otherwise."""
    ids = await access.select(Ids(user_id, session_id, product_id))
    found = await access.pipeline.session(session_id, ids.product_id, user_id=ids.user_id)
    return SessionModel.model_validate(_readable(access, found, is_first=True))


def _readable(access: Access, found: WholeSession | None, *, is_first: bool) -> WholeSession:
    """What the credential may see of a session, or of a part of it."""
    if access.bound_user is not None:
        if found is not None:
            found = own_part(found, access.bound_user)
        if found is None or not (found.events or found.missing or not is_first):
            # The same answer whether it is someone else's or unknown.
            raise ProblemError(
                403, "The token gives no access to a session of this id.", type=UNKNOWN_SESSION
            )
    if found is None:
        raise ProblemError(404, "No session of this id is known.", type=UNKNOWN_SESSION)
    access.audit.counts["events"] = len(found.events)
    return found


def _after(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    if not _CURSOR.fullmatch(cursor):
        raise ConfigurationError("cursor must be `next` of the part before")
    return int(cursor)


def moment_of(text: str | None) -> float | str | None:
    """Return a time of a query string: a number of seconds, or a text."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return text

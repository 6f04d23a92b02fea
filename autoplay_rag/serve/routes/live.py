"""What a person or a session is doing now."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from autoplay_rag.serve.access import Access, Ids, Needs
from autoplay_rag.serve.models import Id, LiveAnswer, LiveSessionModel
from autoplay_rag.serve.problems import ProblemError

__all__ = ["router"]

router = APIRouter(tags=["live"])


@router.get("/v1/live")
async def live(
    access: Annotated[Access, Depends(Needs("own", audited=True))],
    *,
    user_id: Annotated[Id | None, Query()] = None,
    session_id: Annotated[Id | None, Query()] = None,
    product_id: Annotated[Id | None, Query()] = None,
    conversation_id: Annotated[Id | None, Query()] = None,
    seconds: Annotated[float | None, Query(gt=0, le=1e9)] = None,
    max_events: Annotated[int | None, Query(ge=1, le=1000)] = None,
    max_chars: Annotated[int, Query(ge=1, le=100_000)] = 2000,
) -> LiveAnswer:
    """Return the session that all given ids belong to, as text and as events.

    Of several, the one that was active last; null if there is none. The text is untrusted: it
    contains text of pages and people.
    """
    ids = await access.select_fresh(Ids(user_id, session_id, product_id, conversation_id))
    if ids.user_id is ids.session_id is ids.conversation_id is None:
        raise ProblemError(422, "Give a user_id, a session_id or a conversation_id.")
    found = access.pipeline.live.get(**ids.given)
    if found is None:
        return LiveAnswer(session=None, text="")
    found = found.last(seconds=seconds, events=max_events)
    access.audit.counts["events"] = len(found.events)
    return LiveAnswer(session=LiveSessionModel.model_validate(found), text=found.render(max_chars))

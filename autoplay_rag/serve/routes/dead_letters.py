"""Payloads that could not be stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Query

from autoplay_rag.serve.access import Access, Needs
from autoplay_rag.serve.models import (
    DeadLetterModel,
    DeadLettersAnswer,
    DeadLettersChanged,
    DeadLettersRequest,
)
from autoplay_rag.serve.problems import ProblemError

__all__ = ["router"]

router = APIRouter(tags=["dead letters"])

Admin = Annotated[Access, Depends(Needs("admin", audited=True))]


@router.get("/v1/dead-letters")
async def dead_letters(
    access: Admin,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[str | None, Query(pattern=r"^[0-9]{1,15}$")] = None,
) -> DeadLettersAnswer:
    """List dead letters, oldest first, each with its error. `next` is the `cursor` of the next page."""
    # One more than wanted shows whether there is another page.
    found = await access.pipeline.dead_letters.list(limit + 1, after=int(cursor or 0))
    found, more = found[:limit], len(found) > limit
    access.audit.counts["dead_letters"] = len(found)
    letters = [
        DeadLetterModel(
            id=one.id,
            kind=one.kind,
            session_id=one.session_id,
            error=one.error,
            died_at=one.died_at,
            payload=None if one.payload is None else one.payload.to_dict(),
        )
        for one in found
    ]
    return DeadLettersAnswer(
        dead_letters=letters,
        total=access.pipeline.ledger.dead,
        next=str(found[-1].id) if more else None,
    )


@router.post("/v1/dead-letters/retry")
async def retry(asked: DeadLettersRequest, access: Admin) -> DeadLettersChanged:
    """Put dead letters back into the queue."""
    count = await access.pipeline.dead_letters.retry(_ids(asked))
    access.audit.counts["dead_letters"] = count
    return DeadLettersChanged(count=count)


@router.post("/v1/dead-letters/discard")
async def discard(asked: DeadLettersRequest, access: Admin) -> DeadLettersChanged:
    """Delete dead letters permanently."""
    count = await access.pipeline.dead_letters.discard(_ids(asked))
    access.audit.counts["dead_letters"] = count
    return DeadLettersChanged(count=count)


def _ids(asked: DeadLettersRequest) -> Sequence[int] | None:
    if (asked.ids is None) is not asked.all:
        raise ProblemError(422, 'Give either "ids" or "all": true.')
    return asked.ids

"""Chat turns come in."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Depends

from autoplay_rag.payloads import ChatTurn
from autoplay_rag.serve.access import Access, Needs
from autoplay_rag.serve.models import OutcomeAnswer, TurnRequest
from autoplay_rag.serve.problems import ProblemError

__all__ = ["router"]

router = APIRouter(tags=["ingest"])


@router.post("/v1/turns")
async def turns(
    turn: TurnRequest, access: Annotated[Access, Depends(Needs("ingest"))]
) -> OutcomeAnswer:
    """Accept a chat turn with an assistant. Answers once it is in the journal."""
    given = turn.model_dump()
    if given["forwarded_at"] is None:
        given["forwarded_at"] = time.time()
    outcome = await access.pipeline.accept(ChatTurn(**given))
    if outcome == "overflow":
        raise ProblemError(
            503, "The journal is full: the turn was not kept.", {"retry-after": "10"}
        )
    return OutcomeAnswer(outcome=outcome)

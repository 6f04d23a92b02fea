"""Chat turns come in."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Depends, Request

from autoplay_rag.payloads import ChatTurn
from autoplay_rag.serve.access import Admits, Caller
from autoplay_rag.serve.models import OutcomeAnswer, TurnRequest
from autoplay_rag.serve.problems import check_kept
from autoplay_rag.serve.serving import receiving_of

__all__ = ["router"]

router = APIRouter(tags=["ingest"])


@router.post("/v1/turns")
async def turns(
    turn: TurnRequest, request: Request, _: Annotated[Caller, Depends(Admits("ingest"))]
) -> OutcomeAnswer:
    """Accept a chat turn with an assistant. Answers once it is in the journal, or in the topic of a relay."""
    given = turn.model_dump()
    if given["forwarded_at"] is None:
        given["forwarded_at"] = time.time()
    outcome = await receiving_of(request).intake.accept(ChatTurn(**given))
    check_kept(outcome)
    return OutcomeAnswer(outcome=outcome)

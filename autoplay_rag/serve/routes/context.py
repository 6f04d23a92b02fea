"""The context about a person for a language model."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from autoplay_rag.serve.access import Access, Needs
from autoplay_rag.serve.models import ContextAnswer, ContextRequest

__all__ = ["router"]

router = APIRouter(tags=["live"])


@router.post("/v1/context")
async def context(
    asked: ContextRequest, access: Annotated[Access, Depends(Needs("own", audited=True))]
) -> ContextAnswer:
    """Return recent activity and matching sessions as text, marked as data."""
    ids = await access.select_fresh(asked.ids)
    text = await access.pipeline.context(
        asked.query,
        **ids.given,
        since_turn=asked.since_turn,
        seconds=asked.seconds,
        max_actions=asked.max_actions,
        max_chars=asked.max_chars,
    )
    access.audit.counts["characters"] = len(text)
    return ContextAnswer(text=text)

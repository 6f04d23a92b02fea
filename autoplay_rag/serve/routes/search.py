"""Ranked answers: hits and sessions."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from autoplay_rag.search.hits import Hit, Hits, SessionHit
from autoplay_rag.serve.access import Access, Ids, Needs
from autoplay_rag.serve.bounds import own_hits, own_session_hits
from autoplay_rag.serve.models import (
    HitModel,
    HitsAnswer,
    SearchRequest,
    SearchSessionsRequest,
    SessionHitModel,
    SessionHitsAnswer,
)

__all__ = ["router"]

router = APIRouter(tags=["search"])

Own = Annotated[Access, Depends(Needs("own", audited=True))]


@router.post("/v1/search")
async def search(asked: SearchRequest, access: Own) -> HitsAnswer:
    """Return the chunks that answer a question best, including payloads just received."""
    ids = await access.select(asked.ids)
    found = await access.pipeline.search(**_options(asked, ids), collapse=asked.collapse)
    if access.is_bound:
        found = own_hits(found)
    access.audit.counts["hits"] = len(found)
    hits = [HitModel.model_validate(hit) for hit in found]
    return HitsAnswer(hits=hits, **_about(found, access))


@router.post("/v1/search/sessions")
async def search_sessions(asked: SearchSessionsRequest, access: Own) -> SessionHitsAnswer:
    """Return the sessions that answer a question best, with their best hits and text."""
    ids = await access.select(asked.ids)
    found = await access.pipeline.search_sessions(**_options(asked, ids))
    if access.is_bound:
        found = own_session_hits(found)
    access.audit.counts["sessions"] = len(found)
    hits = [SessionHitModel.model_validate(hit) for hit in found]
    return SessionHitsAnswer(hits=hits, **_about(found, access))


def _options(asked: SearchSessionsRequest, ids: Ids) -> dict[str, Any]:
    return {
        "query": asked.query,
        "k": asked.k,
        "mode": asked.mode,
        "kind": asked.kind,
        "since": asked.since,
        "until": asked.until,
        **ids.given,
    }


def _about(found: Hits[Hit] | Hits[SessionHit], access: Access) -> dict[str, Any]:
    return {
        "watermark": found.watermark,
        "unembedded": None if access.is_bound else found.unembedded,
        "scope_known": None if access.is_bound else found.scope_known,
        "problem": found.problem,
    }

"""`/dead-letters`: payloads that could not be stored, with the reason; retry and discard."""

from __future__ import annotations

import re
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import RedirectResponse, Response

from autoplay_rag.serve.access import Access, Needs
from autoplay_rag.serve.inspector.pages import PageRoute, base_of, form_of, page, query_of
from autoplay_rag.serve.problems import ProblemError

__all__ = ["router"]

router = APIRouter(include_in_schema=False, route_class=PageRoute)

_LISTED: Final = 50
_ID: Final = re.compile(r"[0-9]{1,15}")
_MOST: Final = 1_000
"""The most letters of one retry or discard."""


@router.get("/dead-letters")
async def dead_letters(
    request: Request,
    access: Annotated[Access, Depends(Needs("read", audited=True))],
    *,
    after: Annotated[int, Query(ge=0, le=2**53)] = 0,
    retried: Annotated[int | None, Query(ge=0, le=_MOST)] = None,
    discarded: Annotated[int | None, Query(ge=0, le=_MOST)] = None,
    of: Annotated[int, Query(ge=0, le=_MOST)] = 0,
) -> Response:
    """List dead letters, oldest first."""
    found = await access.pipeline.dead_letters.list(_LISTED + 1, after=after)
    found, more = found[:_LISTED], len(found) > _LISTED
    access.audit.counts["dead_letters"] = len(found)
    return page(
        request,
        "dead_letters.html",
        "Dead letters",
        stream="?page=dead-letters",
        letters=found,
        total=access.pipeline.ledger.dead,
        more=query_of(after=str(found[-1].id)) if more else None,
        first=not after,
        most=_MOST,
        retried=retried,
        discarded=discarded,
        of=of,
    )


@router.post("/dead-letters")
async def change(
    request: Request, access: Annotated[Access, Depends(Needs("admin", audited=True))]
) -> Response:
    """Retry letters, or discard them once that is confirmed."""
    form = await form_of(request)
    action = form.get("action", [""])[0]
    letters = access.pipeline.dead_letters
    if action in ("retry-all", "discard-all"):
        ids = [one.id for one in await letters.list(_MOST)]
    else:
        ids = [int(one) for one in form.get("id", []) if _ID.fullmatch(one)][:_MOST]
    verb = action.removesuffix("-all")
    if verb not in ("retry", "discard"):
        raise ProblemError(422, "The form does not say what to do: retry or discard.")
    if verb == "discard" and form.get("confirm", [""])[0] != "yes" and ids:
        return page(request, "discard.html", "Discard dead letters", ids=ids)
    done = await (letters.retry(ids) if verb == "retry" else letters.discard(ids)) if ids else 0
    access.audit.counts["dead_letters"] = done
    name = "retried" if verb == "retry" else "discarded"
    said = query_of(**{name: str(done), "of": str(len(ids))})
    return RedirectResponse(f"{base_of(request)}dead-letters{said}", 303)

"""`/`: the state, the counts, the lag and the newest live sessions.

Nothing on it depends on how much is stored: the counts are kept, and the rest is in memory.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from autoplay_rag.serve.access import Access, Ids, Needs
from autoplay_rag.serve.inspector.live import live_of
from autoplay_rag.serve.inspector.pages import PageRoute, page
from autoplay_rag.serve.inspector.signing import swapped
from autoplay_rag.serve.problems import ProblemError
from autoplay_rag.serve.serving import Serving, serving_of

__all__ = ["MOST_ON_OVERVIEW", "counts_of", "router"]

router = APIRouter(include_in_schema=False, route_class=PageRoute)

MOST_ON_OVERVIEW: Final = 20


@router.get("/")
async def overview(
    request: Request,
    access: Annotated[Access, Depends(Needs("open", audited=True))],
    *,
    key: str | None = None,
) -> Response:
    """Return the page, or the sign-in form.

    A key in the address is swapped for a cookie, so that it does not stay in the browser's history.
    """
    if key is not None:
        return swapped(request, key)
    if access.principal is None:
        raise ProblemError(
            401, "Open the page in a browser, and sign in.", {"www-authenticate": "Bearer"}
        )
    if not access.principal.allows("own"):
        raise ProblemError(403, "This needs a read key or a token.")
    serving = serving_of(request)
    live = live_of(access, await access.select(Ids()), MOST_ON_OVERVIEW)
    access.audit.counts["live"] = len(live)
    serving.history.sample()  # in a larger application, nothing else does
    return page(
        request,
        "overview.html",
        "Overview",
        stream="?page=overview",
        counts=None if access.is_bound else counts_of(serving),
        replicas=None if access.is_bound else serving.pipeline.replicas,
        topic=None if access.is_bound else serving.pipeline.topic,
        samples=[] if access.is_bound else serving.history.samples,
        live=live,
    )


def counts_of(serving: Serving) -> dict[str, Any]:
    """Return the counts and durations of the overview, by name; empty before the first start."""
    pipeline = serving.pipeline
    if not pipeline.is_running:
        return {}
    ledger = pipeline.ledger
    names = ("received", "stored", "pending", "dead", "duplicate", "filtered", "discarded",
             "refused", "overflow")  # fmt: skip
    return {name: getattr(ledger, name) for name in names} | {
        "lag": round(pipeline.lag, 1),
        "p50": ledger.lag_p50,
        "p99": ledger.lag_p99,
        "live": len(pipeline.live),
    }

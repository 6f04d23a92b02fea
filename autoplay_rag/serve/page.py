"""A plain page with the counts, without a script."""

from __future__ import annotations

from html import escape
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from autoplay_rag.journal.ledger import COUNTERS
from autoplay_rag.serve.access import Access, Needs
from autoplay_rag.serve.guard import COOKIE
from autoplay_rag.serve.problems import ProblemError

__all__ = ["router"]

router = APIRouter()

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' "
    "data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


@router.get("/", include_in_schema=False)
async def page(
    request: Request, access: Annotated[Access, Depends(Needs("open"))], key: str | None = None
) -> Response:
    """Return the counts. A key in the address is swapped for a cookie.

    So the key does not stay in the browser's history, and is not sent to other sites.
    """
    if key is not None:
        swapped = RedirectResponse("./", 303)
        path = request.scope.get("root_path", "") or "/"
        swapped.set_cookie(COOKIE, key, httponly=True, samesite="strict", path=path)
        return swapped
    if access.principal is None:
        raise ProblemError(
            401, "Open the address with ?key=... at its end.", {"www-authenticate": "Bearer"}
        )
    if not access.principal.allows("read"):
        raise ProblemError(403, "This needs a read key.")
    pipeline = access.pipeline
    ledger, health = pipeline.ledger, pipeline.health
    rows: list[tuple[str, str]] = [("state", health.state)]
    rows.append(("live sessions", f"{len(pipeline.live):,}"))
    rows += [(name, f"{getattr(ledger, name):,}") for name in COUNTERS]
    cells = "".join(f"<tr><th>{escape(a)}</th><td>{escape(b)}</td></tr>" for a, b in rows)
    html = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>autoplay-rag</title>'
        f"</head><body><h1>autoplay-rag</h1><table>{cells}</table></body></html>"
    )
    return HTMLResponse(html, headers={"content-security-policy": _POLICY})

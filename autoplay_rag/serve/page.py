"""The page: counts, live sessions and a search. Rendered here, without a script.

Nothing on it depends on how much is stored: the counts are kept, the live sessions are in memory,
and a search is as bounded as any other.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Annotated, Final
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, Query, Request
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, RedirectResponse, Response

from autoplay_rag.journal.ledger import COUNTERS
from autoplay_rag.live import LiveSession
from autoplay_rag.search.hits import SessionHit
from autoplay_rag.serve.access import Access, Ids, Needs
from autoplay_rag.serve.bounds import own_session_hits
from autoplay_rag.serve.browsers import COOKIE
from autoplay_rag.serve.page_html import page_html, sign_in_html
from autoplay_rag.serve.problems import ProblemError
from autoplay_rag.serve.serving import serving_of

__all__ = ["router"]

router = APIRouter(include_in_schema=False)

_LIVE: Final = 50
_FOUND: Final = 10
_HEADERS: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    # With "no-referrer", a browser would send the sign-in form with `Origin: null`.
    "referrer-policy": "same-origin",
}
_STYLE: Final = files("autoplay_rag.serve").joinpath("page.css").read_bytes()

Open = Annotated[Access, Depends(Needs("open"))]


@router.get("/")
async def page(
    request: Request,
    access: Annotated[Access, Depends(Needs("open", audited=True))],
    *,
    q: Annotated[str, Query(max_length=2000)] = "",
    user_id: Annotated[str, Query(max_length=1000)] = "",
    key: str | None = None,
) -> Response:
    """Return the page, or the sign-in form.

    A key in the address is swapped for a cookie, so that it does not stay in the browser's history.
    """
    if key is not None:
        return _signed_in(request, key)
    if access.principal is None:
        if "text/html" in request.headers.get("accept", ""):
            return HTMLResponse(sign_in_html(None), 401, _HEADERS)
        raise ProblemError(
            401, "Open the page in a browser, and sign in.", {"www-authenticate": "Bearer"}
        )
    if not access.principal.allows("own"):
        raise ProblemError(403, "This needs a read key or a token.")
    found, problem = None, None
    status = 200
    if q.strip():
        try:
            found, problem = await _search(access, q, user_id or None)
        except ProblemError as error:
            problem, status = error.detail, error.status
    live = _live(access)
    access.audit.counts["live"] = len(live)
    html = page_html(
        counts={} if access.is_bound else _counts(access),
        live=live,
        question=q,
        user_id=user_id,
        found=found,
        problem=problem,
        may_choose=not access.is_bound,
    )
    return HTMLResponse(html, status, _HEADERS)


@router.post("/sign-in")
async def sign_in(request: Request, _: Open) -> Response:
    """Swap the key of the form for a cookie."""
    given = parse_qs((await request.body()).decode("utf-8", "replace"))
    return _signed_in(request, given.get("key", [""])[0].strip())


@router.post("/sign-out")
async def sign_out(request: Request, _: Open) -> Response:
    """Forget the cookie, here and in the browser."""
    serving_of(request).browsers.sign_out(
        cookie_parser(request.headers.get("cookie", "")).get(COOKIE, "")
    )
    left = RedirectResponse("./", 303)
    left.delete_cookie(COOKIE, path=_root(request), httponly=True, samesite="strict")
    return left


@router.get("/page.css")
async def style(_: Open) -> Response:
    """Return the style of the page."""
    return Response(_STYLE, media_type="text/css")


def _signed_in(request: Request, credential: str) -> Response:
    made = serving_of(request).browsers.sign_in(credential)
    if made is None:
        said = "This key or token is not valid, or may not read."
        return HTMLResponse(sign_in_html(said), 401, _HEADERS)
    swapped = RedirectResponse("./", 303)
    secure = request.url.scheme == "https"
    swapped.set_cookie(
        COOKIE, made, httponly=True, samesite="strict", secure=secure, path=_root(request)
    )
    return swapped


async def _search(
    access: Access, question: str, user_id: str | None
) -> tuple[list[SessionHit], str | None]:
    ids = await access.select(Ids(user_id=user_id))
    found = await access.pipeline.search_sessions(
        question,
        _FOUND,
        user_id=ids.user_id,
        session_id=ids.session_id,
        product_id=ids.product_id,
    )
    if access.is_bound:
        found = own_session_hits(found)
    access.audit.counts["sessions"] = len(found)
    return list(found), found.problem


def _live(access: Access) -> list[LiveSession]:
    """The newest live sessions that may be seen; of a bound token, the one that is active."""
    live = access.pipeline.live
    bound = access.principal.bound if access.principal else None
    if bound is None:
        return live.sessions(_LIVE)
    own = live.get(user_id=bound.user_id, session_id=bound.session_id, product_id=bound.product_id)
    return [] if own is None else [own]


def _counts(access: Access) -> dict[str, int | str]:
    pipeline = access.pipeline
    ledger = pipeline.ledger
    counts: dict[str, int | str] = {"state": pipeline.health.state}
    counts["live sessions"] = len(pipeline.live)
    return counts | {name: getattr(ledger, name) for name in COUNTERS}


def _root(request: Request) -> str:
    return request.scope.get("root_path", "") or "/"

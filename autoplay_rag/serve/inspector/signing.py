"""`/sign-in` and `/sign-out`: a key or token is swapped for a cookie."""

from __future__ import annotations

import re
from typing import Annotated, Final
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, Request
from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse, Response

from autoplay_rag.serve.access import Access, Needs
from autoplay_rag.serve.browsers import cookie_name
from autoplay_rag.serve.inspector.pages import page
from autoplay_rag.serve.serving import serving_of

__all__ = ["router", "swapped"]

router = APIRouter(include_in_schema=False)

Open = Annotated[Access, Depends(Needs("open"))]
_PAGE: Final = re.compile(r"(?:sessions|search|people|dead-letters|settings)(?:[/?][!-~]{0,2000})?")
"""Where one may return to after signing in: a page of this server, relative to the overview."""


@router.post("/sign-in")
async def sign_in(request: Request, _: Open) -> Response:
    """Swap the key of the form for a cookie."""
    given = parse_qs((await request.body()).decode("utf-8", "replace"))
    to = given.get("to", [""])[0]
    return swapped(request, given.get("key", [""])[0].strip(), to if _PAGE.fullmatch(to) else "")


@router.post("/sign-out")
async def sign_out(request: Request, _: Open) -> Response:
    """Forget the cookie, here and in the browser."""
    name = _cookie(request)
    held = cookie_parser(request.headers.get("cookie", "")).get(name, "")
    serving_of(request).browsers.sign_out(held)
    left = RedirectResponse("./", 303)
    left.delete_cookie(name, path=_root(request), httponly=True, samesite="strict")
    return left


def swapped(request: Request, credential: str, to: str = "") -> Response:
    """Swap a key or token for a cookie.

    Args:
        request: The request.
        credential: The key or token.
        to: The page to return to, relative to the overview.
    """
    made = serving_of(request).browsers.sign_in(credential)
    if made is None:
        problem = "This key or token is not valid, or may not read."
        return page(request, "sign_in.html", "Sign in", status=401, problem=problem, to=to)
    answer = RedirectResponse(f"./{to}", 303)
    secure = request.url.scheme == "https"
    answer.set_cookie(
        _cookie(request),
        made,
        httponly=True,
        samesite="strict",
        secure=secure,
        path=_root(request),
    )
    return answer


def _cookie(request: Request) -> str:
    return cookie_name(request.headers.get("host", ""))


def _root(request: Request) -> str:
    return request.scope.get("root_path", "") or "/"

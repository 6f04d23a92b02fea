"""What all pages share: the frame, the errors, the forms."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Annotated, Any, Final
from urllib.parse import parse_qs, urlencode, urlsplit

from fastapi import Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from autoplay_rag._describe import describe
from autoplay_rag.errors import AutoplayError
from autoplay_rag.serve.auth import Principal
from autoplay_rag.serve.inspector import texts
from autoplay_rag.serve.inspector.assets import asset_path
from autoplay_rag.serve.inspector.state import state_of
from autoplay_rag.serve.problems import ProblemError, problem_of
from autoplay_rag.serve.serving import serving_of

__all__ = ["HTML_HEADERS", "IdField", "PageRoute", "TextField", "base_of", "form_of", "fragment",
           "page", "query_of"]  # fmt: skip

_log = logging.getLogger(__name__)

IdField = Annotated[str, Query(max_length=512)]
"""An id in a form; "" if none is given."""
TextField = Annotated[str, Query(max_length=2000)]
"""A text in a form; "" if none is given."""

_MOST_FIELDS: Final = 2_000
_PAGES: Final = (
    ("", "Overview"),
    ("sessions", "Sessions"),
    ("search", "Search"),
    ("people", "People"),
    ("dead-letters", "Dead letters"),
    ("settings", "Settings"),
)
HTML_HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    # With "no-referrer", a browser would send forms with `Origin: null`.
    "referrer-policy": "same-origin",
}


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("autoplay_rag.serve.inspector"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    for name in texts.__all__:
        made.globals[name] = getattr(texts, name)
    made.globals["asset"] = asset_path
    made.globals["query_of"] = query_of
    for name in made.list_templates():
        made.get_template(name)  # compiled now, not while a reader waits
    return made


def query_of(**values: str | None) -> str:
    """Return the query of an address, without what is empty; "" if all is."""
    given = {name: value for name, value in values.items() if value}
    return f"?{urlencode(given, errors='replace')}" if given else ""


_TEMPLATES: Final = _environment()


def fragment(name: str, **values: Any) -> str:
    """Render a part of a page."""
    return _TEMPLATES.get_template(name).render(now=time.time(), **values)


def page(
    request: Request,
    name: str,
    title: str,
    *,
    status: int = 200,
    stream: str | None = None,
    headers: Mapping[str, str] | None = None,
    **values: Any,
) -> HTMLResponse:
    """Return a page.

    Args:
        request: The request.
        name: The template.
        title: The heading.
        status: The HTTP status.
        stream: The query of the page's event stream, such as "?page=overview"; None for none.
        headers: More headers.
        values: For the template.
    """
    principal: Principal | None = request.scope["state"]["principal"]
    serving = serving_of(request)
    is_reader = principal is not None and principal.allows("read")
    current = _below(request).strip(b"/").partition(b"/")[0].decode("latin-1")
    html = fragment(
        name,
        base=base_of(request),
        title=title,
        pages=_PAGES,
        current=current,
        signed_in=principal is not None,
        by_cookie="authorization" not in request.headers,
        role=principal.role if principal else "",
        may_change=principal is not None and principal.allows("admin"),
        state=state_of(serving) if is_reader else None,
        stream=stream,
        version=serving.settings.version,
        **{"q": "", **values},
    )
    return HTMLResponse(html, status, {**HTML_HEADERS, **(headers or {})})


def base_of(request: Request) -> str:
    """Return the relative address of the overview, so that pages work behind any path.

    A browser resolves it against the address as it was sent, in which `%2F` is not a slash.
    """
    return "../" * (_below(request).count(b"/") - 1) or "./"


async def form_of(request: Request) -> dict[str, list[str]]:
    """Read a form that changes something.

    Raises:
        ProblemError: 403 if it was not sent by a page of this server; 422 if it is too long.
    """
    # The guard lets origins through that may use the interface; a form must be the server's own.
    origin = urlsplit(request.headers.get("origin", ""))
    if not origin.netloc or origin.netloc != request.headers.get("host", ""):
        raise ProblemError(403, "Send this form from a page of this server.")
    body = (await request.body()).decode("utf-8", "replace")
    try:
        return parse_qs(body, keep_blank_values=True, max_num_fields=_MOST_FIELDS)
    except ValueError:
        raise ProblemError(422, f"The form has more than {_MOST_FIELDS} fields.") from None


class PageRoute(APIRoute):
    """A route whose errors are pages, for browsers."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler."""
        handle: Callable[[Request], Awaitable[Response]] = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except (ProblemError, AutoplayError, RequestValidationError) as error:
                if "text/html" not in request.headers.get("accept", ""):
                    raise
                return _error_page(request, _problem_of(request, error))

        return handled


def _problem_of(request: Request, error: Exception) -> ProblemError:
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, AutoplayError):
        found = problem_of(error)
        if found.status not in (422, 501):
            route = getattr(request.scope.get("route"), "path_format", "a page")
            _log.error("%s failed: %s", route, describe(error))
        return found
    return ProblemError(422, "The address or the form has a value that cannot be used.")


_TITLES: Final = {
    403: "Not allowed",
    404: "Not found",
    409: "Which product?",
    422: "Not valid",
    503: "Not available",
}


def _error_page(request: Request, error: ProblemError) -> Response:
    if error.status == 401:  # noqa: PLR2004 - nobody is signed in
        return page(request, "sign_in.html", "Sign in", status=401, problem=None, to=_here(request))
    title = _TITLES.get(error.status, "This did not work")
    return page(request, "error.html", title, status=error.status, problem=error.detail,
                headers=error.headers)  # fmt: skip


def _here(request: Request) -> str:
    """The page of a request, relative to the overview, to return to after signing in."""
    if request.method != "GET":
        return ""
    query: bytes = request.scope.get("query_string") or b""
    return (_below(request).lstrip(b"/") + (b"?" + query if query else b"")).decode("latin-1")


def _below(request: Request) -> bytes:
    """The path as it was sent, below the place where the application is mounted."""
    raw: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    root = str(request.scope.get("root_path", "")).encode()
    return raw[len(root) :] if root and raw.startswith(root) else raw

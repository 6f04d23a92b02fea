"""What every request passes first: host, origin, credential, rate, body; and what every answer gets.

Loopback alone is no protection: any website can make a browser post to a loopback address, and
DNS rebinding makes it read the answer. So the `Host` must be known, a foreign `Origin` is refused,
and a body must be JSON, which a browser sends to another origin only after asking. The forms of the
inspector are the exception: a browser sends their `Origin`.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from autoplay_rag._tracing import Attribute, traced
from autoplay_rag.connector.asgi import SenderGoneError, read_body
from autoplay_rag.connector.sse import MAX_EVENT_BYTES
from autoplay_rag.errors import BodyTooLargeError
from autoplay_rag.serve.audit import AuditRecord, AuditSink
from autoplay_rag.serve.auth import Authenticator, Principal
from autoplay_rag.serve.browsers import Browsers, cookie_name
from autoplay_rag.serve.problems import ProblemError, problem
from autoplay_rag.serve.rates import Rates

__all__ = ["Guard", "GuardSettings"]

_log = logging.getLogger(__name__)

_PROBES: Final = frozenset(("/healthz", "/readyz"))
"""Asked by address, and so without a known host. They tell nothing without a key."""
_UNTRACED: Final = _PROBES | {"/metrics"}
"""Asked every few seconds, by machines."""
_METHODS: Final = frozenset(("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"))
_WEBHOOKS: Final = "/v1/webhooks/"
_FORMS: Final = frozenset(("/sign-in", "/sign-out", "/people", "/dead-letters"))
_WITH_BODY: Final = frozenset(("POST", "PUT", "PATCH", "DELETE"))
_BODY_SECONDS: Final = 30.0
_HEADERS: Final[Mapping[str, str]] = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""Set unless the answer has its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardSettings:
    """What requests are let through.

    Attributes:
        hosts: Names in the `Host` header, without a port.
        origins: Foreign origins that may ask, such as "https://app.example.com".
        max_body_bytes: The most bytes of a body, except of a webhook.
        rate: Requests per second of each key or token, and of each address without one. Webhooks
            are not limited.
    """

    hosts: Collection[str]
    origins: Collection[str]
    max_body_bytes: int
    rate: float


class Guard:
    """An ASGI middleware. Puts `principal` into the state of a request, and writes `audit` from it.

    Args:
        app: The application.
        settings: What is let through.
        authenticator: Recognises credentials.
        browsers: Have the credentials of cookies.
        audit: Takes the lines of the audit log.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: GuardSettings,
        authenticator: Authenticator,
        browsers: Browsers,
        audit: AuditSink,
    ) -> None:
        self._app = app
        self._settings = settings
        self._authenticator = authenticator
        self._browsers = browsers
        self._audit = audit
        self._rates = Rates(settings.rate)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        elif scope["type"] == "http":
            await self._trace(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _trace(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = _Answer(send)
        if _path(scope) in _UNTRACED:
            await self._handle(scope, receive, answer)
            return
        method = scope["method"] if scope["method"] in _METHODS else "HTTP"
        attributes: dict[str, Attribute] = {"http.request.method": method}
        with traced(method, attributes, headers=Headers(scope=scope)) as span:
            await self._handle(scope, receive, answer)
            # The route alone: the path and the query may have ids of people, and a key.
            if route := getattr(scope.get("route"), "path_format", None):
                span.update_name(f"{method} {route}")
                span.set_attribute("http.route", route)
            span.set_attribute("http.response.status_code", answer.status)
            if answer.status >= 500:  # noqa: PLR2004 - a failure of the server
                span.set_attribute("error.type", str(answer.status))

    async def _handle(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        try:
            principal = self._checked(scope)
            scope.setdefault("state", {})["principal"] = principal
            body = await self._body(scope, receive)
            await self._app(scope, receive if body is None else _replayed(body, receive), answer)
        except ProblemError as error:
            await problem(error.status, error.detail, error.headers)(scope, receive, answer)
        except SenderGoneError:
            return
        except Exception:
            if answer.status:
                raise
            # The route, not the path, which may have the id of a session.
            route = getattr(scope.get("route"), "path_format", "a request")
            _log.exception("%s %s failed", scope["method"], route)
            text = "The request failed. The server's log has the reason."
            await problem(500, text)(scope, receive, answer)
        finally:
            record = scope["state"].get("audit") if "state" in scope else None
            if isinstance(record, AuditRecord):
                # 499: the client went away before there was an answer.
                self._audit(record.line(answer.status or 499))

    # -- who and from where -------------------------------------------------------------------

    def _checked(self, scope: Scope) -> Principal | None:
        headers, path = Headers(scope=scope), _path(scope)
        if path not in _PROBES:
            self._check_host(headers)
        self._check_origin(headers)
        client = scope.get("client")
        address = f"address {client[0] if client else '-'}"
        # A webhook is checked by its signature or key. Its one sender may send everyone's events.
        is_limited = not path.startswith(_WEBHOOKS)
        credential = _bearer(headers)
        by_cookie = credential is None
        if credential is None:
            credential = self._of_cookie(headers)
        principal = self._authenticator.identify(credential) if credential is not None else None
        if principal is None and by_cookie:
            # Without a cookie, or with one that is no longer valid: the page lets sign in again.
            if is_limited:
                self._check_rate(address)
            return None
        if principal is None:
            self._check_rate(address)
            raise ProblemError(
                401,
                "The key or token is not valid, or has expired.",
                {"www-authenticate": 'Bearer error="invalid_token"'},
            )
        if is_limited:
            self._check_rate(principal.name)
        return principal

    def _of_cookie(self, headers: Headers) -> str | None:
        name = cookie_name(headers.get("host", ""))
        found = cookie_parser(headers.get("cookie", "")).get(name)
        return self._browsers.credential(found) if found else None

    def _check_host(self, headers: Headers) -> None:
        given = headers.getlist("host")
        if len(given) != 1 or _host_name(given[0]) not in self._settings.hosts:
            raise ProblemError(
                421,
                "This host name is not known here: start the server with it as an allowed host.",
            )

    def _check_origin(self, headers: Headers) -> None:
        origin = headers.get("origin")
        if origin is not None:
            if origin in self._settings.origins:
                return
            if origin == "null" or urlsplit(origin).netloc != headers.get("host", ""):
                raise ProblemError(403, "Requests from other origins are refused.")
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            raise ProblemError(403, "Requests from other sites are refused.")

    def _check_rate(self, name: str) -> None:
        if (seconds := self._rates.wait(name)) > 0:
            raise ProblemError(
                429, "Too many requests: slow down.", {"retry-after": str(math.ceil(seconds))}
            )

    # -- the body -----------------------------------------------------------------------------

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """Read a bounded body; None if the method has none."""
        if scope["method"] not in _WITH_BODY:
            return None
        headers, path = Headers(scope=scope), _path(scope)
        webhook = path.startswith(_WEBHOOKS)
        limit = MAX_EVENT_BYTES if webhook else self._settings.max_body_bytes
        has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        is_form = path in _FORMS and _type(headers) == "application/x-www-form-urlencoded"
        if has_body and not webhook and not is_form and _type(headers) != "application/json":
            raise ProblemError(415, "The body must be JSON, with the type application/json.")
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                return await read_body(receive, limit)
        except BodyTooLargeError:
            detail = f"The body has more than {limit} bytes."
            raise ProblemError(413, detail, {"connection": "close"}) from None
        except TimeoutError:
            raise ProblemError(408, "The body did not arrive in time.") from None


class _Answer:
    """Sends an answer with the headers that each gets, and notes its status."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        await self._send(message)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives this body, and then what comes after it."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _path(scope: Scope) -> str:
    """The path below the place where the application is mounted."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(root) else path


def _bearer(headers: Headers) -> str | None:
    """The credential in the header; None without one, "" for one of another kind."""
    kind, _, credential = headers.get("authorization", "").partition(" ")
    if not kind:
        return None
    return credential.strip() if kind.lower() == "bearer" else ""


def _host_name(host: str) -> str:
    """The name in a `Host` header, without the port."""
    if host.startswith("["):
        return host.partition("]")[0][1:].lower()
    return host.partition(":")[0].lower()


def _type(headers: Headers) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()

"""Answers of the server as the results and errors of a pipeline. Pure."""

from __future__ import annotations

from typing import Any, Final, NoReturn, TypeVar

import httpx
import msgspec
from httpx import codes

from autoplay_rag._retry_after import LONGEST_PAUSE, parse_retry_after
from autoplay_rag.content.marking import plain_line
from autoplay_rag.errors import (
    ConfigurationError,
    ServerAccessError,
    ServerError,
    ServerUnavailableError,
)
from autoplay_rag.journal.base import Health
from autoplay_rag.live.sessions import LiveEvent, LiveSession
from autoplay_rag.search.hits import Hit, Hits, SessionHit
from autoplay_rag.search.timeline import Sessions, SessionSummary, WholeSession

__all__ = [
    "UNKNOWN_SESSION",
    "NotFoundError",
    "check_answer",
    "decoded",
    "health_of",
    "hits_of",
    "live_session_of",
    "session_hits_of",
    "session_of",
    "sessions_of",
]

T = TypeVar("T")

UNKNOWN_SESSION: Final = "urn:autoplay-rag:unknown-session"
"""The type of the problem that no session of an id may be read."""
_LONGEST_DETAIL: Final = 300
_INVALID: Final = (
    codes.BAD_REQUEST,
    codes.CONFLICT,
    codes.REQUEST_ENTITY_TOO_LARGE,
    codes.UNPROCESSABLE_ENTITY,
)
_PROBLEM: Final = "application/problem+json"


class NotFoundError(ServerError):
    """Nothing has the id of the request."""


# -- errors ---------------------------------------------------------------------------------------


class _Invalid(msgspec.Struct):
    where: str = msgspec.field(name="in", default="")
    detail: str = ""


class _Problem(msgspec.Struct):
    type: str = ""
    detail: str = ""
    errors: list[_Invalid] = []


def check_answer(response: httpx.Response, body: bytes, url: httpx.URL) -> NoReturn:
    """Raise the error of an answer without success.

    Args:
        response: The answer.
        body: Its body.
        url: The server.

    Raises:
        ConfigurationError: 400, 409, 413, 422: the arguments cannot work.
        ServerAccessError: 401, 403.
        ServerUnavailableError: 408, 429, 5xx except 501.
        NotFoundError: 404 of this package's server.
        ServerError: Other answers.
    """
    status = response.status_code
    said = f"{url} answered {status}"
    problem = _problem(response, body)
    if problem is not None:
        said = f"{said}: {_detail(problem)}"
    if problem is not None and (status == codes.NOT_FOUND or problem.type == UNKNOWN_SESSION):
        raise NotFoundError(said)
    if problem is not None and status in _INVALID:
        raise ConfigurationError(_detail(problem))
    if status in (codes.UNAUTHORIZED, codes.FORBIDDEN):
        raise ServerAccessError(f"{said}; check the key: key=..., or AUTOPLAY_RAG_KEY")
    if status in (codes.REQUEST_TIMEOUT, codes.TOO_MANY_REQUESTS) or (
        response.is_server_error and status != codes.NOT_IMPLEMENTED
    ):
        after = parse_retry_after(response.headers.get("retry-after"), longest=LONGEST_PAUSE)
        raise ServerUnavailableError(said, retry_after=after)
    if response.is_redirect:
        raise ServerError(
            f"{said}, a redirect, which is not followed because of the key: use the URL it leads to"
        )
    hint = "" if problem else "; it may not be an autoplay-rag server: check the URL"
    raise ServerError(f"{said}{hint}")


def _problem(response: httpx.Response, body: bytes) -> _Problem | None:
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != _PROBLEM:
        return None
    try:
        return msgspec.json.decode(body, type=_Problem)
    except (msgspec.MsgspecError, UnicodeError):
        return None


def _detail(problem: _Problem) -> str:
    said = problem.detail
    if problem.errors:
        said = "; ".join(
            f"{one.where.removeprefix('body.').removeprefix('query.')}: {one.detail}"
            for one in problem.errors
        )
    return plain_line(said, _LONGEST_DETAIL)


# -- results --------------------------------------------------------------------------------------


def decoded(body: bytes, kind: type[T]) -> T:
    """Decode an answer.

    Raises:
        ServerError: If the answer has another form.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeError) as error:
        # The error names the place, not the value.
        said = f"the server's answer is not as expected: {plain_line(str(error), _LONGEST_DETAIL)}"
    raise ServerError(f"{said}; client and server may be of different versions")


class _Found(msgspec.Struct):
    watermark: int
    # Null under a token.
    unembedded: int | None = None
    scope_known: bool | None = None
    problem: str | None = None

    def about(self) -> dict[str, Any]:
        return {
            "watermark": self.watermark,
            "unembedded": self.unembedded or 0,
            "scope_known": self.scope_known is not False,
            "problem": self.problem,
        }


class _Hits(_Found, kw_only=True):
    hits: list[Hit]


class _SessionHits(_Found, kw_only=True):
    hits: list[SessionHit]


class _Sessions(msgspec.Struct):
    sessions: list[SessionSummary]
    total: int
    next: str | None


class _Part(msgspec.Struct):
    next: str | None = None


class _LiveEvent(msgspec.Struct):
    at: float
    kind: str
    text: str
    url: str


class _LiveSession(msgspec.Struct):
    product_id: str
    session_id: str
    user_id: str | None
    conversation_id: str | None
    seen_at: float
    events: list[_LiveEvent]


class _Live(msgspec.Struct):
    session: _LiveSession | None


class _Health(msgspec.Struct):
    status: str
    reasons: list[str] | None


def hits_of(body: bytes) -> Hits[Hit]:
    """Return the result of `search`."""
    found = decoded(body, _Hits)
    return Hits(found.hits, **found.about())


def session_hits_of(body: bytes) -> Hits[SessionHit]:
    """Return the result of `search_sessions`."""
    found = decoded(body, _SessionHits)
    return Hits(found.hits, **found.about())


def sessions_of(body: bytes) -> Sessions:
    """Return the result of `sessions`."""
    found = decoded(body, _Sessions)
    return Sessions(found.sessions, total=found.total, next=found.next)


def session_of(body: bytes) -> tuple[WholeSession, str | None]:
    """Return one part of a session, and the cursor of the next one."""
    return decoded(body, WholeSession), decoded(body, _Part).next


def live_session_of(body: bytes) -> LiveSession | None:
    """Return a live session; None if there is none."""
    found = decoded(body, _Live).session
    if found is None:
        return None
    return LiveSession(
        product_id=found.product_id,
        session_id=found.session_id,
        user_id=found.user_id,
        conversation_id=found.conversation_id,
        events=tuple(LiveEvent(one.at, one.kind, one.text, one.url) for one in found.events),
        seen_at=found.seen_at,
    )


def health_of(body: bytes) -> Health:
    """Return the health of the server's pipeline."""
    found = decoded(body, _Health)
    reasons = tuple(found.reasons or ())
    match found.status:
        case "ok" | "degraded" | "failed" as state:
            return Health(state, reasons)
        case _:
            return Health("failed", reasons or ("the pipeline is not running",))

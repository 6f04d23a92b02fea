"""Errors as problem details (RFC 9457), for every route and every status."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from autoplay_rag._describe import describe
from autoplay_rag.errors import (
    AutoplayError,
    BackupError,
    ConfigurationError,
    EmbedderUnavailableError,
    JournalError,
    MissingCapabilityError,
    PipelineError,
    StoreUnavailableError,
    UnsupportedFilterError,
)

__all__ = [
    "MEDIA_TYPE",
    "SCHEMA",
    "ProblemError",
    "check_kept",
    "handle_problems",
    "problem",
    "problem_of",
]

_log = logging.getLogger(__name__)

MEDIA_TYPE: Final = "application/problem+json"
SCHEMA: Final[dict[str, Any]] = {
    "title": "Problem",
    "description": "Problem details, as in RFC 9457.",
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["in", "detail"],
                "properties": {"in": {"type": "string"}, "detail": {"type": "string"}},
            },
        },
    },
}
_RETRY_SECONDS: Final = "2"
_UNAVAILABLE: Final[Mapping[type[AutoplayError], str]] = {
    EmbedderUnavailableError: "The embedder is unavailable. Try again, or search with mode 'text'.",
    StoreUnavailableError: "The store is unavailable. Try again, or search with mode 'text'.",
    JournalError: "The journal cannot be used now. Try again.",
    PipelineError: "The pipeline is not running. Try again.",
}
"""What is said of outages. The error itself may name files and services, so it is only logged."""


class ProblemError(Exception):
    """An answer other than success.

    Args:
        status: The HTTP status.
        detail: What happened and what to do, without personal data.
        headers: Headers of the response.
        type: A URI for programs that tell this problem from others of its status.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        headers: Mapping[str, str] | None = None,
        *,
        type: str = "about:blank",
    ) -> None:
        super().__init__(detail)
        self.type = type
        self.status = status
        self.detail = detail
        self.headers = headers


_NOT_KEPT: Final[Mapping[str, str]] = {
    "overflow": "There is no room: the payload was not kept. Send it again.",
    "waiting": "The broker does not answer. Send it again: what comes twice is stored once.",
}


def check_kept(*outcomes: str) -> None:
    """Check that what was accepted is where it is safe.

    Raises:
        ProblemError: 503 if one of the outcomes means that the sender has to send it again.
    """
    for outcome, detail in _NOT_KEPT.items():
        if outcome in outcomes:
            raise ProblemError(503, detail, {"retry-after": "10"})


def problem(
    status: int,
    detail: str,
    headers: Mapping[str, str] | None = None,
    errors: Sequence[Mapping[str, str]] = (),
    *,
    type: str = "about:blank",
) -> Response:
    """Make a response with problem details."""
    body: dict[str, Any] = {
        "type": type,
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    if errors:
        body["errors"] = list(errors)
    return Response(json.dumps(body), status, headers, MEDIA_TYPE)


def handle_problems(app: FastAPI) -> None:
    """Answer errors of an application with problem details."""
    app.add_exception_handler(ProblemError, _raised)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(AutoplayError, _failed)


def _raised(_: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)
    return problem(error.status, error.detail, error.headers, type=error.type)


def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, str(error.detail), error.headers)


def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # Not `input`: it may be personal data. `msg` of a validator names the rule, not the value.
    errors = [
        {"in": ".".join(map(str, one["loc"])), "detail": str(one["msg"])}
        for one in error.errors()[:20]
    ]
    return problem(422, "The request is not valid: see errors.", errors=errors)


def problem_of(error: AutoplayError) -> ProblemError:
    """Return what is said of an error. Of an outage only its kind: the error may name services."""
    if isinstance(error, ConfigurationError | UnsupportedFilterError):
        return ProblemError(422, str(error))
    if isinstance(error, MissingCapabilityError):
        return ProblemError(501, str(error))
    for kind, detail in _UNAVAILABLE.items():
        if isinstance(error, kind):
            return ProblemError(503, detail, {"retry-after": _RETRY_SECONDS})
    if isinstance(error, BackupError):
        return ProblemError(409, str(error))
    return ProblemError(500, "The request failed. The server's log has the reason.")


def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, AutoplayError)
    found = problem_of(error)
    if found.status not in (422, 501):
        route = getattr(request.scope.get("route"), "path_format", "a request")
        _log.error("%s failed: %s", route, describe(error))
    return _raised(request, found)

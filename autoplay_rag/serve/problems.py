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

__all__ = ["MEDIA_TYPE", "SCHEMA", "ProblemError", "handle_problems", "problem"]

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


def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, AutoplayError)
    if isinstance(error, ConfigurationError | UnsupportedFilterError):
        return problem(422, str(error))
    if isinstance(error, MissingCapabilityError):
        return problem(501, str(error))
    route = getattr(request.scope.get("route"), "path_format", "a request")
    _log.error("%s failed: %s", route, describe(error))
    for kind, detail in _UNAVAILABLE.items():
        if isinstance(error, kind):
            return problem(503, detail, {"retry-after": _RETRY_SECONDS})
    if isinstance(error, BackupError):
        return problem(409, str(error))
    return problem(500, "The request failed. The server's log has the reason.")

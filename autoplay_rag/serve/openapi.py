"""The OpenAPI document: the application's own, with problem details and the bearer scheme."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from autoplay_rag.serve.problems import MEDIA_TYPE, SCHEMA

__all__ = ["describe_api"]

_PROBLEM: Final = {
    "description": "A problem: the request is refused, or failed.",
    "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
}
_OPEN: Final = (
    "/healthz",
    "/readyz",
    "/v1/webhooks/{product_id}",
    "/v1/webhooks/{product_id}/{tool}",
)


def describe_api(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document of an application."""
    made = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=app.routes,
    )
    components = made.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own form of a 422
        schemas.pop(name, None)
    schemas["Problem"] = SCHEMA
    components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    for path, methods in made["paths"].items():
        for operation in methods.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = _PROBLEM
            operation["security"] = [{"bearer": []}, *([{}] if path in _OPEN else [])]
    return made

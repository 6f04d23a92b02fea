"""`/settings`: the settings in force, without secrets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from autoplay_rag.serve.access import Access, Needs
from autoplay_rag.serve.inspector.pages import PageRoute, page
from autoplay_rag.serve.serving import Serving, serving_of

__all__ = ["router"]

router = APIRouter(include_in_schema=False, route_class=PageRoute)

_NO_EMBEDDER = "none: the store embeds texts itself, or the pipeline is stopped"
_NOT_SHOWN = ("clock", "rebuild", "adopt")


@router.get("/settings")
async def settings(request: Request, _: Annotated[Access, Depends(Needs("read"))]) -> Response:
    """Show the settings in force."""
    serving = serving_of(request)
    groups = [
        ("Store and model", _parts(serving)),
        ("Pipeline", _pipeline(serving)),
        ("Server", _server(serving)),
        ("Keys", _keys(serving)),
    ]
    return page(request, "settings.html", "Settings", stream="?page=settings", groups=groups)


def _parts(serving: Serving) -> dict[str, str]:
    pipeline = serving.pipeline
    embedder, space = pipeline.embedder, pipeline.space
    found = {
        "store": repr(pipeline.store),
        "embedder": embedder.model if embedder is not None else _NO_EMBEDDER,
    }
    if space is not None:
        sizes = {"journal": space.journal, "store": space.store, "free": space.free}
        found |= {f"{name} bytes": f"{size:,}" for name, size in sizes.items() if size is not None}
    return found


def _pipeline(serving: Serving) -> dict[str, str]:
    found = serving.pipeline.settings
    return {
        one.name: _shown(getattr(found, one.name))
        for one in fields(found)
        if one.name not in _NOT_SHOWN
    }


def _server(serving: Serving) -> dict[str, str]:
    found = serving.settings
    return {
        "version": found.version,
        "hosts": ", ".join(sorted(found.hosts)),
        "cors_origins": ", ".join(sorted(found.cors_origins)) or "none",
        "max_body_bytes": _shown(found.max_body_bytes),
        "rate": f"{found.rate:g} per second and key",
        "job_kinds": ", ".join(sorted(serving.job_kinds)) or "the four of the package",
        "mcp": "served at /mcp" if serving.mcp else "not installed: install the extra `mcp`",
    }


def _keys(serving: Serving) -> dict[str, str]:
    found = serving.settings
    given = {
        "admin key": found.keys.admin,
        "read key": found.keys.read,
        "ingest key": found.keys.ingest,
        "signing key": found.signing,
        "webhook secret": found.webhooks,
    }
    return {name: "not set" if one is None else "set" for name, one in given.items()}


def _shown(value: Any) -> str:
    match value:
        case None:
            said = "none"
        case bool():
            said = "yes" if value else "no"
        case int():
            said = f"{value:,}"
        case float():
            said = f"{value:g}"
        case Mapping():
            said = ", ".join(f"{name}: {_shown(one)}" for name, one in value.items())
        case _ if callable(value):
            said = str(getattr(value, "__qualname__", type(value).__name__))
        case _:
            said = str(value)
    return said

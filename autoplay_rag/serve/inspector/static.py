"""`/static/...`: style and scripts."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Depends
from starlette.responses import Response

from autoplay_rag.serve.access import Access, Needs
from autoplay_rag.serve.inspector.assets import ASSETS
from autoplay_rag.serve.problems import ProblemError

__all__ = ["router"]

router = APIRouter(include_in_schema=False)

# The address changes with the content.
_KEPT: Final = {"cache-control": "public, max-age=31536000, immutable"}


@router.get("/static/{name}")
async def static(name: str, _: Annotated[Access, Depends(Needs("open"))]) -> Response:
    """Return a file."""
    if name not in ASSETS:
        raise ProblemError(404, "There is no file of this name.")
    content, kind, _version = ASSETS[name]
    return Response(content, headers={**_KEPT, "content-type": kind})

"""The Model Context Protocol, as streamable HTTP."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from autoplay_rag.serve.access import Access, Needs
from autoplay_rag.serve.problems import ProblemError
from autoplay_rag.serve.serving import Endpoint, serving_of

__all__ = ["router"]

router = APIRouter()


class _Handled(Response):
    """A response that an ASGI application sends."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__()
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._endpoint.handle(scope, receive, send)


# POST alone: a GET would open a stream that never ends. A tool notes itself in the audit log.
@router.post("/mcp", include_in_schema=False)
async def mcp(request: Request, _: Annotated[Access, Depends(Needs("own"))]) -> Response:
    """Answer a message of an MCP client."""
    endpoint = serving_of(request).mcp
    if endpoint is None:
        raise ProblemError(501, "The server has no MCP: install it with the extra `mcp`.")
    return _Handled(endpoint)

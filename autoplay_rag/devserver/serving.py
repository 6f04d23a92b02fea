"""The HTTP server of the local connector, in the running event loop."""

from __future__ import annotations

import asyncio

import uvicorn
from starlette.types import ASGIApp

from autoplay_rag._loop_server import LoopServer, bind

__all__ = ["ConnectorServer"]

_GRACE_S = 0.05


class ConnectorServer(LoopServer):
    """An HTTP server in the running event loop.

    Args:
        app: The ASGI application.
    """

    def __init__(self, app: ASGIApp) -> None:
        # Only log_config=None with the access log "on" leaves the logging configuration unchanged.
        super().__init__(
            uvicorn.Config(app, http="h11", ws="none", lifespan="off", log_config=None),
            grace=_GRACE_S,
        )
        self._task: asyncio.Task[None] | None = None

    async def listen(self, host: str, port: int) -> int:
        """Start serving.

        Args:
            host: The address to bind.
            port: The port; 0 lets the system choose.

        Returns:
            The port.

        Raises:
            OSError: If the address cannot be bound.
        """
        bound = bind(host, port)
        number: int = bound.getsockname()[1]
        self._task = asyncio.create_task(self.serve([bound]), name="autoplay_rag LocalConnector")
        ready = asyncio.create_task(self.ready())
        try:
            await asyncio.wait({self._task, ready}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
            if not self.started:
                await self.aclose()
                bound.close()
        return number

    async def aclose(self) -> None:
        """Stop serving. Responses that do not end in time are cut off."""
        self.should_exit = True
        if self._task is not None:
            await self._task

"""Runs uvicorn inside an event loop that is already running.

uvicorn expects to own its process: it handles the signals and may wait forever for slow readers.
This server leaves the signals to the process and stops when asked to.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Generator

import uvicorn
from starlette.types import ASGIApp

__all__ = ["LoopServer"]

_GRACE_S = 0.05


class LoopServer(uvicorn.Server):
    """An HTTP server in the running event loop.

    Args:
        app: The ASGI application.
    """

    def __init__(self, app: ASGIApp) -> None:
        # Only log_config=None with the access log "on" leaves the logging configuration unchanged.
        super().__init__(
            uvicorn.Config(app, http="h11", ws="none", lifespan="off", log_config=None)
        )
        self._ready = asyncio.Event()
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
        bound = _bind(host, port)
        number: int = bound.getsockname()[1]
        self._task = asyncio.create_task(self.serve([bound]), name="autoplay_rag LocalConnector")
        ready = asyncio.create_task(self._ready.wait())
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

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Let `listen` return once uvicorn accepts connections."""
        await super().startup(sockets)
        self._ready.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Cut off clients that do not read. uvicorn itself would wait for them."""
        cut = asyncio.get_running_loop().call_later(_GRACE_S, self._cut_connections)
        try:
            await super().shutdown(sockets)
        finally:
            cut.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave the signals to the process."""
        yield

    def _cut_connections(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio disables Nagle's algorithm only for sockets created with an explicit protocol. With
    # Nagle's algorithm, each event would wait 40 ms for an acknowledgement.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.setblocking(False)
    except OSError as error:
        bound.close()
        reason = f"cannot listen on {host}, port {port}: {error.strerror}"
        raise OSError(error.errno, reason) from None
    return bound

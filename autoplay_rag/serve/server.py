"""An HTTP server in the running event loop. It ends open event streams before it stops."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Generator
from typing import Final

import uvicorn
from fastapi import FastAPI

from autoplay_rag.serve.serving import Serving

__all__ = ["HttpServer"]

_STREAMS_SECONDS: Final = 2.0
"""How long open streams have to take their last event."""
_GRACE_SECONDS: Final = 5.0
"""How long requests have to end after that."""


class HttpServer(uvicorn.Server):
    """An HTTP server in the running event loop. It leaves the signals to the process.

    Args:
        app: The application of `create_app`.
        host: The address to bind.
        port: The port; 0 lets the system choose.

    Attributes:
        port: The port.

    Raises:
        OSError: If the address cannot be bound.
    """

    def __init__(self, app: FastAPI, host: str, port: int) -> None:
        # No access log: addresses hold ids of people. Only log_config=None leaves the logging
        # configuration unchanged.
        config = uvicorn.Config(
            app, ws="none", lifespan="on", log_config=None, access_log=False, server_header=False
        )
        super().__init__(config)
        self._serving: Serving = app.state.serving
        self._socket = _bound(host, port)
        self._host = host
        self.port: int = self._socket.getsockname()[1]
        self._ending: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()

    @property
    def url(self) -> str:
        """The address for clients on this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)  # noqa: S104
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    async def run_until_stopped(self) -> None:
        """Serve until `stop` was called. Call it once."""
        try:
            await self.serve([self._socket])
        finally:
            self._socket.close()
            if self._ending is not None:
                await self._ending

    async def ready(self) -> None:
        """Wait until connections are accepted."""
        await self._ready.wait()

    def stop(self) -> None:
        """Stop soon: tell the subscribers, let requests end, and return from `run_until_stopped`.

        Requests that do not end within seconds are cut off.
        """
        if self._ending is None:
            self._ending = asyncio.create_task(self._end(), name="autoplay-server-end")

    async def _end(self) -> None:
        self._serving.end_streams()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STREAMS_SECONDS):
                await self._serving.streams_ended()
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections."""
        await super().startup(sockets)
        self._ready.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Cut off clients that do not read. uvicorn itself would wait for them."""
        cut = asyncio.get_running_loop().call_later(_GRACE_SECONDS, self._cut_connections)
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


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only on sockets with an explicit protocol. Without it, each answer
    # would wait 40 ms for an acknowledgement.
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

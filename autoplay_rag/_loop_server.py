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

__all__ = ["LoopServer", "bind"]


class LoopServer(uvicorn.Server):
    """An HTTP server in the running event loop.

    Args:
        config: The settings of uvicorn.
        grace: Seconds that responses have to end at a stop. Then they are cut off.
    """

    def __init__(self, config: uvicorn.Config, *, grace: float) -> None:
        super().__init__(config)
        self._grace = grace
        self._ready = asyncio.Event()

    async def ready(self) -> None:
        """Wait until connections are accepted."""
        await self._ready.wait()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections."""
        await super().startup(sockets)
        self._ready.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Cut off clients that do not read. uvicorn itself would wait for them."""
        cut = asyncio.get_running_loop().call_later(self._grace, self._cut_connections)
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


def bind(host: str, port: int) -> socket.socket:
    """Bind a socket for a server.

    Args:
        host: The address.
        port: The port; 0 lets the system choose.

    Raises:
        OSError: If the address cannot be bound.
    """
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

"""An HTTP server in the running event loop. It ends open event streams before it stops."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

import uvicorn
from fastapi import FastAPI

from autoplay_rag._loop_server import LoopServer, bind
from autoplay_rag.serve.heads import protocol_with_limit
from autoplay_rag.serve.serving import Receiving

__all__ = ["HttpServer"]

_STREAMS_SECONDS: Final = 2.0
"""How long open streams have to take their last event."""
_GRACE_SECONDS: Final = 5.0
"""How long requests have to end after that."""
_IDLE_SECONDS: Final = 75
"""How long an idle connection stays open. Clients close theirs earlier (httpx after 5 s, nginx after
60): if the server does it first, a request that is under way just then fails."""
_HEAD_SECONDS: Final = 30.0
"""How long a client may take to send the head of a request."""


class HttpServer(LoopServer):
    """An HTTP server in the running event loop. It leaves the signals to the process.

    Args:
        app: The application of `create_app` or `create_relay_app`.
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
            app,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            http=protocol_with_limit(_HEAD_SECONDS),
            timeout_keep_alive=_IDLE_SECONDS,
        )
        super().__init__(config, grace=_GRACE_SECONDS)
        self._serving: Receiving = app.state.serving
        self._socket = bind(host, port)
        self._host = host
        self.port: int = self._socket.getsockname()[1]
        self._ending: asyncio.Task[None] | None = None

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
            self.close()
            if self._ending is not None:
                await self._ending

    def close(self) -> None:
        """Give the port back. For a server that is never run; a run does it at its end."""
        self._socket.close()

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

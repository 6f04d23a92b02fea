"""Closes connections on which the head of a request does not arrive in time.

uvicorn waits for it without limit, so whoever opens connections and sends half a head keeps them, and
their memory, forever.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

__all__ = ["protocol_with_limit"]


def protocol_with_limit(seconds: float) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol with a time limit for the head of a request.

    Args:
        seconds: The time from the first byte of a head, or from the connection, to its last byte.
    """

    class LimitedProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        _waiting: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            super().data_received(data)
            if self.cycle is not before:  # a head is complete, and its request runs
                self._wait_no_longer()
            elif self._waiting is None and (before is None or before.response_complete):
                self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._wait_no_longer()
            super().connection_lost(exc)

        def _wait(self) -> None:
            self._waiting = asyncio.get_running_loop().call_later(seconds, self.transport.close)

        def _wait_no_longer(self) -> None:
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None

    return LimitedProtocol

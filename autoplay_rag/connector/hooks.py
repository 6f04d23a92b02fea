"""`on_connect` and `on_disconnect`: one after the other, beside the reader."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from autoplay_rag.connector.callbacks import Callback

__all__ = ["ConnectionHooks"]

logger = logging.getLogger(__name__)

_LONGEST: Final = 30.0


class ConnectionHooks:
    """Runs the hooks in the order of the events, each for at most 30 seconds.

    Reading goes on meanwhile; only the callbacks for payloads wait until `on_connect` has ended,
    so that it can reset what they use.
    """

    def __init__(self, on_connect: Callback | None, on_disconnect: Callback | None) -> None:
        self._on_connect = on_connect
        self._on_disconnect = on_disconnect
        self._last: asyncio.Task[None] | None = None

    def connected(self) -> asyncio.Event | None:
        """Start `on_connect`.

        Returns:
            An event that is set when it has ended; None if there is no such hook.
        """
        if self._on_connect is None:
            return None
        ended = asyncio.Event()
        self._then(self._on_connect, "on_connect", ended)
        return ended

    def lost(self) -> None:
        """Start `on_disconnect`."""
        if self._on_disconnect is not None:
            self._then(self._on_disconnect, "on_disconnect", asyncio.Event())

    async def join(self) -> None:
        """Wait until all have ended."""
        if self._last is not None:
            await asyncio.wait({self._last})

    async def cancel(self) -> None:
        """Cancel those that have not ended, and wait for their end."""
        if self._last is not None:
            self._last.cancel()
            await self.join()

    def _then(self, hook: Callback, name: str, ended: asyncio.Event) -> None:
        self._last = asyncio.create_task(self._run(self._last, hook, name, ended))

    async def _run(
        self, previous: asyncio.Task[None] | None, hook: Callback, name: str, ended: asyncio.Event
    ) -> None:
        try:
            if previous is not None:
                await previous
            async with asyncio.timeout(_LONGEST):
                await hook.call()
        except Exception:
            logger.exception("%s raised, or took more than %g s", name, _LONGEST)
        finally:
            ended.set()

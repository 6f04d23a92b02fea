"""`on_connect` and `on_disconnect`: one after the other, beside the reader."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from autoplay_rag._cancelled import is_cancelled
from autoplay_rag.connector.callbacks import Callback

__all__ = ["ConnectionHooks"]

logger = logging.getLogger(__name__)

_LONGEST: Final = 30.0
_GRACE: Final = 5.0


class ConnectionHooks:
    """Runs the hooks in the order of the events, each for at most 30 seconds.

    Reading goes on meanwhile; only the callbacks for payloads wait until `on_connect` has ended,
    so that it can reset what they use. Connections that come and go while a hook still works are
    told as one: so no more than three calls ever wait.
    """

    def __init__(self, on_connect: Callback | None, on_disconnect: Callback | None) -> None:
        self._on_connect = on_connect
        self._on_disconnect = on_disconnect
        self._waiting: list[_Call] = []
        self._worker: asyncio.Task[None] | None = None

    def connected(self) -> asyncio.Event | None:
        """Have `on_connect` called.

        Returns:
            An event that is set when it has ended, or 30 seconds from now; None if there is no
            such hook.
        """
        if self._on_connect is None:
            return None
        gate = asyncio.Event()
        asyncio.get_running_loop().call_later(_LONGEST, gate.set)
        call = _Call("on_connect", self._on_connect)
        call.gates.append(gate)
        for position, earlier in enumerate(self._waiting):
            if earlier.hook is self._on_connect:
                # It has not begun, and its connection is gone: its payloads wait for this one.
                call.gates += [gate for gate in earlier.gates if not gate.is_set()]
                del self._waiting[position:]
                break
        self._add(call)
        return gate

    def lost(self) -> None:
        """Have `on_disconnect` called."""
        if self._on_disconnect is None:
            return
        if not self._waiting or self._waiting[-1].hook is not self._on_disconnect:
            self._add(_Call("on_disconnect", self._on_disconnect))

    async def join(self, within: float) -> None:
        """Wait until all have ended; after `within` seconds cancel what has not."""
        if self._worker is None:
            return
        _, late = await asyncio.wait({self._worker}, timeout=within)
        if late:
            logger.warning("a hook had not ended when the time to end was up, and is cancelled")
            await self.cancel()

    async def cancel(self) -> None:
        """Cancel those that have not ended, and wait for their end, within reason."""
        if self._worker is None:
            return
        self._worker.cancel()
        _, late = await asyncio.wait({self._worker}, timeout=_GRACE)
        if late:
            logger.error("a hook does not end although cancelled")

    def _add(self, call: _Call) -> None:
        self._waiting.append(call)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())

    async def _work(self) -> None:
        while self._waiting:
            call = self._waiting.pop(0)
            try:
                await self._run(call)
            finally:
                for gate in call.gates:
                    gate.set()

    async def _run(self, call: _Call) -> None:
        try:
            async with asyncio.timeout(_LONGEST):
                await call.hook.call()
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and is_cancelled():
                raise
            logger.exception("%s raised, or took more than %g s", call.name, _LONGEST)


class _Call:
    """One call of a hook, and who waits for its end."""

    __slots__ = ("gates", "hook", "name")

    def __init__(self, name: str, hook: Callback) -> None:
        self.name = name
        self.hook = hook
        self.gates: list[asyncio.Event] = []

"""Runs `on_connect` and `on_disconnect` one after the other, concurrently with the reader."""

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

    Reading continues meanwhile. Only payload callbacks wait until `on_connect` has ended, so that
    it can reset what they use. Connects and disconnects during a running hook are coalesced, so
    at most three calls wait.
    """

    def __init__(self, on_connect: Callback | None, on_disconnect: Callback | None) -> None:
        self._on_connect = on_connect
        self._on_disconnect = on_disconnect
        self._waiting: list[_Call] = []
        self._worker: asyncio.Task[None] | None = None

    def connected(self) -> asyncio.Event | None:
        """Schedule `on_connect`.

        Returns:
            An event that is set when the hook has ended, or after 30 seconds; None if there is no
            hook.
        """
        if self._on_connect is None:
            return None
        gate = asyncio.Event()
        asyncio.get_running_loop().call_later(_LONGEST, gate.set)
        call = _Call("on_connect", self._on_connect)
        call.gates.append(gate)
        for position, earlier in enumerate(self._waiting):
            if earlier.hook is self._on_connect:
                # It has not started and its connection is gone. Its payloads wait for this call.
                call.gates += [gate for gate in earlier.gates if not gate.is_set()]
                del self._waiting[position:]
                break
        self._add(call)
        return gate

    def lost(self) -> None:
        """Schedule `on_disconnect`."""
        if self._on_disconnect is None:
            return
        if not self._waiting or self._waiting[-1].hook is not self._on_disconnect:
            self._add(_Call("on_disconnect", self._on_disconnect))

    async def join(self, within: float) -> None:
        """Wait until all hooks have ended; after `within` seconds cancel the rest."""
        if self._worker is None:
            return
        _, late = await asyncio.wait({self._worker}, timeout=within)
        if late:
            logger.warning("a hook had not ended when the time to end was up, and is cancelled")
            await self.cancel()

    async def cancel(self) -> None:
        """Cancel hooks that have not ended, and wait for at most 5 seconds for them to end."""
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
    """One call of a hook, and the gates to open when it has ended."""

    __slots__ = ("gates", "hook", "name")

    def __init__(self, name: str, hook: Callback) -> None:
        self.name = name
        self.hook = hook
        self.gates: list[asyncio.Event] = []

"""Lets the store give back the space of deleted chunks, now and then."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from autoplay_rag._backoff import grown_delay
from autoplay_rag._describe import describe
from autoplay_rag.stores.base import Store

__all__ = ["Compactor"]

_log = logging.getLogger(__name__)

_FIRST_SECONDS: Final = 60.0
_EVERY_SECONDS: Final = 600.0
"""The pauses before the first look and between two. A look that finds nothing to do takes the store
some milliseconds."""
_FIRST_REPEAT_SECONDS: Final = 10.0
_LONGEST_REPEAT_SECONDS: Final = 3600.0


class Compactor:
    """Calls `Store.compact` a minute after the start and every ten minutes.

    Args:
        store: Decides itself whether it needs to be written anew.
        first: Seconds before the first call.
        every: Seconds between two calls.
        repeat: Seconds before the call is repeated after a failure; they double with each further
            failure.
    """

    def __init__(
        self,
        store: Store,
        *,
        first: float = _FIRST_SECONDS,
        every: float = _EVERY_SECONDS,
        repeat: float = _FIRST_REPEAT_SECONDS,
    ) -> None:
        self._store = store
        self._first = first
        self._every = every
        self._repeat = repeat
        self._problem: str | None = None

    @property
    def problems(self) -> list[str]:
        """Current failures, one line each. Readable from any thread."""
        return [self._problem] if self._problem else []

    async def run(self) -> None:
        """Run until cancelled."""
        failures = 0
        await asyncio.sleep(self._first)
        while True:
            try:
                if await self._store.compact():
                    _log.info("the store was written anew without its deleted chunks")
                failures, self._problem = 0, None
            except Exception as error:  # noqa: BLE001 - of the store: retried
                problem = f"the store cannot be written anew without its deleted chunks: {describe(error)}"
                if self._problem is None:
                    _log.error("%s; retrying", problem)
                self._problem = problem
                failures += 1
            await asyncio.sleep(self._pause(failures))

    def _pause(self, failures: int) -> float:
        if not failures:
            return self._every
        return grown_delay(failures - 1, self._repeat, _LONGEST_REPEAT_SECONDS)

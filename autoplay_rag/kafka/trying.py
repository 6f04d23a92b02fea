"""Attempts at what may fail for as long as a broker or a database is away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, TypeVar

from autoplay_rag._backoff import grown_delay
from autoplay_rag.errors import BrokerError, JournalError

__all__ = ["Attempts"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

_RETRY_SECONDS: Final = 1.0
_LONGEST_PAUSE: Final = 10.0


class Attempts:
    """Repeats work until it succeeds or this is to stop, and knows the current failure.

    Args:
        place: What the work is done with, for people.

    Attributes:
        stopping: Set by `stop`.
        problem: The current failure; None if there is none.
    """

    def __init__(self, place: object) -> None:
        self._place = place
        self.stopping = asyncio.Event()
        self.problem: str | None = None

    def stop(self) -> None:
        """End all attempts and pauses, now and later."""
        self.stopping.set()

    def fail(self, why: str) -> None:
        """Note a failure. The first one is logged."""
        if self.problem is None:
            _log.error("the %s: %s; trying again", self._place, why)
        self.problem = why

    def succeed(self) -> None:
        """Note that it works again."""
        self.problem = None

    async def until_stopped(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T | None:
        """Repeat work until it succeeds; return None if this is to stop."""
        failures = 0
        while not self.stopping.is_set():
            try:
                return await self.unless_stopped(work)
            except (BrokerError, JournalError) as error:
                self.fail(str(error))
                await self.pause_after(failures)
                failures += 1
        return None

    async def unless_stopped(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T | None:
        """Do work once; return None if this is to stop before it has ended."""
        working = asyncio.ensure_future(work())
        stopped = asyncio.ensure_future(self.stopping.wait())
        try:
            await asyncio.wait([working, stopped], return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                return None
            found = working.result()
            self.succeed()
            return found
        finally:
            for task in (working, stopped):
                task.cancel()
            await asyncio.wait([working, stopped])

    async def pause_after(self, failures: int) -> None:
        """Wait before the next attempt.

        Args:
            failures: Failures in a row before the last one.
        """
        await self.pause(grown_delay(failures, _RETRY_SECONDS, _LONGEST_PAUSE))

    async def pause(self, seconds: float) -> None:
        """Wait, but not after `stop`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.stopping.wait()

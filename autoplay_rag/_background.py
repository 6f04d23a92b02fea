"""Work beside a pipeline: woken when there is some, repeated after failures, and reported."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod

from autoplay_rag._backoff import grown_delay
from autoplay_rag.errors import JournalError

__all__ = ["BackgroundWork"]

_log = logging.getLogger(__name__)


class BackgroundWork(ABC):
    """One kind of work that is in the journal, and so goes on after a restart.

    Subclasses implement `_work`, and call `wake` when there may be work.

    Args:
        failure: What a failure means, for `problems` and the log.
        longest_pause: The most seconds between two attempts after failures.
        every: Seconds between two runs without a call of `wake`; None for no such runs.
        spacing: The fewest seconds from the start of a run to the next. What is woken for meanwhile
            is done together.

    Example:
        >>> class Printer(BackgroundWork):
        ...     async def _work(self):
        ...         print("working")
        >>> async def main():
        ...     printer = Printer("printing failed")
        ...     printer.wake()
        ...     running = asyncio.create_task(printer.run())
        ...     await printer.wait()
        ...     running.cancel()
        ...     await asyncio.wait([running])
        >>> asyncio.run(main())
        working
    """

    _SHORTEST_PAUSE = 1.0

    def __init__(
        self,
        failure: str,
        *,
        longest_pause: float = 600.0,
        every: float | None = None,
        spacing: float = 0.0,
    ) -> None:
        self._failure = failure
        self._longest_pause = longest_pause
        self._every = every
        self._spacing = spacing
        self._woken = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._problem: str | None = None

    @property
    def problems(self) -> list[str]:
        """Current failures, one line each. Readable from any thread."""
        return [self._problem] if self._problem else []

    @property
    def idle(self) -> bool:
        """Whether no work is left. What the store rejects does not count."""
        return self._idle.is_set()

    async def wait(self) -> None:
        """Wait until `idle`."""
        await self._idle.wait()

    def wake(self) -> None:
        """Look for work now."""
        self._idle.clear()
        self._woken.set()

    async def run(self) -> None:
        """Run until cancelled."""
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            try:
                async with asyncio.timeout(self._pause(failures)):
                    await self._woken.wait()
            except TimeoutError:
                pass
            started = loop.time()
            self._woken.clear()
            left = False
            try:
                error = await self._work()
            except JournalError as failed:
                error, left = str(failed), True
            if error is not None and self._problem is None:
                _log.error("%s: %s", self._failure, error)
            failures = 0 if error is None else failures + 1
            self._problem = None if error is None else f"{self._failure}: {error}"
            if not left and not self._woken.is_set():
                self._idle.set()
            if self._spacing:
                await asyncio.sleep(max(0.0, started + self._spacing - loop.time()))

    def _pause(self, failures: int) -> float | None:
        if not failures:
            return self._every
        return grown_delay(failures - 1, self._SHORTEST_PAUSE, self._longest_pause)

    @abstractmethod
    async def _work(self) -> str | None:
        """Do all the work there is.

        Returns:
            An error of the store, which is retried; None if there was none.

        Raises:
            JournalError: If the journal fails. The work counts as left, and is retried.
        """

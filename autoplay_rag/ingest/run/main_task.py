"""The task in which a pipeline works, and the calls that end when it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from autoplay_rag._describe import describe
from autoplay_rag.errors import AutoplayError, PipelineError
from autoplay_rag.ingest.run.condition import Condition
from autoplay_rag.journal.base import Queue

__all__ = ["MainTask", "report_failure"]

_log = logging.getLogger(__name__)

T = TypeVar("T")


class MainTask:
    """Runs the work of a pipeline as one task. Its failure is the pipeline's.

    A call that needs the pipeline's work would wait forever once that has ended. `run_beside` and
    `ends_first` end with it.

    Args:
        condition: Keeps the failure.
        queue: Records it for other processes.
    """

    task: asyncio.Task[None]

    def __init__(self, condition: Condition, queue: Queue) -> None:
        self._condition = condition
        self._queue = queue

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Start the work."""
        self.task = asyncio.create_task(self._run(work), name="autoplay-ingest")
        self.task.add_done_callback(report_failure)

    async def _run(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._condition.failure = f"the pipeline failed: {describe(_first_of(error))}"
            with suppress(AutoplayError):
                await self._queue.note_health(self._condition.health)
            raise

    def fail(self, why: str) -> None:
        """Stop the work for good."""
        self._condition.failure = self._condition.failure or why
        self.task.cancel()

    async def stop(self, within: float) -> bool:
        """Cancel the work, and wait for its end.

        Args:
            within: Seconds to wait.

        Returns:
            Whether it ended in time.
        """
        self.task.cancel()
        _, busy = await asyncio.wait([self.task], timeout=within)
        return not busy

    async def run_beside(self, work: Coroutine[Any, Any, T]) -> T:
        """Await a call that needs the pipeline's own work.

        Raises:
            PipelineError: If the pipeline stops first.
        """
        working = asyncio.ensure_future(work)
        try:
            await asyncio.wait([working, self.task], return_when=asyncio.FIRST_COMPLETED)
        finally:
            if stopped := not working.done():
                working.cancel()
                await asyncio.wait([working])
        if stopped:
            self.check(ended=False)
        return working.result()

    async def ends_first(self, wait: Coroutine[Any, Any, None]) -> bool:
        """Await something that only the pipeline's own work brings about.

        Returns:
            Whether it came about; False if the pipeline stopped first.
        """
        waiting = asyncio.create_task(wait)
        try:
            await asyncio.wait([waiting, self.task], return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if not waiting.done() or waiting.cancelled():
            return False
        waiting.result()
        return True

    def check(self, *, ended: bool) -> None:
        """Check what `ends_first` returned.

        Raises:
            PipelineError: If the pipeline stopped first.
        """
        if not ended:
            raise PipelineError(
                f"{self._condition.health}; the pipeline stores nothing more: see the log"
            )


def report_failure(task: asyncio.Task[None]) -> None:
    """Log the error of a task whose end stops the pipeline."""
    if not task.cancelled() and (error := task.exception()):
        _log.critical("the pipeline failed and stores nothing more", exc_info=error)


def _first_of(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

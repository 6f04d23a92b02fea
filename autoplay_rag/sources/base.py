"""What a source is: something that yields payloads, and calls back with them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

from autoplay_rag.payloads import ActionsPayload, Payload, SummaryPayload

__all__ = ["Source"]


@runtime_checkable
class Source(Protocol):
    """Yields payloads. `AsyncConnectorClient` and `LiveActivitySource` are sources.

    `IngestPipeline.attach` and `IngestPipeline.ingest` take any source, and so do the loaders and
    readers. A source is used in one way at a time: with callbacks, or with `stream`.
    """

    def on_actions(self, fn: Callable[[ActionsPayload], Any], /) -> Any:
        """Add a callback for batches of actions."""

    def on_summary(self, fn: Callable[[SummaryPayload], Any], /) -> Any:
        """Add a callback for summaries."""

    async def run(self) -> None:
        """Read and call back until `stop`, or until an error that a retry cannot fix."""

    def run_in_background(self) -> asyncio.Task[None]:
        """Start `run` as a task."""

    def stop(self) -> None:
        """Stop reading. Safe at any time, and more than once."""

    def stream(
        self, limit: int | None = None, seconds: float | None = None, idle: float | None = None
    ) -> AsyncGenerator[Payload, None]:
        """Iterate over the payloads, without callbacks, until a limit."""

    @property
    def url(self) -> str:
        """Where it reads, safe to show."""

    @property
    def state(self) -> str:
        """What it does now; "failed" once it ended with an error."""

    @property
    def last_error(self) -> BaseException | None:
        """Why the last attempt failed; None if none has."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

"""The lifespan of an application: what it serves runs as long as the application does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from autoplay_rag.errors import PipelineError

__all__ = ["Served", "started"]


class Served(Protocol):
    """A pipeline, or a relay."""

    @property
    def is_running(self) -> bool:
        """Whether it runs."""

    async def start(self) -> None:
        """Start it. Raises `PipelineError` if it is running already."""

    async def aclose(self) -> None:
        """Close it."""


@asynccontextmanager
async def started(served: Served) -> AsyncIterator[None]:
    """Start something before the block and close it after, unless it was running already.

    Args:
        served: What to start. If it was running, its owner closes it.

    Raises:
        AutoplayError: Or a subclass, if it cannot be started.
    """
    try:
        await served.start()
        owned = True
    except PipelineError:
        if not served.is_running:
            raise
        owned = False
    try:
        yield
    finally:
        if owned:
            await served.aclose()

"""Dead letters, as the pipeline's owner handles them."""

from __future__ import annotations

from collections.abc import Sequence

from autoplay_rag.journal.base import DeadLetter, Queue

__all__ = ["DeadLetters"]


class DeadLetters:
    """Payloads that could not be stored: each with its error. None of them stops the others.

    Args:
        queue: Keeps them.

    Example:
        >>> import asyncio
        >>> from autoplay_rag import IngestPipeline
        >>> from autoplay_rag.stores import MemoryStore
        >>> async def main():
        ...     async with IngestPipeline(store=MemoryStore()) as pipeline:
        ...         for letter in await pipeline.dead_letters.list():
        ...             print(letter.id, letter.error)
        ...         return await pipeline.dead_letters.retry()
        >>> asyncio.run(main())
        0
    """

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    async def list(self, limit: int = 1000) -> list[DeadLetter]:
        """The dead letters, oldest first, at most `limit`."""
        return await self._queue.dead_letters(limit)

    async def retry(self, ids: Sequence[int] | None = None) -> int:
        """Put dead letters back into the queue.

        Letters of which `redact` left nothing cannot be retried; they stay.

        Args:
            ids: Which; None for all.

        Returns:
            How many were put back.
        """
        return len(await self._queue.retry(ids))

    async def discard(self, ids: Sequence[int] | None = None) -> int:
        """Drop dead letters for good.

        Args:
            ids: Which; None for all.

        Returns:
            How many were dropped.
        """
        return await self._queue.discard(ids)

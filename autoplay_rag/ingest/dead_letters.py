"""The public interface to a pipeline's dead letters."""

from __future__ import annotations

from collections.abc import Sequence

from autoplay_rag.journal.base import DeadLetter, Queue

__all__ = ["DeadLetters"]


class DeadLetters:
    """Payloads that could not be stored, each with its error. They do not block other payloads.

    Args:
        queue: The queue that keeps the dead letters.

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

    async def list(self, limit: int = 1000, *, after: int = 0) -> list[DeadLetter]:
        """Return at most `limit` dead letters, oldest first.

        Args:
            limit: The most to return.
            after: Only those with a greater id: give the last id of the page before.
        """
        return await self._queue.dead_letters(limit, after)

    async def retry(self, ids: Sequence[int] | None = None) -> int:
        """Put dead letters back into the queue.

        Letters without a body cannot be retried, and stay dead: `redact` failed, or a message of a topic
        was no payload.

        Args:
            ids: The ids of the letters; None for all.

        Returns:
            The number of letters that were put back.
        """
        return len(await self._queue.retry(ids))

    async def discard(self, ids: Sequence[int] | None = None) -> int:
        """Delete dead letters permanently.

        Args:
            ids: The ids of the letters; None for all.

        Returns:
            The number of letters that were deleted.
        """
        return await self._queue.discard(ids)

"""The embedder that fits the vectors in the store, which may be exchanged while searches run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from autoplay_rag.embedders.base import Embedder

__all__ = ["Serving"]

_LOOK_SECONDS: Final = 0.01


class Serving:
    """The embedder for questions.

    A search embeds its question and then asks the store. If the store's vectors were exchanged in
    between, the two do not fit: the search has to be made again.

    Args:
        embedder: The embedder; None if the store embeds texts itself.

    Attributes:
        embedder: The current one.

    Example:
        >>> serving = Serving(None)
        >>> moment = serving.moment
        >>> with serving.exchange(None):
        ...     pass
        >>> serving.moment == moment
        False
    """

    def __init__(self, embedder: Embedder | None) -> None:
        self.embedder = embedder
        self._steps = 0

    @property
    def moment(self) -> int:
        """Another number after each exchange. Readable from any thread."""
        return self._steps

    @contextmanager
    def exchange(self, embedder: Embedder | None) -> Iterator[None]:
        """Exchange the store's vectors inside the block. The embedder follows if it succeeds."""
        self._steps += 1
        try:
            yield
            self.embedder = embedder
        finally:
            self._steps += 1

    async def wait(self) -> int:
        """Wait until no exchange is under way, and return `moment`."""
        while self._steps % 2:  # noqa: ASYNC110 - the searches may run on other loops
            await asyncio.sleep(_LOOK_SECONDS)
        return self._steps

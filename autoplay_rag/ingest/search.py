"""From a question to the chunks that answer it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from autoplay_rag.embedders.base import Embedder
from autoplay_rag.errors import ConfigurationError, PipelineClosedError
from autoplay_rag.ingest.embedding import PROBE_ID
from autoplay_rag.search.hits import Hit
from autoplay_rag.stores.base import Filter, TextStore, VectorStore

__all__ = ["LoopThread", "search_store"]

T = TypeVar("T")

_GRACE_SECONDS = 5.0
"""How long a search that was cancelled may take to end."""


async def search_store(
    store: VectorStore | TextStore, embedder: Embedder | None, text: str, k: int, filter: Filter
) -> list[Hit]:
    """The `k` best hits for a question, best first.

    What the store returns is held against the filter once more: a store that filters wrongly
    must not show one person's session to another.

    Raises:
        ConfigurationError: If the question is empty or `k` is below 1.
        UnsupportedFilterError: If the store cannot translate the filter.
    """
    if not text.strip():
        raise ConfigurationError("the question is empty")
    if k < 1:
        raise ConfigurationError(f"k is how many hits to return, at least 1, not {k}")
    if isinstance(store, VectorStore):
        assert embedder is not None
        found = await store.query(await embedder.embed_query(text), k, filter)
    else:
        found = await store.search(text, k, filter)
    return [Hit.of(m) for m in found if filter.matches(m.metadata) and m.id != PROBE_ID]


class LoopThread:
    """An event loop in a thread of its own, for callers that have none or may not wait on theirs."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for a coroutine; from any thread but its own.

        Raises:
            PipelineClosedError: If it was closed meanwhile.
        """
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except CancelledError:
            raise PipelineClosedError("the pipeline was closed during the search") from None
        finally:
            future.cancel()

    def close(self) -> None:
        """End the loop and its thread; whoever still waits for it is told."""
        asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=_GRACE_SECONDS)

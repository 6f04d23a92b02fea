"""What a pipeline embeds with: the embedder, its token budget, and the limits of its requests."""

from __future__ import annotations

import logging
from weakref import WeakSet

from autoplay_rag._timings import Timings
from autoplay_rag.embedders.base import Embedder
from autoplay_rag.errors import JournalError
from autoplay_rag.ingest.embedding import Embedding, TokenBudget, today
from autoplay_rag.ingest.retries import RequestLimits
from autoplay_rag.ingest.settings import Settings
from autoplay_rag.journal.base import Queue

__all__ = ["ModelInUse"]

_log = logging.getLogger(__name__)


class ModelInUse:
    """The embedder of a running pipeline. A re-embedding exchanges it.

    Args:
        embedder: The first embedder; None if the store embeds texts itself.
        settings: The options of the pipeline.
        timings: Measures the requests.
        queue: Keeps the number of tokens spent today.

    Attributes:
        embedder: The current one.
        embedding: Calls it; None without an embedder, and before `begin`.
    """

    def __init__(
        self, embedder: Embedder | None, settings: Settings, timings: Timings, queue: Queue
    ) -> None:
        self.embedder = embedder
        self.embedding: Embedding | None = None
        self._per_day = settings.max_embed_tokens_per_day
        self._remembered = settings.remembered_vectors
        self._timings = timings
        self._queue = queue
        self._budget: TokenBudget
        self._made: WeakSet[Embedding] = WeakSet()

    async def begin(self) -> None:
        """Read how many tokens were spent today. Call it once the journal is open."""
        if self.embedder is not None:
            spent = await self._queue.tokens(today())
            self._budget = TokenBudget(self._per_day, spent, self._save_tokens)
            self.embedding = self.embedding_of(self.embedder)

    @property
    def name(self) -> str:
        """The name of the embedder; "" without one."""
        return self.embedder.model if self.embedder else ""

    @property
    def limits(self) -> RequestLimits | None:
        """The limits of the embedder's requests; None without one."""
        return self.limits_of(self.embedder) if self.embedder else None

    def limits_of(self, embedder: Embedder) -> RequestLimits:
        """Return the limits of the requests to any embedder."""
        # A larger request would exceed the budget: the first request of a day always passes.
        most = min(embedder.max_request_tokens, self._per_day or embedder.max_request_tokens)
        return RequestLimits(embedder.max_inputs, most)

    def embedding_of(self, embedder: Embedder) -> Embedding:
        """Return what calls another embedder within the same budget."""
        made = Embedding(embedder, self._budget, self._remembered, self._timings)
        self._made.add(made)
        return made

    def exchange(self, embedder: Embedder, embedding: Embedding) -> None:
        """Use another embedder from now on."""
        self.embedder, self.embedding = embedder, embedding

    def forget_vectors(self) -> None:
        """Forget all remembered vectors, those of a model that is to replace this one included."""
        for embedding in self._made:
            embedding.clear()

    def count_tokens(self, text: str) -> int:
        """Return the tokens of a text, as the embedder counts them; 0 without one."""
        return self.embedder.count_tokens(text) if self.embedder else 0

    async def _save_tokens(self, day: str, tokens: int) -> None:
        try:
            await self._queue.note_tokens(day, tokens)
        except JournalError as error:
            _log.error("the day's token count could not be saved: %s", error)

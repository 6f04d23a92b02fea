"""Chunks to vectors: one request for many sessions, nothing embedded twice, every vector checked."""

from __future__ import annotations

import asyncio
import math
from array import array
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta

from autoplay_rag.embedders.base import Embedder
from autoplay_rag.errors import EmbedderRejectedError, EmbedderUnavailableError
from autoplay_rag.ingest.plan import PlannedChunk
from autoplay_rag.stores.base import Vector

__all__ = ["PROBE", "Embedding", "TokenBudget"]

PROBE = "Is anybody there?"
"""A text that any healthy service takes."""
_STEP = 64
"""Vectors checked before the loop is let go for a moment."""


class TokenBudget:
    """The most tokens embedded in one day (UTC).

    Args:
        per_day: The budget; None is no limit.
        spent: What the journal remembers of today.
        save: Called with day and tokens after each request.
    """

    def __init__(
        self, per_day: int | None, spent: int, save: Callable[[str, int], Awaitable[None]]
    ) -> None:
        self._per_day = per_day
        self._save = save
        self._day = today()
        self._spent = spent

    def check(self, tokens: int) -> None:
        """Refuse what would go beyond the budget; one request a day always passes.

        Raises:
            EmbedderUnavailableError: Until midnight, UTC.
        """
        if self._per_day is None:
            return
        if self._day != today():
            self._day, self._spent = today(), 0
        if self._spent and self._spent + tokens > self._per_day:
            now = datetime.now(UTC)
            midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
            raise EmbedderUnavailableError(
                f"max_embed_tokens_per_day={self._per_day:,} is used up; embedding goes on at "
                "midnight UTC, journalling goes on meanwhile",
                retry_after=(midnight - now).total_seconds(),
            )

    async def spend(self, tokens: int) -> None:
        """Count tokens that were embedded."""
        if self._per_day is not None:
            self._spent += tokens
            await self._save(self._day, self._spent)


class Embedding:
    """Calls the embedder for chunks.

    Args:
        embedder: Makes the vectors.
        budget: Limits the tokens of a day.
        remembered: How many texts' vectors are kept for reuse.
    """

    def __init__(self, embedder: Embedder, budget: TokenBudget, remembered: int) -> None:
        self._embedder = embedder
        self._budget = budget
        self._remembered = remembered
        self._vectors: OrderedDict[str, Vector] = OrderedDict()
        self._dimension: int | None = None
        self._counted = embedder.tokens_used or 0
        self._estimated = 0
        self.requests = 0
        self.texts = 0
        self.tokens = 0
        self.reused = 0

    async def request(self, chunks: Sequence[PlannedChunk]) -> list[Vector]:
        """One vector for each chunk; equal texts are embedded once.

        Raises:
            EmbedderRejectedError: If what came back is no set of proper vectors.
            EmbedderUnavailableError: If the day's budget is used up.
        """
        missing = {c.text: c.tokens for c in chunks if c.text not in self._vectors}
        found: dict[str, Vector] = {}
        for chunk in chunks:
            if chunk.text not in missing:
                self._vectors.move_to_end(chunk.text)
                found[chunk.text] = self._vectors[chunk.text]
        if missing:
            found |= await self._embed(list(missing), sum(missing.values()))
        self.reused += len(chunks) - len(missing)
        return [found[chunk.text] for chunk in chunks]

    async def probe(self) -> None:
        """Embed a text that any healthy embedder takes."""
        self._checked(await self._embedder.embed([PROBE]), 0)

    async def _embed(self, texts: list[str], tokens: int) -> dict[str, Vector]:
        self._budget.check(self._expected(tokens))
        self.requests += 1
        self.texts += len(texts)
        vectors = await self._embedder.embed(texts)
        if len(vectors) != len(texts):
            raise EmbedderRejectedError(
                f"{self._embedder.model} returned {len(vectors)} vectors for {len(texts)} texts"
            )
        found: dict[str, Vector] = {}
        for position, text in enumerate(texts):
            found[text] = self._checked(vectors, position)
            if position % _STEP == _STEP - 1:
                await asyncio.sleep(0)
        self._remember(found)
        await self._budget.spend(self._spent(tokens))
        return found

    def _expected(self, estimate: int) -> int:
        """What a request will cost, going by how far the estimates were off so far."""
        return estimate * self.tokens // self._estimated if self._estimated else estimate

    def _spent(self, estimate: int) -> int:
        """What was spent since the last call: as the embedder counted, else as estimated."""
        self._estimated += estimate
        spent = estimate
        if self._embedder.tokens_used is not None:
            spent = self._embedder.tokens_used - self._counted
            self._counted += spent
        self.tokens += spent
        return spent

    def _checked(self, vectors: Sequence[Vector], position: int) -> Vector:
        try:
            given = vectors[position]
            vector = given if isinstance(given, array) else array("f", given)
        except (TypeError, IndexError, OverflowError) as error:
            raise EmbedderRejectedError(
                f"{self._embedder.model} returned something that is no vector of numbers"
            ) from error
        if not len(vector) or not math.isfinite(sum(vector)):
            raise EmbedderRejectedError(
                f"{self._embedder.model} returned {'an empty vector' if not vector else 'NaN or infinity'}"
            )
        if self._dimension is None:
            self._dimension = len(vector)
        elif len(vector) != self._dimension:
            raise EmbedderRejectedError(
                f"{self._embedder.model} returned a vector of {len(vector)} dimensions after ones "
                f"of {self._dimension}"
            )
        return vector

    def _remember(self, found: dict[str, Vector]) -> None:
        self._vectors.update(found)
        while len(self._vectors) > self._remembered:
            self._vectors.popitem(last=False)


def today() -> str:
    """The day of the token budget, "2026-01-31", in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%d")

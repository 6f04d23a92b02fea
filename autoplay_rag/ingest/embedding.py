"""Embeds texts: caches vectors, checks them, and limits the tokens per day."""

from __future__ import annotations

import asyncio
import math
from array import array
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import blake2b

from autoplay_rag._timings import Timings
from autoplay_rag._tracing import Origin
from autoplay_rag.content.probe import PROBE
from autoplay_rag.embedders.base import Embedder
from autoplay_rag.errors import EmbedderRejectedError, EmbedderUnavailableError
from autoplay_rag.search.spans import embedding_attributes
from autoplay_rag.stores.base import Vector

__all__ = ["Embedding", "TokenBudget"]

_STEP = 64
"""The number of vectors to check before yielding to the event loop."""


class TokenBudget:
    """Limits the tokens embedded in one day (UTC).

    Args:
        per_day: The most tokens in one day; None for no limit.
        spent: Tokens already spent today.
        save: Called with the day and its spent tokens after each request.

    Example:
        >>> async def save(day, tokens):
        ...     pass
        >>> budget = TokenBudget(1000, 0, save)
        >>> _, tokens = budget.reserve(400)
        >>> tokens
        400
    """

    def __init__(
        self, per_day: int | None, spent: int, save: Callable[[str, int], Awaitable[None]]
    ) -> None:
        self._per_day = per_day
        self._save = save
        self._day = today()
        self._spent = spent

    def reserve(self, tokens: int) -> tuple[str, int]:
        """Reserve tokens of the day's budget before a request.

        The first request of a day always succeeds.

        Args:
            tokens: The tokens that the request is expected to spend.

        Returns:
            The reservation: the day and its tokens. Pass it to `settle` or `release`.

        Raises:
            EmbedderUnavailableError: If the budget is used up. `retry_after` is the time until
                midnight UTC.
        """
        if self._per_day is None:
            return self._day, 0
        if self._day != today():
            self._day, self._spent = today(), 0
        if self._spent and self._spent + tokens > self._per_day:
            now = datetime.now(UTC)
            midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
            raise EmbedderUnavailableError(
                f"max_embed_tokens_per_day={self._per_day:,} is used up; embedding resumes at "
                "midnight UTC, and journalling continues",
                retry_after=(midnight - now).total_seconds(),
            )
        self._spent += tokens
        return self._day, tokens

    def release(self, reserved: tuple[str, int]) -> None:
        """Return the reserved tokens of a request that failed."""
        day, tokens = reserved
        if day == self._day:
            self._spent -= tokens

    async def settle(self, reserved: tuple[str, int], tokens: int) -> None:
        """Replace a reservation by the tokens that the request spent.

        Args:
            reserved: The reservation that `reserve` returned.
            tokens: The tokens that were spent.
        """
        if self._per_day is not None:
            self.release(reserved)
            self._spent += tokens
            await self._save(self._day, self._spent)


class Embedding:
    """Calls the embedder, checks its vectors and counts its tokens.

    Args:
        embedder: Makes the vectors.
        budget: Limits the tokens per day.
        remembered: The number of vectors to cache for repeated texts.
        timings: Measures the requests.

    Attributes:
        requests: Requests made, without probes.
        texts: Texts sent in them.
        tokens: Tokens sent in them, as the embedder reports, otherwise as estimated.
        reused: Texts not sent, because the vector of an equal text was available.

    Example:
        >>> import asyncio
        >>> class Lengths(Embedder):
        ...     model = "lengths"
        ...     async def embed(self, texts):
        ...         return [[float(len(text)), 1.0] for text in texts]
        >>> async def save(day, tokens):
        ...     pass
        >>> embedding = Embedding(Lengths(), TokenBudget(None, 0, save), remembered=100)
        >>> asyncio.run(embedding.request([("one", 1), ("three", 1), ("one", 1)]))[1]
        array('f', [5.0, 1.0])
        >>> embedding.texts, embedding.reused
        (2, 1)
    """

    def __init__(
        self,
        embedder: Embedder,
        budget: TokenBudget,
        remembered: int,
        timings: Timings | None = None,
    ) -> None:
        self._timings = timings or Timings()
        self._embedder = embedder
        self._budget = budget
        self._remembered = remembered
        # By the text's digest, because texts may be long.
        self._vectors: OrderedDict[bytes, Vector] = OrderedDict()
        self._cleared = 0
        self._dimension: int | None = None
        self._counted = embedder.tokens_used or 0
        self._estimated = 0
        self.requests = 0
        self.texts = 0
        self.tokens = 0
        self.reused = 0

    async def request(
        self, items: Sequence[tuple[str, int]], origins: Collection[Origin] = ()
    ) -> list[Vector]:
        """Return one vector per text. Equal texts are embedded once.

        Args:
            items: Each text with its expected tokens.
            origins: The spans of the plans that the texts are from.

        Raises:
            EmbedderRejectedError: If the embedder did not return one valid vector per text.
            EmbedderUnavailableError: If the day's budget is used up.
        """
        missing: dict[str, int] = {}
        found: dict[str, Vector] = {}
        for text, tokens in items:
            key = _digest(text)
            if key in self._vectors:
                self._vectors.move_to_end(key)
                found[text] = self._vectors[key]
            else:
                missing[text] = tokens
        if missing:
            found |= await self._embed(list(missing), sum(missing.values()), origins)
        self.reused += len(items) - len(missing)
        return [found[text] for text, _ in items]

    def clear(self) -> None:
        """Forget the remembered vectors."""
        self._vectors.clear()
        self._cleared += 1

    async def probe(self) -> None:
        """Embed a text that any healthy embedder accepts.

        Raises:
            EmbedderRejectedError: If the embedder did not return a valid vector.
        """
        self._checked(await self._embedder.embed([PROBE]), 0)

    async def _embed(
        self, texts: list[str], tokens: int, origins: Collection[Origin]
    ) -> dict[str, Vector]:
        cleared = self._cleared
        reserved = self._budget.reserve(self._expected(tokens))
        self.requests += 1
        self.texts += len(texts)
        try:
            with self._timings.measured(
                "embedder",
                "texts",
                span=f"embeddings {self._embedder.model}",
                attributes=embedding_attributes(self._embedder.model, len(texts)),
                root=True,
                origins=origins,
            ):
                vectors = await self._embedder.embed(texts)
        except BaseException:
            self._budget.release(reserved)
            raise
        await self._budget.settle(reserved, self._spent(tokens))
        if len(vectors) != len(texts):
            raise EmbedderRejectedError(
                f"{self._embedder.model} returned {len(vectors)} vectors for {len(texts)} texts"
            )
        found: dict[str, Vector] = {}
        for position, text in enumerate(texts):
            found[text] = self._checked(vectors, position)
            if position % _STEP == _STEP - 1:
                await asyncio.sleep(0)
        if cleared == self._cleared:  # otherwise some may be of texts that are forgotten by now
            self._remember(found)
        return found

    def _expected(self, estimate: int) -> int:
        """Correct an estimate by the ratio of spent to estimated tokens so far."""
        return estimate * self.tokens // self._estimated if self._estimated else estimate

    def _spent(self, estimate: int) -> int:
        """Return the tokens spent since the last call, as reported, otherwise as estimated."""
        self._estimated += estimate
        spent = estimate
        if self._embedder.tokens_used:  # 0 after a request: the service does not report usage
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
                f"{self._embedder.model} returned something that is not a vector of numbers"
            ) from error
        if not len(vector) or not math.isfinite(sum(vector)):
            raise EmbedderRejectedError(
                f"{self._embedder.model} returned {'an empty vector' if not vector else 'NaN or infinity'}"
            )
        if self._dimension is None:
            self._dimension = len(vector)
        elif len(vector) != self._dimension:
            raise EmbedderRejectedError(
                f"{self._embedder.model} returned a vector of {len(vector)} dimensions; earlier "
                f"vectors have {self._dimension}"
            )
        return vector

    def _remember(self, found: dict[str, Vector]) -> None:
        self._vectors.update((_digest(text), vector) for text, vector in found.items())
        while len(self._vectors) > self._remembered:
            self._vectors.popitem(last=False)


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()


def today() -> str:
    """Return the day of the token budget in UTC, like "2026-01-31"."""
    return datetime.now(UTC).strftime("%Y-%m-%d")

"""Searches a store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from autoplay_rag.content.probe import PROBE_ID
from autoplay_rag.embedders.base import Embedder
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.search.hits import Hit, Hits
from autoplay_rag.stores.base import Filter, TextStore, VectorStore

__all__ = ["Searcher", "filter_of"]


@dataclass(frozen=True, slots=True)
class Searcher:
    """Answers questions from a store.

    Attributes:
        store: The store to search. It must be started.
        embedder: Embeds questions; None if the store computes the embeddings.
    """

    store: VectorStore | TextStore
    embedder: Embedder | None

    async def search(self, text: str, k: int, filter: Filter) -> Hits:
        """Return the `k` best hits for a question, best first.

        The filter is applied again to the store's results: a store that filters wrongly must not
        show one person's session to another.

        Raises:
            ConfigurationError: If the question is empty or `k` is below 1.
            UnsupportedFilterError: If the store cannot translate the filter.
        """
        if not text.strip():
            raise ConfigurationError("the question is empty")
        if k < 1:
            raise ConfigurationError(f"k is how many hits to return, at least 1, not {k}")
        if isinstance(self.store, VectorStore):
            assert self.embedder is not None
            found = await self.store.query(await self.embedder.embed_query(text), k, filter)
        else:
            found = await self.store.search(text, k, filter)
        return Hits(
            Hit.of(match.id, match.text, match.score, match.metadata)
            for match in found
            if filter.matches(match.metadata) and match.id != PROBE_ID
        )


def filter_of(filter: Filter | None, **conditions: Any) -> Filter:
    """Return one filter, given as a `Filter` or by its fields.

    Raises:
        ConfigurationError: If both are given, or a time is invalid.
    """
    given = {name: value for name, value in conditions.items() if value is not None}
    if filter is not None and given:
        raise ConfigurationError("give either filter=... or its fields, not both")
    return filter or Filter(**given)

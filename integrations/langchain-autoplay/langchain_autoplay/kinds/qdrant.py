"""LangChain's Qdrant store."""

from __future__ import annotations

import asyncio
from typing import Any

from autoplay_rag import Filter
from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore

from langchain_autoplay.filters import qdrant
from langchain_autoplay.kinds.base import FilterBuilder, Kind, Scored

__all__ = ["Qdrant"]

_ADDED = ("_id", "_collection_name")
"""Keys that the store adds to the metadata of returned documents."""


class Qdrant(Kind):
    """`QdrantVectorStore` of `langchain_qdrant`. Deletes and gets through LangChain's base class."""

    def __init__(self, store: VectorStore, filter_builder: FilterBuilder | None) -> None:
        super().__init__(store, filter_builder)
        if filter_builder is None:
            self.translate = self._filter
        # `QdrantClient(":memory:")` has this attribute; a client of a server does not.
        local = getattr(self.store.client, "_client", None)
        self.persistent = getattr(local, "persistent", True) is not False

    async def count(self) -> int:
        """As in `Kind`."""
        store = self.store
        found = await asyncio.to_thread(store.client.count, store.collection_name, exact=True)
        return int(found.count)

    async def get(self, ids: list[str]) -> list[Document]:
        """As in `Kind`."""
        return [_stored(document) for document in await super().get(ids)]

    def similarity(self, score: float) -> float:
        """Convert the Euclidean distance; other scores are similarities."""
        distance = getattr(self.store, "distance", "")
        euclidean = str(getattr(distance, "value", distance)).lower().startswith("euclid")
        return 1 - score * score / 2 if euclidean else score

    async def _found(self, text: str, k: int, **options: Any) -> Scored:
        found = await super()._found(text, k, **options)
        return [(_stored(document), score) for document, score in found]

    def _filter(self, filter: Filter) -> Any:
        return qdrant(filter, self.store.metadata_payload_key)


def _stored(document: Document) -> Document:
    metadata = {key: value for key, value in document.metadata.items() if key not in _ADDED}
    return document.model_copy(update={"metadata": metadata})

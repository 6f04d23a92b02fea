"""LangChain's FAISS."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from autoplay_rag.errors import StoreError
from autoplay_rag.stores import Capability, Changes
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from langchain_autoplay.filters import over_metadata
from langchain_autoplay.kinds.base import FilterBuilder, Kind, Scored, changed

__all__ = ["Faiss"]


class Faiss(Kind):
    """`FAISS` of `langchain_community`. Two threads must not use the index at the same time.

    It is not persistent: an index that is empty at the start has lost what the journal lists. An index
    that was saved with `save_local` and loaded is not empty.
    """

    persistent = False
    translate = staticmethod(over_metadata)

    def __init__(self, store: VectorStore, filter_builder: FilterBuilder | None) -> None:
        super().__init__(store, filter_builder)
        self._lock = threading.Lock()

    async def add(self, documents: list[Document]) -> None:
        """As in `Kind`. Embeds, then deletes known ids, because FAISS would keep both, then adds."""
        embeddings: Embeddings | None = self.store.embeddings
        if embeddings is None:
            raise StoreError(
                "this FAISS was made with a plain function: make it with an Embeddings"
            )
        texts = [document.page_content for document in documents]
        vectors = await embeddings.aembed_documents(texts)
        await asyncio.to_thread(self._replace, documents, vectors)

    async def delete(self, ids: list[str]) -> None:
        """As in `Kind`; Skips unknown ids, which FAISS refuses."""
        await asyncio.to_thread(self._delete, ids)

    async def count(self) -> int:
        """As in `Kind`."""
        return len(self.store.index_to_docstore_id)

    async def get(self, ids: list[str]) -> list[Document]:
        """As in `Kind`."""
        return await asyncio.to_thread(self._get, ids)

    async def ids(self) -> list[str]:
        """As in `Kind`."""
        return await asyncio.to_thread(self._ids)

    async def update_metadata(self, changes: Mapping[str, Changes]) -> None:
        """As in `Kind`; changes the documents in the docstore."""
        await asyncio.to_thread(self._update_metadata, changes)

    def similarity(self, score: float) -> float:
        """Convert the squared Euclidean distance; the inner product stays."""
        inner_product = self.store.index.metric_type == 0
        return float(score if inner_product else 1 - score / 2)

    def _find_capabilities(self) -> frozenset[Capability]:
        found: set[Capability] = {"get", "scan"}
        if self._can_remove():
            found |= {"delete", "drop"}
        if any(cls.__name__ == "InMemoryDocstore" for cls in type(self.store.docstore).__mro__):
            found.add("update_metadata")
        return frozenset(found)

    def _can_remove(self) -> bool:
        """Whether the index can remove vectors; graph indexes (HNSW) raise an error."""
        import numpy as np  # FAISS comes with it

        try:
            self.store.index.remove_ids(np.empty(0, np.int64))
        except RuntimeError:
            return False
        return True

    async def _found(self, text: str, k: int, **options: Any) -> Scored:
        if (embeddings := self.store.embeddings) is None:
            raise StoreError(
                "this FAISS was made with a plain function: make it with an Embeddings"
            )
        vector = await embeddings.aembed_query(text)
        return await asyncio.to_thread(self._nearest, vector, k, options)

    def _nearest(self, vector: Sequence[float], k: int, options: dict[str, Any]) -> Scored:
        with self._lock:
            total = len(self.store.index_to_docstore_id)
            if not total:
                return []
            # FAISS filters after it has fetched: fewer would miss documents that pass.
            found: Scored = self.store.similarity_search_with_score_by_vector(
                vector, k=k, fetch_k=total, **options
            )
            return found

    def _replace(self, documents: list[Document], vectors: list[list[float]]) -> None:
        ids = [str(document.id) for document in documents]
        with self._lock:
            self._delete_known(ids)
            texts = [document.page_content for document in documents]
            self.store.add_embeddings(
                list(zip(texts, vectors, strict=True)),
                metadatas=[document.metadata for document in documents],
                ids=ids,
            )

    def _delete(self, ids: list[str]) -> None:
        with self._lock:
            self._delete_known(ids)

    def _delete_known(self, ids: list[str]) -> None:
        known = set(self.store.index_to_docstore_id.values())
        if found := [known_id for known_id in dict.fromkeys(ids) if known_id in known]:
            self.store.delete(found)

    def _ids(self) -> list[str]:
        with self._lock:
            return list(self.store.index_to_docstore_id.values())

    def _get(self, ids: Sequence[str]) -> list[Document]:
        with self._lock:
            return list(self._documents(ids).values())

    def _update_metadata(self, changes: Mapping[str, Changes]) -> None:
        with self._lock:
            for id_, document in self._documents(list(changes)).items():
                document.metadata = changed(document.metadata, changes[id_])

    def _documents(self, ids: Sequence[str]) -> dict[str, Document]:
        # For an unknown id a docstore returns a message.
        found = {id_: self.store.docstore.search(id_) for id_ in ids}
        return {id_: document for id_, document in found.items() if isinstance(document, Document)}

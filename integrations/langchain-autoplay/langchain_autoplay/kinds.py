"""What differs between LangChain's vector stores, a class for each: writing, searching, scores.

None of their packages is imported: a store is known by the name of its class.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from autoplay_rag import Filter
from autoplay_rag.errors import StoreError, UnsupportedFilterError
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from langchain_autoplay.filters import operators, over_documents, over_metadata

__all__ = ["FilterBuilder", "Kind", "kind_of"]

FilterBuilder: TypeAlias = Callable[[Filter], Any]
"""Makes what a store takes as `filter=`; None for no filter."""

Scored: TypeAlias = list[tuple[Document, float]]

_METADATA = (
    "product_id", "session_id", "user_id", "conversation_id", "email", "kind", "started_at",
    "ended_at", "forwarded_at", "action_count", "urls",
)  # fmt: skip


class Kind:
    """Any store, by what the base class promises: its score is taken as a similarity.

    Args:
        store: The vector store.
        filter_builder: The user's own translation of filters.
    """

    translate: FilterBuilder | None = None

    def __init__(self, store: VectorStore, filter_builder: FilterBuilder | None) -> None:
        self.store: Any = store
        if filter_builder is not None:
            self.translate = filter_builder

    async def add(self, documents: list[Document]) -> None:
        """Embed and store documents, replacing those with the same ids."""
        await self.store.aadd_documents(documents, ids=[document.id for document in documents])

    async def delete(self, ids: list[str]) -> None:
        """Delete documents; unknown ids are no error."""
        await self.store.adelete(ids)

    async def search(self, text: str, k: int, filter: Filter) -> Scored:
        """The `k` nearest documents that pass the filter, with their cosine similarities."""
        found = await self._found(text, k, **self._filtered(filter))
        return [(document, self.similarity(score)) for document, score in found]

    async def count(self) -> int:
        """The number of documents stored."""
        raise StoreError(f"a {type(self.store).__name__} cannot say how many documents it holds")

    def similarity(self, score: float) -> float:
        """The cosine similarity that the store's own score means."""
        return score

    async def _found(self, text: str, k: int, **options: Any) -> Scored:
        found: Scored = await self.store.asimilarity_search_with_score(text, k=k, **options)
        return found

    def _filtered(self, filter: Filter) -> dict[str, Any]:
        if not filter.conditions():
            return {}
        if self.translate is None:
            raise UnsupportedFilterError(
                f"how a {type(self.store).__name__} filters is not known here: give LangChainStore "
                "a filter_builder, which makes what the store takes as filter="
            )
        return {"filter": self.translate(filter)}


class InMemory(Kind):
    """`langchain_core.vectorstores.InMemoryVectorStore`."""

    translate = staticmethod(over_documents)

    async def count(self) -> int:
        """As in `Kind`."""
        return len(self.store.store)


class Chroma(Kind):
    """`langchain_chroma.Chroma`. It works in a thread, and still holds Python's lock."""

    translate = staticmethod(operators)

    async def add(self, documents: list[Document]) -> None:
        """As in `Kind`. Chroma merges metadata: what is unknown now has to be removed by a None."""
        nothing = dict.fromkeys(_METADATA)
        await super().add(
            [
                Document(
                    document.page_content, id=document.id, metadata={**nothing, **document.metadata}
                )
                for document in documents
            ]
        )

    async def count(self) -> int:
        """As in `Kind`."""
        count: int = await asyncio.to_thread(self.store._collection.count)  # noqa: SLF001 - no other way
        return count

    def similarity(self, score: float) -> float:
        """Chroma's distance is squared where it is Euclidean, which is its default."""
        config = self.store._collection.configuration_json  # noqa: SLF001 - no other way
        index = config.get("hnsw") or config.get("spann") or {}
        return 1 - score / 2 if index.get("space", "l2") == "l2" else 1 - score


class Faiss(Kind):
    """`FAISS` of `langchain_community`: a plain index, which two threads must not touch at once."""

    translate = staticmethod(over_metadata)

    def __init__(self, store: VectorStore, filter_builder: FilterBuilder | None) -> None:
        super().__init__(store, filter_builder)
        self._lock = threading.Lock()

    async def add(self, documents: list[Document]) -> None:
        """As in `Kind`. Known ids are deleted first, for FAISS would keep both; vectors before that."""
        embeddings: Embeddings | None = self.store.embeddings
        if embeddings is None:
            raise StoreError("this FAISS was made with a plain function; give it an Embeddings")
        texts = [document.page_content for document in documents]
        vectors = await embeddings.aembed_documents(texts)
        await asyncio.to_thread(self._replace, documents, vectors)

    async def delete(self, ids: list[str]) -> None:
        """As in `Kind`; FAISS itself refuses ids that it does not know."""
        await asyncio.to_thread(self._delete, ids)

    async def count(self) -> int:
        """As in `Kind`."""
        return len(self.store.index_to_docstore_id)

    def similarity(self, score: float) -> float:
        """FAISS gives the squared Euclidean distance, or the inner product."""
        inner_product = self.store.index.metric_type == 0
        return float(score if inner_product else 1 - score / 2)

    async def _found(self, text: str, k: int, **options: Any) -> Scored:
        if (embeddings := self.store.embeddings) is None:
            raise StoreError("this FAISS was made with a plain function; give it an Embeddings")
        vector = await embeddings.aembed_query(text)
        return await asyncio.to_thread(self._nearest, vector, k, options)

    def _nearest(self, vector: Sequence[float], k: int, options: dict[str, Any]) -> Scored:
        with self._lock:
            total = len(self.store.index_to_docstore_id)
            if not total:
                return []
            # It filters what it has fetched: with fewer it would miss some that pass.
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


class PGVector(Kind):
    """`PGVector` and `PGVectorStore` of `langchain_postgres`.

    A `PGVector` without `async_mode` has only its sync methods; one with it belongs to one
    event loop, as its engine does.
    """

    translate = staticmethod(operators)

    async def add(self, documents: list[Document]) -> None:
        """As in `Kind`."""
        if not self._in_threads:
            return await super().add(documents)
        ids = [document.id for document in documents]
        await asyncio.to_thread(self.store.add_documents, documents, ids=ids)
        return None

    async def delete(self, ids: list[str]) -> None:
        """As in `Kind`."""
        if not self._in_threads:
            return await super().delete(ids)
        await asyncio.to_thread(self.store.delete, ids)
        return None

    def similarity(self, score: float) -> float:
        """Postgres gives distances: of the cosine, the plain Euclidean, the negative product."""
        strategy = getattr(self.store, "_distance_strategy", None)
        name = str(getattr(strategy, "value", "cosine")).lower()
        if "l2" in name or "euclid" in name:
            return 1 - score * score / 2
        return -score if "inner" in name else 1 - score

    async def _found(self, text: str, k: int, **options: Any) -> Scored:
        if not self._in_threads:
            return await super()._found(text, k, **options)
        search = self.store.similarity_search_with_score
        found: Scored = await asyncio.to_thread(search, text, k=k, **options)
        return found

    @property
    def _in_threads(self) -> bool:
        return getattr(self.store, "async_mode", True) is False


_KINDS: dict[tuple[str, str], type[Kind]] = {
    ("langchain_core", "InMemoryVectorStore"): InMemory,
    ("langchain_chroma", "Chroma"): Chroma,
    ("langchain_community", "FAISS"): Faiss,
    ("langchain_postgres", "PGVector"): PGVector,
    ("langchain_postgres", "PGVectorStore"): PGVector,
}


def kind_of(store: VectorStore, filter_builder: FilterBuilder | None) -> Kind:
    """How to work with a store; subclasses of those known count as they do."""
    for cls in type(store).__mro__:
        if found := _KINDS.get((cls.__module__.partition(".")[0], cls.__name__)):
            return found(store, filter_builder)
    return Kind(store, filter_builder)

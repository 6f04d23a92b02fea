"""The calls to a LangChain vector store; each kind overrides those that differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from autoplay_rag import Filter
from autoplay_rag.errors import StoreError, UnsupportedFilterError
from autoplay_rag.stores import Capability, Changes, StoreIdentity
from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore

__all__ = ["FilterBuilder", "Kind", "Scored", "changed"]

FilterBuilder: TypeAlias = Callable[[Filter], Any]
"""Turns a filter into the store's `filter=`; None for no filter."""

Scored: TypeAlias = list[tuple[Document, float]]


class Kind:
    """Any store, used through LangChain's base class. Its score is taken as a similarity.

    It can delete and get documents if the store overrides these methods of the base class.
    `LangChainStore` calls only methods that `capabilities` names.

    Attributes:
        store: The vector store.
        capabilities: The operations beyond storing and searching.
        persistent: Whether documents survive the process. False only if they certainly do not, and
            `count` works.

    Args:
        store: The vector store.
        filter_builder: The user's translation of filters.
    """

    persistent: bool = True
    translate: FilterBuilder | None = None

    def __init__(self, store: VectorStore, filter_builder: FilterBuilder | None) -> None:
        self.store: Any = store
        if filter_builder is not None:
            self.translate = filter_builder
        self.capabilities = self._find_capabilities()

    async def add(self, documents: list[Document]) -> None:
        """Embed and store documents; replace those with the same ids."""
        await self.store.aadd_documents(documents, ids=[document.id for document in documents])

    async def delete(self, ids: list[str]) -> None:
        """Delete documents; an unknown id is not an error."""
        await self.store.adelete(ids)

    async def search(self, text: str, k: int, filter: Filter) -> Scored:
        """Return the `k` nearest documents that pass the filter, with their cosine similarities."""
        found = await self._found(text, k, **self._filtered(filter))
        return [(document, self.similarity(score)) for document, score in found]

    async def count(self) -> int:
        """Return the number of stored documents."""
        raise StoreError(f"a {type(self.store).__name__} cannot count its documents")

    async def get(self, ids: list[str]) -> list[Document]:
        """Return the documents with these ids, which are all different; skip unknown ids."""
        found: list[Document] = await self.store.aget_by_ids(ids)
        return found

    async def ids(self) -> list[str]:
        """Return the ids of all documents, for a scan."""
        raise NotImplementedError

    async def update_metadata(self, changes: Mapping[str, Changes]) -> None:
        """Change metadata without embedding again; an unknown id is not an error."""
        raise NotImplementedError

    async def identity(self) -> StoreIdentity | None:
        """Return what `save_identity` saved; None if nothing was."""
        raise NotImplementedError

    async def save_identity(self, identity: StoreIdentity) -> None:
        """Save the identity in the store, where no search finds it."""
        raise NotImplementedError

    async def reset(self) -> None:
        """Delete the identity, and the dimension if nothing is stored."""

    def similarity(self, score: float) -> float:
        """Return the cosine similarity for a score of the store."""
        return score

    def _find_capabilities(self) -> frozenset[Capability]:
        found: set[Capability] = set()
        if self._overrides("delete", "adelete"):
            found.add("delete")
        if self._overrides("get_by_ids", "aget_by_ids"):
            found.add("get")
        return frozenset(found)

    def _overrides(self, *names: str) -> bool:
        """Whether the store implements one of these methods itself."""
        cls = type(self.store)
        return any(getattr(cls, name) is not getattr(VectorStore, name) for name in names)

    async def _found(self, text: str, k: int, **options: Any) -> Scored:
        found: Scored = await self.store.asimilarity_search_with_score(text, k=k, **options)
        return found

    def _filtered(self, filter: Filter) -> dict[str, Any]:
        if not filter.conditions():
            return {}
        if self.translate is None:
            raise UnsupportedFilterError(
                f"how {type(self.store).__name__} filters is not known: pass "
                "filter_builder= to LangChainStore"
            )
        return {"filter": self.translate(filter)}


def changed(metadata: Mapping[str, Any] | None, changes: Changes) -> dict[str, Any]:
    """Return a copy of metadata with the changes; None removes a key.

    Example:
        >>> changed({"kind": "actions", "email": "a@b.example"}, {"user_id": "u1", "email": None})
        {'kind': 'actions', 'user_id': 'u1'}
    """
    merged = {**(metadata or {}), **changes}
    return {key: value for key, value in merged.items() if value is not None}

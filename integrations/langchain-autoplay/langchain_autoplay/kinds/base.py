"""What the adapter does with any LangChain vector store, and what each kind does its own way."""

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
"""Makes what a store takes as `filter=`; None for no filter."""

Scored: TypeAlias = list[tuple[Document, float]]


class Kind:
    """Any store, by what LangChain's base class promises: its score is taken as a similarity.

    It can delete and get documents if the store overrides those methods of the base class. Of the
    methods below, `LangChainStore` calls none that `capabilities` does not name.

    Attributes:
        store: The vector store.
        capabilities: What the store can do beyond storing and searching.
        persistent: Whether its documents outlive the process. False only where they surely do
            not and `count` can tell that the store is empty.

    Args:
        store: The vector store.
        filter_builder: The user's own translation of filters.
    """

    persistent: bool = True
    translate: FilterBuilder | None = None

    def __init__(self, store: VectorStore, filter_builder: FilterBuilder | None) -> None:
        self.store: Any = store
        if filter_builder is not None:
            self.translate = filter_builder
        self.capabilities = self._find_capabilities()

    async def add(self, documents: list[Document]) -> None:
        """Embed and store documents, replacing those with the same ids."""
        await self.store.aadd_documents(documents, ids=[document.id for document in documents])

    async def delete(self, ids: list[str]) -> None:
        """Delete documents; an unknown id is not an error."""
        await self.store.adelete(ids)

    async def search(self, text: str, k: int, filter: Filter) -> Scored:
        """The `k` nearest documents that pass the filter, with their cosine similarities."""
        found = await self._found(text, k, **self._filtered(filter))
        return [(document, self.similarity(score)) for document, score in found]

    async def count(self) -> int:
        """The number of documents stored."""
        raise StoreError(f"a {type(self.store).__name__} cannot say how many documents it holds")

    async def get(self, ids: list[str]) -> list[Document]:
        """The documents with these ids, which are all different; unknown ids are left out."""
        found: list[Document] = await self.store.aget_by_ids(ids)
        return found

    async def ids(self) -> list[str]:
        """The ids of all documents, for a scan."""
        raise NotImplementedError

    async def update_metadata(self, changes: Mapping[str, Changes]) -> None:
        """Change metadata without embedding anew; an unknown id is not an error."""
        raise NotImplementedError

    async def identity(self) -> StoreIdentity | None:
        """The note that `save_identity` left; None if there is none."""
        raise NotImplementedError

    async def save_identity(self, identity: StoreIdentity) -> None:
        """Keep a note in the store itself, where no search finds it."""
        raise NotImplementedError

    async def reset(self) -> None:
        """Forget the identity, and the dimension if nothing is stored."""

    def similarity(self, score: float) -> float:
        """The cosine similarity that the store's own score means."""
        return score

    def _find_capabilities(self) -> frozenset[Capability]:
        found: set[Capability] = set()
        if self._overrides("delete", "adelete"):
            found.add("delete")
        if self._overrides("get_by_ids", "aget_by_ids"):
            found.add("get")
        return frozenset(found)

    def _overrides(self, *names: str) -> bool:
        """Whether the store has an implementation of its own for one of these methods."""
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
                f"how a {type(self.store).__name__} filters is not known here: give LangChainStore "
                "a filter_builder, which makes what the store takes as filter="
            )
        return {"filter": self.translate(filter)}


def changed(metadata: Mapping[str, Any] | None, changes: Changes) -> dict[str, Any]:
    """A copy of metadata with changes made; a key that is set to None is removed.

    Example:
        >>> changed({"kind": "actions", "email": "a@b.example"}, {"user_id": "u1", "email": None})
        {'kind': 'actions', 'user_id': 'u1'}
    """
    merged = {**(metadata or {}), **changes}
    return {key: value for key, value in merged.items() if value is not None}

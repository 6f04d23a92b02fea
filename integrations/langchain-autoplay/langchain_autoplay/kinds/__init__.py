"""What differs between LangChain's vector stores: a module for each.

None of their packages is imported: a store is known by the name of its class.
"""

from __future__ import annotations

from langchain_core.vectorstores import VectorStore

from langchain_autoplay.kinds.base import FilterBuilder, Kind
from langchain_autoplay.kinds.chroma import Chroma
from langchain_autoplay.kinds.faiss import Faiss
from langchain_autoplay.kinds.memory import InMemory
from langchain_autoplay.kinds.postgres import PGVector, PGVectorStore
from langchain_autoplay.kinds.qdrant import Qdrant

__all__ = ["FilterBuilder", "Kind", "kind_of"]

_KINDS: dict[tuple[str, str], type[Kind]] = {
    ("langchain_core", "InMemoryVectorStore"): InMemory,
    ("langchain_chroma", "Chroma"): Chroma,
    ("langchain_community", "FAISS"): Faiss,
    ("langchain_postgres", "PGVector"): PGVector,
    ("langchain_postgres", "PGVectorStore"): PGVectorStore,
    ("langchain_qdrant", "QdrantVectorStore"): Qdrant,
}


def kind_of(store: VectorStore, filter_builder: FilterBuilder | None) -> Kind:
    """How to work with a store; subclasses of those known count as they do."""
    for cls in type(store).__mro__:
        if found := _KINDS.get((cls.__module__.partition(".")[0], cls.__name__)):
            return found(store, filter_builder)
    return Kind(store, filter_builder)

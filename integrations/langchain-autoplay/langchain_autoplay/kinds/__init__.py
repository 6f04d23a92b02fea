"""The differences between LangChain's vector stores, one module per store.

Their packages are not imported: a store is recognised by the name of its class.
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
    """Return the kind of a store, also for subclasses of the known classes."""
    for cls in type(store).__mro__:
        if found := _KINDS.get((cls.__module__.partition(".")[0], cls.__name__)):
            return found(store, filter_builder)
    return Kind(store, filter_builder)

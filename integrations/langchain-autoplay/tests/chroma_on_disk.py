"""Vector stores that the worker of `LangChainStore.in_process` makes. The worker imports this module."""

from __future__ import annotations

from typing import Any

from autoplay_rag import Filter
from langchain_chroma import Chroma
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore

EMBEDDINGS = DeterministicFakeEmbedding(size=64)


def make_chroma(path: str) -> VectorStore:
    return Chroma("visits", EMBEDDINGS, persist_directory=path)


def make_in_memory() -> VectorStore:
    return InMemoryVectorStore(EMBEDDINGS)


def user_alone(filter: Filter) -> dict[str, Any]:
    """A filter builder that knows one condition only."""
    return {"user_id": filter.user_id}

"""LocalEmbeddings: the embedding model of autoplay-rag, for any LangChain vector store."""

from __future__ import annotations

from typing import Literal

from autoplay_rag.embedders import LocalEmbedder
from langchain_core.embeddings import Embeddings

__all__ = ["LocalEmbeddings"]


class LocalEmbeddings(Embeddings):
    """Embed with all-MiniLM-L6-v2 on this machine: no key, no service, no download.

    Needs the extra `local` of autoplay-rag. Vectors have 384 dimensions and length 1. Only
    the first 256 tokens of a text count.

    Args:
        threads: Threads for one inference; by default one less than the cores, at most 4.
        precision: "fp32", or "int8" for less processor time and memory, with vectors of its own.

    Attributes:
        model: The name of the model. Do not mix vectors of different models in one store.

    Raises:
        MissingExtraError: If the extra is not installed.
        ConfigurationError: If `threads` is below 1, or `precision` is unknown.

    Example:
        >>> from langchain_core.vectorstores import InMemoryVectorStore
        >>> store = InMemoryVectorStore(LocalEmbeddings())
        >>> ids = store.add_texts(["Exported a report", "Declined the credit card"])
        >>> store.similarity_search("Who downloaded a report?", k=1)[0].page_content
        'Exported a report'
    """

    def __init__(
        self, *, threads: int | None = None, precision: Literal["fp32", "int8"] = "fp32"
    ) -> None:
        self._embedder = LocalEmbedder(threads=threads, precision=precision)
        self.model = self._embedder.model

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r})"

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed texts for the store."""
        return [vector.tolist() for vector in self._embedder.embed_sync(texts)]

    def embed_query(self, text: str) -> list[float]:
        """Embed a question."""
        return self._embedder.embed_query_sync(text).tolist()

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed texts for the store, without blocking the event loop."""
        return [vector.tolist() for vector in await self._embedder.embed(texts)]

    async def aembed_query(self, text: str) -> list[float]:
        """Embed a question, without blocking the event loop."""
        return (await self._embedder.embed_query(text)).tolist()

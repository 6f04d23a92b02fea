"""LocalEmbedding: the embedding model of autoplay-rag, for LlamaIndex."""

from __future__ import annotations

from typing import Any, Literal

from autoplay_rag.embedders import LocalEmbedder
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr

__all__ = ["LocalEmbedding"]


class LocalEmbedding(BaseEmbedding):
    """Embed with all-MiniLM-L6-v2 on this machine: no key, no service, no download.

    Needs the extra `local` of autoplay-rag. Vectors have 384 dimensions and length 1. Only
    the first 256 tokens of a text count.

    Args:
        precision: "fp32", or "int8" for less processor time and memory, with vectors of its own.
        **options: Arguments of all LlamaIndex models, such as `embed_batch_size` (64).

    Raises:
        MissingExtraError: If the extra is not installed.
        ConfigurationError: If `precision` is unknown.

    Example:
        >>> vector = LocalEmbedding().get_text_embedding("Exported a report")
        >>> len(vector)
        384
    """

    precision: Literal["fp32", "int8"] = "fp32"
    _embedder: LocalEmbedder = PrivateAttr()

    def __init__(self, *, precision: Literal["fp32", "int8"] = "fp32", **options: Any) -> None:
        embedder = LocalEmbedder(precision=precision)
        given: dict[str, Any] = {
            "precision": precision,
            "model_name": embedder.model,
            "embed_batch_size": embedder.max_inputs,
        }
        super().__init__(**given | options)
        self._embedder = embedder

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex serialises this class."""
        return "LocalEmbedding"

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return [vector.tolist() for vector in self._embedder.embed_sync(texts)]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._embedder.embed_query_sync(query).tolist()

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return [vector.tolist() for vector in await self._embedder.embed(texts)]

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._aget_text_embeddings([text]))[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return (await self._embedder.embed_query(query)).tolist()

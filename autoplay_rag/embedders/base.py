"""The interface of embedders.

To add an embedder, inherit from `Embedder`, set `model` and write `embed`. `as_embedder` wraps
objects with LangChain's `embed_documents` and `embed_query`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from autoplay_rag._threads import call_in_thread
from autoplay_rag.content.chunks import Vector
from autoplay_rag.errors import ConfigurationError

__all__ = ["Embedder", "as_embedder"]


@runtime_checkable
class Embedder(Protocol):
    """Turns texts into vectors. Inherit from it to get its defaults.

    Methods may be called from more than one event loop. Several calls of `embed` may run at once.
    Raise `EmbedderUnavailableError` (or an `OSError` or `TimeoutError`) if the same request may
    succeed later. Raise `EmbedderRejectedError` (or a `ValueError`) if the input will never be
    accepted.

    Attributes:
        model: Names the model and every setting that changes its vectors
            ("openai:text-embedding-3-small:512"). Vectors of different names are never mixed.
        max_inputs: The most texts in one request.
        max_request_tokens: The most tokens in one request.
        tokens_used: The exact number of tokens embedded so far; None if only the estimates of
            `count_tokens` are known.
    """

    model: str
    tokens_used: int | None = None
    max_inputs: int = 256
    max_request_tokens: int = 1_000_000

    async def embed(self, texts: Sequence[str]) -> Sequence[Vector]:
        """Embed texts to be stored.

        Args:
            texts: At least one, none empty, within the limits above.

        Returns:
            One vector for each text, in the same order, all of the same dimension.
        """
        raise NotImplementedError

    async def embed_query(self, text: str) -> Vector:
        """Embed a question. By default it is embedded like any other text."""
        return (await self.embed([text]))[0]

    def count_tokens(self, text: str) -> int:
        """Return how many tokens `text` costs. The default is a high estimate."""
        return len(text.encode()) // 3 + 1

    async def prepare(self) -> None:
        """Load what the first request would have to wait for. May be called more than once."""
        return None  # noqa: RET501 - an empty body would make it abstract

    async def aclose(self) -> None:
        """Release connections and threads. May be called more than once."""
        return None  # noqa: RET501 - an empty body would make it abstract


class _LangChainEmbedder(Embedder):
    """Wraps a LangChain `Embeddings`, found by its methods. LangChain is not imported."""

    def __init__(self, embeddings: Any) -> None:
        self._embeddings = embeddings
        name = getattr(embeddings, "model", None) or getattr(embeddings, "model_name", None)
        dimensions = getattr(embeddings, "dimensions", None)
        parts = (type(embeddings).__name__, name, dimensions)
        self.model = ":".join(str(part) for part in parts if part)

    async def embed(self, texts: Sequence[str]) -> Sequence[Vector]:
        if hasattr(self._embeddings, "aembed_documents"):
            vectors: Sequence[Vector] = await self._embeddings.aembed_documents(list(texts))
            return vectors
        return await call_in_thread(self._embeddings.embed_documents, list(texts))

    async def embed_query(self, text: str) -> Vector:
        if hasattr(self._embeddings, "aembed_query"):
            vector: Vector = await self._embeddings.aembed_query(text)
            return vector
        return await call_in_thread(self._embeddings.embed_query, text)


def as_embedder(found: Any) -> Embedder:
    """Return an embedder as it is, or wrap a LangChain `Embeddings`.

    Raises:
        ConfigurationError: If it is neither of them.
    """
    if hasattr(found, "embed_documents") and hasattr(found, "embed_query"):
        return _LangChainEmbedder(found)
    if callable(getattr(found, "embed", None)) and isinstance(getattr(found, "model", None), str):
        return found if isinstance(found, Embedder) else _with_defaults(found)
    raise ConfigurationError(
        f"{type(found).__name__} is no embedder: it needs `model` (a string) and `async embed(texts)`, "
        "like autoplay_rag.embedders.Embedder, or LangChain's `embed_documents` and `embed_query`"
    )


def _with_defaults(found: Any) -> Embedder:
    """Add the defaults to an object that has only the two required members."""

    class Completed(Embedder):
        model = found.model

        async def embed(self, texts: Sequence[str]) -> Sequence[Vector]:
            vectors: Sequence[Vector] = await found.embed(texts)
            return vectors

        def __getattribute__(self, name: str) -> Any:
            return getattr(found, name) if hasattr(found, name) else super().__getattribute__(name)

    return Completed()

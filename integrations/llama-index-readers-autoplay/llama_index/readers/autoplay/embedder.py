"""LlamaIndexEmbedder: any LlamaIndex embedding model as the embedder of a pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from autoplay_rag.embedders import Embedder
from autoplay_rag.stores import Vector
from llama_index.core.base.embeddings.base import BaseEmbedding

__all__ = ["LlamaIndexEmbedder"]


class LlamaIndexEmbedder(Embedder):
    """Embed with any LlamaIndex `BaseEmbedding`.

    A request contains up to `embed_batch_size` texts (10 by default; services accept hundreds). Models
    that implement async batches are awaited. Others, such as local models, run in a thread, because
    their async methods block the event loop.

    Args:
        embed_model: The model.
        model: The name of the model with all settings that change its vectors; None makes it from the
            class, `model_name` and `dimensions`.
        use_async: Whether to call the model's async methods; None decides as described above.

    Example:
        >>> import asyncio
        >>> from llama_index.core import MockEmbedding
        >>> embedder = LlamaIndexEmbedder(MockEmbedding(embed_dim=2))
        >>> embedder.model, list(asyncio.run(embedder.embed_query("Where is export?")))
        ('MockEmbedding:unknown:2', [0.5, 0.5])
    """

    def __init__(
        self,
        embed_model: BaseEmbedding,
        model: str | None = None,
        *,
        use_async: bool | None = None,
    ) -> None:
        self._embed_model = embed_model
        self.model = model or _name(embed_model)
        self.max_inputs = embed_model.embed_batch_size
        if use_async is None:
            own = type(embed_model)._aget_text_embeddings  # noqa: SLF001 - the one that tells
            use_async = own is not BaseEmbedding._aget_text_embeddings  # noqa: SLF001 - as above
        self._use_async = use_async

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r})"

    async def embed(self, texts: Sequence[str]) -> Sequence[Vector]:
        """Embed texts for the store."""
        if self._use_async:
            return await self._embed_model.aget_text_embedding_batch(list(texts))
        return await asyncio.to_thread(self._embed_model.get_text_embedding_batch, list(texts))

    async def embed_query(self, text: str) -> Vector:
        """Embed a question, as the model embeds questions."""
        if self._use_async:
            return await self._embed_model.aget_query_embedding(text)
        return await asyncio.to_thread(self._embed_model.get_query_embedding, text)


def _name(embed_model: BaseEmbedding) -> str:
    parts = [type(embed_model).__name__, embed_model.model_name]
    size = getattr(embed_model, "dimensions", None) or getattr(embed_model, "embed_dim", None)
    return ":".join([*parts, str(size)] if size else parts)

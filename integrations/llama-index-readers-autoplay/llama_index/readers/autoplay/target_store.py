"""The store that a stream into LlamaIndex ends in: it splits and embeds as its target does."""

from __future__ import annotations

from collections.abc import Sequence

from autoplay_rag import Filter
from autoplay_rag.stores.base import Chunk, Match, TextStore

from llama_index.readers.autoplay.embedder import LlamaIndexEmbedder
from llama_index.readers.autoplay.nodes import make_document, settle
from llama_index.readers.autoplay.searching import find
from llama_index.readers.autoplay.targets import Target
from llama_index.readers.autoplay.transforming import check_embedded, embed, transform

__all__ = ["TargetStore"]


class TargetStore(TextStore):
    """Writes chunks as documents into an `IngestionPipeline` or a `VectorStoreIndex`.

    Args:
        target: Which of them, and how.
    """

    max_batch = 64
    """What fails is transformed and embedded once more: a batch is not too large for that."""

    def __init__(self, target: Target) -> None:
        self._target = target

    async def add(self, chunks: Sequence[Chunk]) -> None:
        """Split, embed and store, in this order: nothing old goes before the new is at hand.

        Raises:
            StoreRejectedError: If what was embedded is no set of proper vectors.
        """
        target = self._target
        documents = await target.new([make_document(c.id, c.text, c.metadata) for c in chunks])
        if not documents:
            return
        nodes = settle(await transform(documents, target.transformations))
        nodes = list(await embed(nodes, target.embed_model))
        check_embedded(nodes)
        await target.replace(documents, nodes)

    async def delete(self, ids: Sequence[str]) -> None:
        """Delete documents; an unknown id is no error."""
        await self._target.delete(ids)

    async def count(self) -> int:
        """The number of nodes stored.

        Raises:
            StoreError: If the vector store cannot tell.
        """
        return await self._target.calls.count()

    async def search(self, text: str, k: int, filter: Filter) -> list[Match]:
        """The `k` best nodes that pass the filter, the best of each chunk, best first."""
        vector = await LlamaIndexEmbedder(self._target.embed_model).embed_query(text)
        return await find(self._target.calls, self._target.docstore, vector, k, filter)

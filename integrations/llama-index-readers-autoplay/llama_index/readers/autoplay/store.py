"""LlamaIndexStore: a pipeline into any LlamaIndex vector store."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

from autoplay_rag import Filter
from autoplay_rag.stores import Chunk, Match, Vector, VectorStore, pack, pack_vector
from llama_index.core.schema import BaseNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.storage.docstore.types import BaseDocumentStore
from llama_index.core.vector_stores.types import BasePydanticVectorStore

from llama_index.readers.autoplay.calls import StoreCalls
from llama_index.readers.autoplay.nodes import make_node, node_id
from llama_index.readers.autoplay.searching import find

__all__ = ["LlamaIndexStore"]

_STEP = 8
"""Nodes made before the loop is let go for a moment: LlamaIndex checks each, which takes time."""


class LlamaIndexStore(VectorStore):
    """Lets `IngestPipeline` write into any LlamaIndex vector store.

    A chunk becomes one node of a document with the chunk's id. What is stored under an id is
    replaced whole: old nodes are deleted before new ones are added, since stores differ in what
    they do with an id they know (Chroma's keeps the old text).

    Vectors are stored at length 1: whether a store compares by cosine, by dot product or by
    distance, its order is that of cosine similarity. A hit's `score` is the cosine similarity
    for Chroma and the in-memory store, else what the store reports.

    LlamaIndex's stores do not know whose vectors they hold: use a collection for each model.

    Args:
        vector_store: The store. It is not closed.
        docstore: Where texts are kept for stores that keep vectors alone, as
            `SimpleVectorStore` does; in memory if None.
        use_async: False calls no async method of the store, for stores whose own block the
            event loop; True calls all of them. None awaits those that the store wrote itself
            and calls the others in a thread.

    Example:
        >>> import asyncio
        >>> from llama_index.core.vector_stores import SimpleVectorStore
        >>> async def main():
        ...     store = LlamaIndexStore(SimpleVectorStore())
        ...     await store.upsert([Chunk("c1", "Opened billing", {"user_id": "u1"})], [[0.6, 0.8]])
        ...     return await store.query([0.6, 0.8], k=1, filter=Filter(user_id="u1"))
        >>> asyncio.run(main())[0].text
        'Opened billing'
    """

    max_batch = 64
    """Most of these stores hold the interpreter while they write: small batches, short halts."""

    def __init__(
        self,
        vector_store: BasePydanticVectorStore,
        docstore: BaseDocumentStore | None = None,
        *,
        use_async: bool | None = None,
    ) -> None:
        self._calls = StoreCalls(vector_store, use_async)
        self._docstore = None
        if not vector_store.stores_text:
            self._docstore = docstore or SimpleDocumentStore()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self._calls.vector_store).__name__})"

    async def upsert(self, chunks: Sequence[Chunk], vectors: Sequence[Vector]) -> None:
        """Store chunks, replacing those with the same id whole.

        Raises:
            StoreRejectedError: If the batch cannot be stored by any store.
        """
        if not chunks and not vectors:
            return
        rows = pack(chunks, vectors)
        values = memoryview(rows.vectors).cast("f")
        starts = range(0, len(values), rows.dimension)
        nodes: list[BaseNode] = []
        for chunk_id, text, metadata, start in zip(
            rows.ids, rows.texts, rows.metadatas, starts, strict=True
        ):
            vector = _unit(values[start : start + rows.dimension])
            nodes.append(make_node(chunk_id, text, metadata, vector))
            if len(nodes) % _STEP == 0:
                await asyncio.sleep(0)
        await self.delete(rows.ids)
        await self._calls.add(nodes)
        if self._docstore:
            await self._docstore.async_add_documents(nodes)

    async def query(self, vector: Vector, k: int, filter: Filter) -> list[Match]:
        """The `k` nearest chunks that pass the filter, best first.

        Raises:
            StoreRejectedError: If `k` is less than 1, or the vector is no vector.
        """
        values = memoryview(pack_vector(vector, "the question")).cast("f")
        return await find(self._calls, self._docstore, _unit(values), k, filter)

    async def delete(self, ids: Sequence[str]) -> None:
        """Delete chunks; an unknown id is no error."""
        node_ids = [node_id(chunk_id) for chunk_id in ids]
        stored = await self._calls.stored(node_ids)
        if stored is not None:
            node_ids = [node for node in node_ids if node in stored]
        if not await self._calls.delete_nodes(node_ids):
            await self._calls.delete_documents(ids)
        if self._docstore:
            for node in node_ids:
                await self._docstore.adelete_document(node, raise_error=False)

    async def count(self) -> int:
        """The number of chunks stored.

        Raises:
            StoreError: If the store cannot tell: LlamaIndex has no common way to ask.
        """
        return await self._calls.count()


def _unit(vector: Sequence[float]) -> list[float]:
    length = math.hypot(*vector)
    return [value / length for value in vector] if length else list(vector)

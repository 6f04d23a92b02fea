"""LlamaIndexStore: any LlamaIndex vector store as the store of a pipeline."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Self

from autoplay_rag import Chunk, Filter
from autoplay_rag.errors import MissingCapabilityError, StoreMismatchError, StoreRejectedError
from autoplay_rag.stores import (
    Capability,
    Changes,
    Match,
    StoreIdentity,
    Vector,
    VectorStore,
    checked_changes,
    pack,
    pack_vector,
)
from llama_index.core.schema import BaseNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.storage.docstore.types import BaseDocumentStore
from llama_index.core.vector_stores.types import BasePydanticVectorStore

from llama_index.readers.autoplay.calls import StoreCalls
from llama_index.readers.autoplay.contents import contents_of, text_of
from llama_index.readers.autoplay.nodes import change_metadata, make_node, node_id
from llama_index.readers.autoplay.searching import find

__all__ = ["LlamaIndexStore"]

_WAY_OUT = (
    "use a collection for each model, or embed everything again by IngestPipeline(rebuild=True)"
)
_PAGE = 500
"""Ids in one call: SQL limits the number of parameters."""
_STEP = 8
"""Nodes made before the loop runs: LlamaIndex validates each, which takes time."""


class LlamaIndexStore(VectorStore):
    """Let `IngestPipeline` write to any LlamaIndex vector store.

    A chunk becomes one node of a document with the chunk's id. Old nodes are deleted before new ones
    are added, because stores treat a known id differently (Chroma's keeps the old text).

    Vectors are stored with length 1, so that every store orders by cosine similarity, whether it uses
    cosine, dot product or distance. A hit's `score` is the cosine similarity for Chroma and the
    in-memory store; for others it is the score of the store.

    Every store can delete. `capabilities` lists what else it can do:

    - `SimpleVectorStore`: get, scan, update_metadata, drop.
    - `ChromaVectorStore`: the same, and identity. Identity and model are in the metadata of the
      collection, so vectors of another model are refused.
    - All others: get, if the class implements `get_nodes`. They do not record the model: use one
      collection per model.

    Other nodes in the same store are not scanned and not dropped.

    Attributes:
        persistent: False for `SimpleVectorStore` and a Chroma in memory: if they are empty
            at the start, a pipeline fills them from its journal. You can set it.

    Args:
        vector_store: The store. It is not closed.
        docstore: Contains the texts of stores that keep only vectors, such as `SimpleVectorStore`;
            in memory if None.
        use_async: False calls no async method of the store, for stores whose async methods block.
            True calls all of them. None awaits those that the store implements and runs the others
            in a thread.

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
    """Small, because most of these stores hold Python's lock while they write."""

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
        self._contents = contents_of(self._calls, self._docstore)
        self.persistent = self._contents.persistent

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The operations beyond storing and searching that the vector store supports."""
        found: set[Capability] = {"delete", *self._contents.capabilities}
        if "scan" in found:
            found.add("drop")
        return frozenset(found)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self._calls.vector_store).__name__})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # One object per vector store: its calls go through one thread.
        return self

    async def start(self, model: str) -> None:
        """Save the name of the model, if the store has metadata.

        Raises:
            StoreMismatchError: If the store holds vectors of another model.
        """
        if not model or (known := await self._contents.model()) == model:
            return
        if known:
            if await self.count():
                raise StoreMismatchError(
                    f"{self!r} holds vectors of the model {known!r}, but {model!r} was asked for: "
                    f"{_WAY_OUT}"
                )
            await self._contents.renew()
        await self._contents.save_model(model)

    async def upsert(self, chunks: Sequence[Chunk], vectors: Sequence[Vector]) -> None:
        """Store chunks; replace those with the same id.

        Raises:
            StoreRejectedError: If the batch is invalid, or contains a vector of zeros and the store is
                a `SimpleVectorStore`, whose searches fail on it.
            StoreMismatchError: If the store holds vectors of another dimension.
        """
        if not chunks and not vectors:
            return
        rows = pack(chunks, vectors)
        await self._check_dimension(rows.dimension)
        values = memoryview(rows.vectors).cast("f")
        starts = range(0, len(values), rows.dimension)
        nodes: list[BaseNode] = []
        for chunk_id, text, metadata, start in zip(
            rows.ids, rows.texts, rows.metadatas, starts, strict=True
        ):
            vector = _unit(values[start : start + rows.dimension])
            if self._contents.refuses_zeros and not any(vector):
                raise StoreRejectedError(f"the vector of chunk {chunk_id!r} holds only zeros")
            nodes.append(make_node(chunk_id, text, metadata, vector))
            if len(nodes) % _STEP == 0:
                await asyncio.sleep(0)
        await self.delete(rows.ids)
        await self._calls.add(nodes)
        if self._docstore:
            await self._docstore.async_add_documents(nodes)

    async def query(self, vector: Vector, k: int, filter: Filter) -> list[Match]:
        """Return the `k` nearest chunks that pass the filter, best first.

        Raises:
            StoreRejectedError: If `k` is less than 1, or the vector is invalid.
            StoreMismatchError: If the store holds vectors of another dimension.
        """
        values = memoryview(pack_vector(vector, "the question")).cast("f")
        await self._check_dimension(len(values))
        if k > 0 and not any(values):
            return []  # a vector of zeros is similar to none
        return await find(self._calls, self._docstore, _unit(values), k, filter)

    async def delete(self, ids: Sequence[str]) -> None:
        """Delete chunks; an unknown id is not an error."""
        if not ids:
            return
        node_ids = [node_id(chunk_id) for chunk_id in ids]
        stored = await self._calls.stored(node_ids)
        if stored is not None:
            node_ids = [node for node in node_ids if node in stored]
        if not await self._calls.delete_nodes(node_ids):
            await self._calls.delete_documents(ids)
        if self._docstore:
            for node in node_ids:
                await self._docstore.adelete_document(node, raise_error=False)

    async def get(self, ids: Sequence[str]) -> list[Chunk]:
        """Return the chunks with these ids, in any order; skip unknown ids.

        Raises:
            MissingCapabilityError: If the store has no `get_nodes`.
        """
        self._need("get")
        node_ids = [node_id(chunk_id) for chunk_id in dict.fromkeys(ids)]
        return [
            _chunk(node)
            for start in range(0, len(node_ids), _PAGE)
            for node in await self._contents.nodes(node_ids[start : start + _PAGE])
        ]

    def scan(self, page: int = _PAGE) -> AsyncIterator[list[Chunk]]:
        """Yield all chunks, in pages; skip other nodes.

        Args:
            page: The maximum number of chunks in a page.

        Raises:
            MissingCapabilityError: If the store cannot list its nodes.
        """
        self._need("scan")
        return self._scan(min(page, _PAGE))

    async def update_metadata(self, changes: Mapping[str, Changes]) -> None:
        """Change metadata without touching text and vector; an unknown id is not an error.

        Args:
            changes: For each chunk id the keys to set; None removes a key. Other keys stay.

        Raises:
            MissingCapabilityError: If the store cannot change metadata.
            StoreRejectedError: If a value has a type that no store accepts.
        """
        self._need("update_metadata")
        by_node = {node_id(chunk_id): new for chunk_id, new in checked_changes(changes).items()}
        nodes = await self._contents.nodes(list(by_node))
        for node in nodes:
            change_metadata(node, by_node[node.node_id])
        await self._contents.update(nodes)

    async def drop(self) -> None:
        """Delete all chunks, the identity and the model. Other nodes stay.

        A Chroma collection without other nodes is created again, so that it takes vectors of any
        dimension. Open other `Collection` objects of it again.

        Raises:
            MissingCapabilityError: If the store cannot list its nodes.
        """
        self._need("drop")
        async for chunks in self._scan(_PAGE):
            await self.delete([chunk.id for chunk in chunks])
        await self._contents.reset()

    async def identity(self) -> StoreIdentity | None:
        """Return what `save_identity` saved; None if nothing was.

        Raises:
            MissingCapabilityError: If the store has no metadata of its own.
        """
        self._need("identity")
        return await self._contents.identity()

    async def save_identity(self, identity: StoreIdentity) -> None:
        """Save the identity where no search finds it.

        Raises:
            MissingCapabilityError: If the store has no metadata of its own.
        """
        self._need("identity")
        await self._contents.save_identity(identity)

    async def count(self) -> int:
        """Return the number of stored chunks.

        Raises:
            StoreError: If the store cannot count: LlamaIndex has no common method for it.
        """
        return await self._calls.count()

    async def _scan(self, page: int) -> AsyncIterator[list[Chunk]]:
        ids = await self._contents.node_ids()
        for start in range(0, len(ids), page):
            nodes = await self._contents.nodes(ids[start : start + page])
            if chunks := [_chunk(node) for node in nodes if _is_chunk(node)]:
                yield chunks

    async def _check_dimension(self, dimension: int) -> None:
        held = await self._contents.dimension()
        if held not in (None, dimension):
            raise StoreMismatchError(
                f"{self!r} holds vectors of dimension {held}, but one of {dimension} came: {_WAY_OUT}"
            )

    def _need(self, capability: Capability) -> None:
        if capability not in self.capabilities:
            raise MissingCapabilityError(repr(self), capability)


def _is_chunk(node: BaseNode) -> bool:
    return bool(node.ref_doc_id) and node.node_id == node_id(str(node.ref_doc_id))


def _chunk(node: BaseNode) -> Chunk:
    return Chunk(str(node.ref_doc_id), text_of(node), dict(node.metadata))


def _unit(vector: Sequence[float]) -> list[float]:
    length = math.hypot(*vector)
    return [value / length for value in vector] if length else list(vector)

"""Calls to a LlamaIndex vector store that do not block the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from autoplay_rag.errors import ConfigurationError, StoreError
from autoplay_rag.stores import SerialThread
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores import SimpleVectorStore, VectorStoreQuery
from llama_index.core.vector_stores.types import BasePydanticVectorStore, VectorStoreQueryResult

__all__ = ["CHROMA", "StoreCalls"]

CHROMA = "ChromaVectorStore"
"""The class name of LlamaIndex's Chroma store, which may not be installed."""
_FAISS, _LANCEDB, _QDRANT = "FaissVectorStore", "LanceDBVectorStore", "QdrantVectorStore"
_PAUSE = 0.0001
"""Seconds a thread sleeps to let the loop run: after 0 seconds it often continues itself."""
_STEP = 8
"""Nodes that a store takes before the loop runs."""


class StoreCalls:
    """The methods of a vector store, as async methods.

    Async methods that the store implements are awaited. LlamaIndex's default for async methods blocks
    the loop, so in its place the blocking method runs in a thread, one call at a time.
    `SimpleVectorStore` is called on the loop, in small batches: it is a dict, and a query would fail if
    a thread changed it meanwhile.

    Some stores create their collection with the first nodes, and fail on other calls before that. Until
    then they count as empty.

    Args:
        vector_store: The store.
        use_async: False calls no async method of the store, for stores whose async methods block.
            True calls all of them. None decides as described above.

    Raises:
        ConfigurationError: If the store cannot replace nodes.
    """

    def __init__(self, vector_store: BasePydanticVectorStore, use_async: bool | None) -> None:
        self._names = {cls.__name__ for cls in type(vector_store).__mro__}
        if _FAISS in self._names:
            # One of them cannot delete; the other reuses ids after a delete.
            raise ConfigurationError(
                f"{type(vector_store).__name__} can neither replace what is stored nor filter by "
                "user or session: use another vector store"
            )
        self.vector_store = vector_store
        self._use_async = use_async
        self._in_memory = isinstance(vector_store, SimpleVectorStore)
        self._thread = SerialThread("autoplay-llama-index")

    async def add(self, nodes: Sequence[BaseNode]) -> None:
        """Add nodes with embeddings."""
        if self._awaits("async_add"):
            await self.vector_store.async_add(list(nodes))
        elif self._in_memory:
            for start in range(0, len(nodes), _STEP):
                self.vector_store.add(list(nodes[start : start + _STEP]))
                await asyncio.sleep(0)
        else:
            await self.run(self.vector_store.add, _Yielding(nodes))

    async def delete_nodes(self, node_ids: Sequence[str]) -> bool:
        """Delete nodes by id, if the store can; an unknown id is not an error.

        Returns:
            False if the store can only delete whole documents.
        """
        try:
            if node_ids and not await self._is_unmade():
                await self.call("delete_nodes", "adelete_nodes", list(node_ids))
        except NotImplementedError:
            return False
        return True

    async def delete_documents(self, document_ids: Sequence[str]) -> None:
        """Delete all nodes of these documents."""
        if document_ids and await self._is_unmade():
            return
        for document_id in document_ids:
            await self.call("delete", "adelete", document_id)

    async def stored(self, node_ids: Sequence[str]) -> set[str] | None:
        """Return the ids that are stored; None if the store cannot tell."""
        if isinstance(self.vector_store, SimpleVectorStore):
            return self.vector_store.data.embedding_dict.keys() & set(node_ids)
        nodes = await self.get_nodes(node_ids)
        return None if nodes is None else {node.node_id for node in nodes}

    async def get_nodes(self, node_ids: Sequence[str]) -> list[BaseNode] | None:
        """Return the nodes with these ids; None if the store has no such method."""
        # For an empty list, Chroma's store returns all nodes.
        if not node_ids or await self._is_unmade():
            return []
        try:
            nodes = await self.call("get_nodes", "aget_nodes", list(dict.fromkeys(node_ids)))
        except NotImplementedError:
            return None
        wanted = set(node_ids)
        return [node for node in nodes if node.node_id in wanted]

    async def query(self, query: VectorStoreQuery) -> VectorStoreQueryResult:
        """Search."""
        if await self._is_unmade():
            return VectorStoreQueryResult(nodes=[], similarities=[], ids=[])
        result: VectorStoreQueryResult = await self.call("query", "aquery", query)
        return result

    async def count(self) -> int:
        """Return the number of stored nodes.

        Raises:
            StoreError: If the store cannot tell.
        """
        store = self.vector_store
        if isinstance(store, SimpleVectorStore):
            return len(store.data.embedding_dict)
        if store.class_name() == CHROMA:
            return int(await self.run(store.client.count))
        raise StoreError(
            f"{type(store).__name__} cannot tell how many nodes it holds: LlamaIndex has no "
            "common method for it"
        )

    async def call(self, name: str, async_name: str, *args: Any) -> Any:
        """Call a method of the store by the names of its two forms."""
        if self._awaits(async_name):
            return await getattr(self.vector_store, async_name)(*args)
        return await self.run(getattr(self.vector_store, name), *args)

    async def run(self, work: Callable[..., Any], *args: Any) -> Any:
        """Call a blocking function that uses the store."""
        if self._in_memory:
            return work(*args)
        return await self._thread.finish(work, *args)

    def _awaits(self, async_name: str) -> bool:
        if self._use_async is not None:
            return self._use_async
        own = getattr(type(self.vector_store), async_name)
        if own is getattr(BasePydanticVectorStore, async_name, None):
            return False
        # Qdrant's async methods raise if it has only a blocking client.
        return getattr(self.vector_store, "_aclient", self) is not None

    async def _is_unmade(self) -> bool:
        """Whether the store has no collection yet; LlamaIndex has no common method for it."""
        store: Any = self.vector_store
        if _LANCEDB in self._names:
            return getattr(store, "_table", store) is None
        if _QDRANT in self._names and not getattr(store, "_collection_initialized", True):
            name = store.collection_name
            return not await self.call("_collection_exists", "_acollection_exists", name)
        return False


class _Yielding(list[BaseNode]):
    """A list that pauses every few nodes, so that other threads can run.

    A store converts each node in Python. Without pauses, that can keep the loop's thread waiting for
    Python's lock (5 ms at each wake-up).
    """

    def __iter__(self) -> Iterator[BaseNode]:
        for number, node in enumerate(super().__iter__()):
            if number % _STEP == 0:
                time.sleep(_PAUSE)
            yield node

    def __getitem__(self, index: Any) -> Any:
        """Return a slice that pauses too: stores split nodes into batches."""
        found = super().__getitem__(index)
        return _Yielding(found) if isinstance(index, slice) else found

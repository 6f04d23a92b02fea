"""Stores that create their collection when nodes are first added, and stores with missing methods.

The stand-ins behave like the sources of LlamaIndex's stores. Qdrant itself is tested if installed.
"""

from __future__ import annotations

from typing import Any

import pytest
from autoplay_rag import IngestPipeline
from autoplay_rag.errors import ConfigurationError
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.vector_stores.types import BasePydanticVectorStore, VectorStoreQueryResult

from llama_index.readers.autoplay import (
    AutoplayReader,
    LlamaIndexEmbedder,
    LlamaIndexStore,
    stream_into,
)


class _Lazy(BasePydanticVectorStore):
    """Creates its collection in the first `add`; every call before that fails."""

    stores_text: bool = True
    flat_metadata: bool = False

    _kept: dict[str, Any] | None = PrivateAttr(default=None)

    @property
    def client(self) -> None:
        return None

    @property
    def kept(self) -> dict[str, Any]:
        if self._kept is None:
            raise ValueError("the collection was not found")
        return self._kept

    def add(self, nodes, **kwargs):
        self._kept = (self._kept or {}) | {node.node_id: node for node in nodes}
        return [node.node_id for node in nodes]

    def get_nodes(self, node_ids=None, filters=None):
        return [node for key, node in self.kept.items() if key in node_ids]

    def delete(self, ref_doc_id, **kwargs):
        for key in [key for key, node in self.kept.items() if node.ref_doc_id == ref_doc_id]:
            del self.kept[key]

    def delete_nodes(self, node_ids=None, filters=None, **kwargs):
        for key in node_ids:
            self.kept.pop(key, None)

    def query(self, query, **kwargs):
        found = list(self.kept.values())[: query.similarity_top_k]
        return VectorStoreQueryResult(
            nodes=found, similarities=[1.0] * len(found), ids=[node.node_id for node in found]
        )


class LanceDBVectorStore(_Lazy):
    @property
    def _table(self) -> Any:
        return self._kept


class QdrantVectorStore(_Lazy):
    """Has async methods that raise without an async client."""

    collection_name: str = "visits"

    _aclient: Any = PrivateAttr(default=None)
    _collection_initialized: bool = PrivateAttr(default=False)

    def __init__(self, aclient: Any = None) -> None:
        super().__init__()
        self._aclient = aclient

    def _collection_exists(self, name: str) -> bool:
        assert self._aclient is None, "the blocking client is not given with an async one here"
        return self._kept is not None

    async def _acollection_exists(self, name: str) -> bool:
        self._ensure_async_client()
        return self._kept is not None

    def _ensure_async_client(self) -> None:
        if self._aclient is None:
            raise ValueError("Async client is not initialized!")

    def add(self, nodes, **kwargs):
        self._collection_initialized = True
        return super().add(nodes)

    async def async_add(self, nodes, **kwargs):
        self._ensure_async_client()  # does not change _collection_initialized
        return super().add(nodes)

    async def aget_nodes(self, node_ids=None, filters=None):
        self._ensure_async_client()
        return self.get_nodes(node_ids)

    async def adelete(self, ref_doc_id, **kwargs):
        self._ensure_async_client()
        self.delete(ref_doc_id)

    async def adelete_nodes(self, node_ids=None, filters=None, **kwargs):
        self._ensure_async_client()
        self.delete_nodes(node_ids)

    async def aquery(self, query, **kwargs):
        self._ensure_async_client()
        return self.query(query)


class FaissVectorStore(_Lazy):
    """Assigns its own node ids; cannot delete or filter."""


def _real_qdrant(aclient: bool) -> BasePydanticVectorStore:
    qdrant = pytest.importorskip("llama_index.vector_stores.qdrant")
    client = pytest.importorskip("qdrant_client")
    if aclient:
        return qdrant.QdrantVectorStore("visits", aclient=client.AsyncQdrantClient(":memory:"))
    return qdrant.QdrantVectorStore("visits", client=client.QdrantClient(":memory:"))


@pytest.fixture(
    params=[
        LanceDBVectorStore,
        QdrantVectorStore,
        lambda: QdrantVectorStore(aclient=object()),
        lambda: _real_qdrant(aclient=False),
        lambda: _real_qdrant(aclient=True),
    ],
    ids=["lancedb", "qdrant", "qdrant async", "real qdrant", "real qdrant async"],
)
def unmade(request: pytest.FixtureRequest) -> BasePydanticVectorStore:
    return request.param()


async def test_a_pipeline_fills_a_store_that_has_no_collection_yet(
    unmade, embed_model, make_payload
):
    store = LlamaIndexStore(unmade)
    async with IngestPipeline(store, LlamaIndexEmbedder(embed_model)) as pipeline:
        assert await pipeline.search("report", mode="dense") == []
        await store.delete(["unknown"])
        for session in ("s1", "s2"):
            await pipeline.on_actions(make_payload("exported a report", session_id=session))
            await pipeline.drain(10)
        found = await pipeline.search("report", mode="dense")
        assert {hit.session_id for hit in found} == {"s1", "s2"}
        await store.delete([found[0].id])
        assert len(await pipeline.search("report", mode="dense")) == 1


async def test_a_stream_fills_such_a_store_and_replaces_repeated_payloads(
    unmade, embed_model, record, make_payload
):
    index = VectorStoreIndex.from_vector_store(unmade, embed_model=embed_model)
    path = record([make_payload("clicked", session_id=f"s{n}") for n in range(3)])
    for text in ("old", "new"):
        reader = AutoplayReader.from_recording(path)
        async with stream_into(
            index, reader, drain_timeout=0.1, render=lambda _, text=text: text
        ) as live:
            if text == "old":
                assert await live.search("clicked", mode="dense") == []
            await live.drain(10)
            await live.wait()
            found = await live.search("clicked", mode="dense")
            assert [hit.text for hit in found] == [text] * 3


def test_faiss_is_refused_for_it_can_neither_delete_nor_filter(embed_model):
    with pytest.raises(ConfigurationError, match="FaissVectorStore can neither replace"):
        LlamaIndexStore(FaissVectorStore())
    reader = AutoplayReader.from_recording("x")
    storage = StorageContext.from_defaults(vector_store=FaissVectorStore())
    with pytest.raises(ConfigurationError, match="FaissVectorStore can neither replace"):
        stream_into(VectorStoreIndex([], storage_context=storage, embed_model=embed_model), reader)
    pipeline = IngestionPipeline(transformations=[embed_model], vector_store=FaissVectorStore())
    with pytest.raises(ConfigurationError, match="FaissVectorStore can neither replace"):
        stream_into(pipeline, reader)

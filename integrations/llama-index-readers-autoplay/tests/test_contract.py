"""The core's store contract, applied to LlamaIndex's stores."""

from __future__ import annotations

import uuid

import chromadb
import pytest
from autoplay_rag import Chunk, Filter
from autoplay_rag.errors import StoreRejectedError
from autoplay_rag.testing import VectorStoreContract
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.vector_stores.chroma import ChromaVectorStore

from llama_index.readers.autoplay import LlamaIndexStore


class TestChroma(VectorStoreContract):
    @pytest.fixture
    def make_store(self):
        client = chromadb.EphemeralClient()

        def make() -> LlamaIndexStore:
            collection = client.create_collection(
                f"c{uuid.uuid4().hex}", configuration={"hnsw": {"space": "cosine"}}
            )
            return LlamaIndexStore(ChromaVectorStore(chroma_collection=collection))

        return make


class TestSimple(VectorStoreContract):
    keeps_model = False  # it keeps only the chunks' vectors and metadata

    @pytest.fixture
    def make_store(self):
        return lambda: LlamaIndexStore(SimpleVectorStore())

    async def test_a_zero_vector_is_similar_to_nothing(self, store):
        """`SimpleVectorStore` divides by a vector's length: zero vectors would break every search."""
        with pytest.raises(StoreRejectedError, match="'zero' holds only zeros"):
            await store.upsert([Chunk("zero", "zero", {})], [[0.0, 0.0, 0.0]])
        await store.upsert([Chunk("a", "a", {})], [[1.0, 0.0, 0.0]])
        assert await store.query([0.0, 0.0, 0.0], 2, Filter()) == []

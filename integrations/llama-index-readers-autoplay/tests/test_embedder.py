from __future__ import annotations

import threading

import pytest
from autoplay_rag import IngestPipeline
from autoplay_rag.embedders import Embedder
from autoplay_rag.stores import MemoryStore
from llama_index.core import MockEmbedding
from llama_index.core.base.embeddings.base import BaseEmbedding

from llama_index.readers.autoplay import LlamaIndexEmbedder

threads: list[int] = []


class Local(BaseEmbedding):
    """Like a local model: async methods that block."""

    def _get_text_embedding(self, text: str) -> list[float]:
        threads.append(threading.get_ident())
        return [float(len(text)), 1.0]

    def _get_query_embedding(self, query: str) -> list[float]:
        threads.append(threading.get_ident())
        return [0.0, float(len(query))]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


class Remote(Local):
    """Like a service: batches through an async client."""

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return [self._get_text_embedding(text) for text in texts]


@pytest.fixture(autouse=True)
def no_threads_yet():
    threads.clear()


async def test_a_model_that_blocks_is_called_in_a_thread():
    embedder = LlamaIndexEmbedder(Local())
    assert isinstance(embedder, Embedder)
    assert await embedder.embed(["a", "bb"]) == [[1.0, 1.0], [2.0, 1.0]]
    assert await embedder.embed_query("abc") == [0.0, 3.0]
    assert threading.get_ident() not in threads


async def test_a_model_that_embeds_batches_asynchronously_is_awaited():
    embedder = LlamaIndexEmbedder(Remote())
    assert await embedder.embed(["a", "bb"]) == [[1.0, 1.0], [2.0, 1.0]]
    assert await embedder.embed_query("abc") == [0.0, 3.0]
    assert set(threads) == {threading.get_ident()}
    threads.clear()
    await LlamaIndexEmbedder(Remote(), use_async=False).embed(["a"])
    assert threading.get_ident() not in threads


def test_the_model_name_has_what_changes_the_vectors():
    assert LlamaIndexEmbedder(MockEmbedding(embed_dim=3)).model == "MockEmbedding:unknown:3"
    assert LlamaIndexEmbedder(Local(model_name="m")).model == "Local:m"
    assert LlamaIndexEmbedder(Local(), "mine:v2").model == "mine:v2"
    assert repr(LlamaIndexEmbedder(Local(), "mine:v2")) == "LlamaIndexEmbedder('mine:v2')"


def test_a_request_holds_what_the_model_says():
    assert LlamaIndexEmbedder(Local(embed_batch_size=7)).max_inputs == 7


async def test_a_pipeline_embeds_with_it(make_payload):
    async with IngestPipeline(MemoryStore(), LlamaIndexEmbedder(Local())) as pipeline:
        await pipeline.on_actions(make_payload("exported a report"))
        await pipeline.drain()
        assert pipeline.ledger.stored == 1
        assert pipeline.ledger.embed_requests == 1

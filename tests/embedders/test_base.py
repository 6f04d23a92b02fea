from __future__ import annotations

import asyncio

import pytest

from autoplay_rag.embedders import Embedder, as_embedder
from autoplay_rag.errors import ConfigurationError


class Minimal:
    model = "minimal"

    async def embed(self, texts):
        return [[float(len(text))] for text in texts]


class Complete(Minimal):
    max_inputs = 3
    max_request_tokens = 5
    closed = False

    async def embed_query(self, text):
        return [-1.0]

    def count_tokens(self, text):
        return 9

    async def aclose(self):
        self.closed = True


class SyncLangChain:
    model_name = "sync"

    def embed_documents(self, texts):
        return [[float(len(text))] for text in texts]

    def embed_query(self, text):
        return [0.5]


class AsyncLangChain(SyncLangChain):
    model = "async"

    async def aembed_documents(self, texts):
        return [[2.0 * len(text)] for text in texts]

    async def aembed_query(self, text):
        return [1.5]


async def test_an_object_with_the_two_members_gets_the_defaults():
    embedder = as_embedder(Minimal())
    assert isinstance(embedder, Embedder)
    assert (embedder.model, embedder.max_inputs) == ("minimal", 256)
    assert await embedder.embed(["abc"]) == [[3.0]]
    assert await embedder.embed_query("ab") == [2.0]
    assert embedder.count_tokens("abcdef") == 3
    await embedder.aclose()


async def test_what_an_object_has_of_its_own_is_kept():
    own = Complete()
    embedder = as_embedder(own)
    assert (embedder.max_inputs, embedder.max_request_tokens) == (3, 5)
    assert await embedder.embed_query("ab") == [-1.0]
    assert embedder.count_tokens("a") == 9
    await embedder.aclose()
    assert own.closed


def test_an_embedder_is_taken_as_it_is():
    class Own(Embedder):
        model = "own"

    own = Own()
    assert as_embedder(own) is own


async def test_langchain_embeddings_are_wrapped():
    sync, other = as_embedder(SyncLangChain()), as_embedder(AsyncLangChain())
    assert (sync.model, other.model) == ("SyncLangChain:sync", "AsyncLangChain:async")
    assert [await e.embed(["ab"]) for e in (sync, other)] == [[[2.0]], [[4.0]]]
    assert [await e.embed_query("ab") for e in (sync, other)] == [[0.5], [1.5]]


@pytest.mark.parametrize("found", [object(), None, "text", type("NoModel", (), {"embed": len})()])
def test_anything_else_is_refused(found):
    with pytest.raises(ConfigurationError, match="is no embedder"):
        as_embedder(found)


async def test_embeddings_may_raise_stop_iteration():
    class Broken(SyncLangChain):
        def embed_documents(self, texts):
            next(iter(()))

        embed_query = embed_documents

    embedder = as_embedder(Broken())
    async with asyncio.timeout(30):
        with pytest.raises(RuntimeError, match="embed_documents raised StopIteration"):
            await embedder.embed(["abc"])
        with pytest.raises(RuntimeError, match="raised StopIteration"):
            await embedder.embed_query("abc")

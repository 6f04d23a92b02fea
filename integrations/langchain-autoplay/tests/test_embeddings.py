from __future__ import annotations

import asyncio

import pytest
from autoplay_rag.embedders import LocalEmbedder
from autoplay_rag.errors import ConfigurationError
from langchain_tests.unit_tests import EmbeddingsUnitTests

from langchain_autoplay import LocalEmbeddings


class TestContract(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[LocalEmbeddings]:
        return LocalEmbeddings


async def test_it_gives_the_models_vectors_whichever_way_it_is_asked():
    embeddings, bare = LocalEmbeddings(), LocalEmbedder()
    texts = ["Exported a report", "Declined the credit card"]
    wanted = [vector.tolist() for vector in await bare.embed(texts)]
    await bare.aclose()
    assert embeddings.embed_documents(texts) == wanted  # also inside a running loop
    assert await embeddings.aembed_documents(texts) == wanted
    assert embeddings.embed_query(texts[0]) == pytest.approx(wanted[0], abs=1e-6)
    assert await embeddings.aembed_query(texts[0]) == embeddings.embed_query(texts[0])
    assert await asyncio.to_thread(embeddings.embed_documents, texts) == wanted
    assert embeddings.embed_documents([]) == []


def test_it_names_its_model_and_refuses_what_cannot_be():
    assert repr(LocalEmbeddings()) == "LocalEmbeddings('local:all-MiniLM-L6-v2-int8')"
    with pytest.raises(ConfigurationError, match="threads"):
        LocalEmbeddings(threads=0)
    with pytest.raises(ConfigurationError, match="precision"):
        LocalEmbeddings(precision="int4")


def test_int8_has_a_name_and_vectors_of_its_own():
    embeddings, bare = LocalEmbeddings(precision="int8"), LocalEmbedder(precision="int8")
    assert embeddings.model == bare.model == "local:all-MiniLM-L6-v2-w8a8"
    assert embeddings.embed_query("Exported") == bare.embed_query_sync("Exported").tolist()

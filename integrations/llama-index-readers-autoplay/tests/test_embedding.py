from __future__ import annotations

import copy
import pickle

import pytest
from autoplay_rag.embedders import LocalEmbedder
from autoplay_rag.errors import ConfigurationError
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding

from llama_index.readers.autoplay import LocalEmbedding

TEXTS = ["Exported a report", "Declined the credit card"]


async def test_it_gives_the_models_vectors_whichever_way_it_is_asked():
    embedding, bare = LocalEmbedding(), LocalEmbedder()
    wanted = [vector.tolist() for vector in await bare.embed(TEXTS)]
    await bare.aclose()
    assert isinstance(embedding, BaseEmbedding)
    assert embedding.get_text_embedding_batch(TEXTS) == wanted  # also inside a running loop
    assert await embedding.aget_text_embedding_batch(TEXTS) == wanted
    assert embedding.get_text_embedding(TEXTS[0]) == pytest.approx(wanted[0], abs=1e-6)
    assert await embedding.aget_text_embedding(TEXTS[0]) == embedding.get_text_embedding(TEXTS[0])
    assert await embedding.aget_query_embedding(TEXTS[0]) == embedding.get_query_embedding(TEXTS[0])


def test_an_index_finds_what_is_nearest_in_meaning():
    documents = [Document(text=text) for text in TEXTS]
    index = VectorStoreIndex.from_documents(documents, embed_model=LocalEmbedding())
    (found,) = index.as_retriever(similarity_top_k=1).retrieve("Who downloaded a report?")
    assert found.text == "Exported a report"


def test_it_names_its_model_and_takes_the_options_of_all_models():
    embedding = LocalEmbedding(embed_batch_size=7)
    assert (embedding.embed_batch_size, embedding.class_name()) == (7, "LocalEmbedding")
    assert embedding.model_name == "local:all-MiniLM-L6-v2-int8"
    restored = LocalEmbedding.from_dict(embedding.to_dict())
    assert restored.embed_batch_size == 7
    assert len(restored.get_text_embedding("Exported")) == 384


def test_int8_has_a_name_and_vectors_of_its_own_also_when_restored():
    embedding, bare = LocalEmbedding(precision="int8"), LocalEmbedder(precision="int8")
    assert embedding.model_name == bare.model == "local:all-MiniLM-L6-v2-w8a8"
    wanted = bare.embed_query_sync("Exported").tolist()
    for one in (embedding, LocalEmbedding.from_dict(embedding.to_dict()), copy.copy(embedding)):
        assert (one.precision, one.get_query_embedding("Exported")) == ("int8", wanted)
    with pytest.raises(ConfigurationError, match="precision"):
        LocalEmbedding(precision="int4")


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_embeds_too(again):
    embedding = LocalEmbedding()
    wanted = embedding.get_text_embedding("Exported")
    assert again(embedding).get_text_embedding("Exported") == wanted

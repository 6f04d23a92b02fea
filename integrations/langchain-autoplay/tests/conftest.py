from __future__ import annotations

import hashlib
import math
import re
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore

# No deadline and no check for slow generation: both measure the load of the machine.
ANY_SPEED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("quick", max_examples=50, **ANY_SPEED)
settings.register_profile("thorough", max_examples=500, **ANY_SPEED)
settings.load_profile("quick")  # `--hypothesis-profile=thorough` replaces it


class WordEmbeddings(Embeddings):
    """Count words into 64 buckets: texts with words in common are similar. Loads no model."""

    model = "words"

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        vector = [0.0] * 64
        for word in re.findall(r"\w+", text.lower()):
            vector[hashlib.blake2b(word.encode(), digest_size=1).digest()[0] % 64] += 1.0
        length = math.sqrt(sum(value * value for value in vector)) or 1.0
        return [value / length for value in vector]


@pytest.fixture
def embeddings() -> WordEmbeddings:
    return WordEmbeddings()


@pytest.fixture
def new_vectorstore(embeddings) -> Callable[..., VectorStore]:
    """Make a real vector store: `new_vectorstore("chroma-cosine")`."""

    def new(name: str, embeddings: Any = embeddings) -> VectorStore:
        kind, _, detail = name.partition("-")
        return {"memory": InMemoryVectorStore, "chroma": _chroma, "faiss": _faiss}[kind](
            embeddings, *filter(None, [detail])
        )

    return new


def _chroma(embeddings: Embeddings, space: str = "") -> VectorStore:
    from langchain_chroma import Chroma

    return Chroma(
        f"store-{uuid.uuid4()}",
        embedding_function=embeddings,
        collection_configuration={"hnsw": {"space": space}} if space else None,
    )


def _faiss(embeddings: Any, index: str = "") -> VectorStore:
    import faiss
    from langchain_community.docstore.in_memory import InMemoryDocstore
    from langchain_community.vectorstores import FAISS
    from langchain_community.vectorstores.utils import DistanceStrategy

    product, distance = DistanceStrategy.MAX_INNER_PRODUCT, DistanceStrategy.EUCLIDEAN_DISTANCE
    indexes: dict[str, Any] = {
        "": faiss.IndexFlatL2,
        "ip": faiss.IndexFlatIP,
        "hnsw": lambda size: faiss.IndexHNSWFlat(size, 16),
    }
    return FAISS(
        embeddings,
        indexes[index](64),
        InMemoryDocstore(),
        {},
        distance_strategy=product if index == "ip" else distance,
    )


class ScriptedModel(BaseChatModel):
    """A chat model that answers from a script and records its input."""

    script: list[Any]
    seen: list[list[BaseMessage]]

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, AIMessage]:
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        answer = self.script[min(len(self.seen), len(self.script) - 1)]
        self.seen.append(list(messages))
        message = AIMessage(answer) if isinstance(answer, str) else answer.model_copy()
        return ChatResult(generations=[ChatGeneration(message=message)])


@pytest.fixture
def scripted() -> Callable[..., ScriptedModel]:
    return lambda *script: ScriptedModel(script=list(script), seen=[])

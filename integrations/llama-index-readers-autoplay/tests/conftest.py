"""Fixtures and helpers of several test modules."""

from __future__ import annotations

import asyncio
import inspect
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from hashlib import blake2b
from pathlib import Path

import chromadb
import pytest
from autoplay_rag import Payload
from autoplay_rag.connector.recording import RecordingWriter
from hypothesis import HealthCheck, settings
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import BasePydanticVectorStore
from llama_index.vector_stores.chroma import ChromaVectorStore

# No deadline and no check for slow generation: both measure the load of the machine.
ANY_SPEED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("quick", max_examples=50, **ANY_SPEED)
settings.register_profile("thorough", max_examples=500, **ANY_SPEED)
settings.load_profile("quick")  # `--hypothesis-profile=thorough` replaces it

DIMENSIONS = 64


class WordEmbedding(BaseEmbedding):
    """Texts with words in common are similar. Fails on request."""

    model_name: str = "words"
    embed_batch_size: int = 50

    _failures: list[Exception] = PrivateAttr(default_factory=list)
    _failed: threading.Event = PrivateAttr(default_factory=threading.Event)
    _seen: bool = PrivateAttr(default=False)
    _refused: str = PrivateAttr(default="")
    _texts: list[str] = PrivateAttr(default_factory=list)

    def fail(self, times: int) -> None:
        """Fail the next `times` requests, as a service does during an outage."""
        self._failed.clear()
        self._failures = [ConnectionError("the service is down")] * times

    async def has_failed(self) -> None:
        """Wait for two failures: by then the outage is known."""
        assert await asyncio.to_thread(self._failed.wait, 10)

    def refuse(self, word: str) -> None:
        """Refuse every request that contains this word."""
        self._refused = word

    @property
    def texts(self) -> list[str]:
        """All texts embedded so far."""
        return self._texts

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        if self._failures:
            left = len(self._failures) - 1
            error = self._failures.pop()
            if self._seen:
                self._failed.set()
            self._seen = left > 0
            raise error
        if self._refused and any(self._refused in text for text in texts):
            raise ValueError("this text is not taken")
        self._texts.extend(texts)
        return [vector_of(text) for text in texts]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return vector_of(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return vector_of(query)


def vector_of(text: str) -> list[float]:
    vector = [0.01] * DIMENSIONS
    for word in text.lower().split():
        vector[blake2b(word.encode(), digest_size=1).digest()[0] % DIMENSIONS] += 1
    return vector


@pytest.fixture
def embed_model() -> WordEmbedding:
    return WordEmbedding()


@pytest.fixture
def chroma() -> ChromaVectorStore:
    """Real Chroma in memory. Its clients share one space, so each collection has its own name."""
    collection = chromadb.EphemeralClient().create_collection(f"c{uuid.uuid4().hex}")
    return ChromaVectorStore(chroma_collection=collection)


@pytest.fixture(params=["chroma", "simple"])
def vector_store(request: pytest.FixtureRequest) -> BasePydanticVectorStore:
    if request.param == "simple":
        return SimpleVectorStore()
    return request.getfixturevalue("chroma")


@pytest.fixture
def record(tmp_path: Path) -> Callable[[Sequence[Payload]], Path]:
    """Write payloads to a recording: `record([payload])`."""

    def write(payloads: Sequence[Payload]) -> Path:
        path = tmp_path / f"{uuid.uuid4().hex}.jsonl"
        with RecordingWriter(path) as recording:
            for payload in payloads:
                recording.write(payload)
        return path

    return write


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> str:
    """The tests' token. The environment variable for it is unset."""
    monkeypatch.delenv("AUTOPLAY_APP_UNKEY_TOKEN", raising=False)
    return "uk_live_secret_of_the_tests"


@pytest.fixture(autouse=True)
def _tasks_are_checked(request: pytest.FixtureRequest) -> None:
    """Run only in async tests. Set up first, so that all other fixtures end before the check."""
    if inspect.iscoroutinefunction(getattr(request.node, "obj", None)):
        request.getfixturevalue("no_leaked_tasks")


@pytest.fixture
async def no_leaked_tasks() -> AsyncIterator[None]:
    """Fail a test that leaves a task running."""
    yield
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    if tasks:
        _, tasks = await asyncio.wait(tasks, timeout=10)  # some are about to end
    assert not tasks, f"tasks left running: {tasks}"

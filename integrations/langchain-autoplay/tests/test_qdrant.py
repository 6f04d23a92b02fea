"""Qdrant: the form of filters and their effect in Qdrant's in-memory engine; the index kind in both."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from autoplay_rag import ActionsPayload, Chunk, Filter, IngestPipeline, SlimAction
from autoplay_rag.errors import ConfigurationError
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from qdrant_client import QdrantClient, models

from langchain_autoplay import AutoplayRetriever, LangChainStore
from langchain_autoplay.filters import qdrant
from langchain_autoplay.kinds import kind_of
from langchain_autoplay.kinds.qdrant import Qdrant

ids = st.none() | st.sampled_from(["a", "b", "", "x.y", "metadata"])
times = st.none() | st.floats(0, 100)
FILTERS = st.builds(
    Filter, session_id=ids, user_id=ids, product_id=ids, kind=ids, since=times, until=times
)
METADATA = [
    {"session_id": session, "user_id": user, "kind": "a", **when}
    for session in ("a", "x.y")
    for user in ("a", "b", "")
    for when in ({}, {"started_at": 10.0, "ended_at": 20.0}, {"started_at": 50.0, "ended_at": 90.0})
] + [{}, {"product_id": "a"}]


class QdrantVectorStore(VectorStore):
    """The part of `langchain_qdrant.QdrantVectorStore` that is called, over the same client.

    It uses the same defaults and names, so that package need not be installed.
    """

    def __init__(
        self,
        client: QdrantClient,
        collection_name: str,
        embedding: Embeddings,
        metadata_payload_key: str = "metadata",
        distance: models.Distance = models.Distance.COSINE,
    ) -> None:
        self.client = client
        self.collection_name = collection_name
        self.metadata_payload_key = metadata_payload_key
        self.distance = distance
        self._embedding = embedding

    def add_texts(
        self, texts: Sequence[str], metadatas: Any = None, *, ids: Any = None, **_: Any
    ) -> list[str]:
        vectors = self._embedding.embed_documents(list(texts))
        points = [
            models.PointStruct(
                id=id_,
                vector=vector,
                payload={"page_content": text, self.metadata_payload_key: metadata},
            )
            for id_, vector, text, metadata in zip(ids, vectors, texts, metadatas, strict=True)
        ]
        self.client.upsert(self.collection_name, points)
        return list(ids)

    def delete(self, ids: list[str] | None = None, **_: Any) -> bool:
        self.client.delete(self.collection_name, ids)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        found = self.client.retrieve(self.collection_name, ids, with_payload=True)
        return [self._document(point) for point in found]

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: models.Filter | None = None, **_: Any
    ) -> list[tuple[Document, float]]:
        vector = self._embedding.embed_query(query)
        found = self.client.query_points(
            self.collection_name, query=vector, query_filter=filter, limit=k
        )
        return [(self._document(point), point.score) for point in found.points]

    def similarity_search(self, query: str, k: int = 4, **options: Any) -> list[Document]:
        return [document for document, _ in self.similarity_search_with_score(query, k, **options)]

    @classmethod
    def from_texts(cls, *args: Any, **kwargs: Any) -> QdrantVectorStore:
        raise NotImplementedError

    def _document(self, point: Any) -> Document:
        metadata = dict(point.payload[self.metadata_payload_key])
        added = {"_id": point.id, "_collection_name": self.collection_name}
        return Document(point.payload["page_content"], metadata=metadata | added)


QdrantVectorStore.__module__ = "langchain_qdrant.qdrant"


@pytest.fixture
def make_store(embeddings):
    def make(
        client: QdrantClient | None = None, distance=models.Distance.COSINE, **options: Any
    ) -> QdrantVectorStore:
        client = client or QdrantClient(":memory:")
        size = models.VectorParams(size=64, distance=distance)
        client.create_collection("visits", vectors_config=size)
        return QdrantVectorStore(client, "visits", embeddings, distance=distance, **options)

    return make


@pytest.mark.parametrize(
    ("filter_", "key", "expected"),
    [
        (
            Filter(user_id="u1"),
            "metadata",
            [("metadata.user_id", models.MatchValue(value="u1"), None)],
        ),
        (
            Filter(session_id="s", product_id="p", conversation_id="c", kind="chat"),
            "meta",
            [
                ("meta.product_id", models.MatchValue(value="p"), None),
                ("meta.session_id", models.MatchValue(value="s"), None),
                ("meta.conversation_id", models.MatchValue(value="c"), None),
                ("meta.kind", models.MatchValue(value="chat"), None),
            ],
        ),
        (
            Filter(since=5.0, until=9.0),
            "metadata",
            [
                ("metadata.ended_at", None, models.Range(gte=5.0)),
                ("metadata.started_at", None, models.Range(lte=9.0)),
            ],
        ),
        (Filter(user_id="u1"), "", [("user_id", models.MatchValue(value="u1"), None)]),
    ],
)
def test_a_filter_has_the_shape_that_qdrant_takes(filter_, key, expected):
    found = qdrant(filter_, key)
    conditions = [(c.key, c.match, c.range) for c in found.must]
    assert sorted(conditions, key=str) == sorted(expected, key=str)
    assert (found.should, found.must_not) == (None, None)


def test_an_empty_filter_becomes_none():
    assert qdrant(Filter()) is None


@pytest.fixture(scope="module")
def filled() -> QdrantClient:
    client = QdrantClient(":memory:")
    size = models.VectorParams(size=1, distance=models.Distance.DOT)
    client.create_collection("visits", vectors_config=size)
    points = [
        models.PointStruct(id=number, vector=[1.0], payload={"metadata": metadata})
        for number, metadata in enumerate(METADATA)
    ]
    client.upsert("visits", points)
    return client


@given(FILTERS)
def test_qdrant_finds_what_the_filter_says(filled: QdrantClient, filter_: Filter) -> None:
    found, _ = filled.scroll("visits", scroll_filter=qdrant(filter_), limit=len(METADATA))
    expected = [number for number, metadata in enumerate(METADATA) if filter_.matches(metadata)]
    assert sorted(point.id for point in found) == expected


@pytest.mark.parametrize("key", ["metadata", "about"])
@pytest.mark.parametrize("distance", ["COSINE", "EUCLID", "DOT"])
async def test_a_scoped_search_finds_one_persons_chunks(make_store, key, distance):
    vectorstore = make_store(metadata_payload_key=key, distance=models.Distance[distance])
    async with IngestPipeline(LangChainStore(vectorstore)) as pipeline:
        for user in ("ann", "bob", "cem"):
            click = SlimAction("Export", f"{user} clicked Export")
            await pipeline.on_actions(ActionsPayload("acme", f"s-{user}", user, actions=[click]))
        await pipeline.drain()
        retriever = AutoplayRetriever(pipeline, scope="user_id")
        for user in ("ann", "bob", "nobody"):
            config = {"configurable": {"user_id": user}}
            found = await retriever.ainvoke("Who clicked Export?", config)
            expected = [] if user == "nobody" else [f"s-{user}"]
            assert [document.metadata["session_id"] for document in found] == expected
        with pytest.raises(ConfigurationError):
            await retriever.ainvoke("Who clicked Export?")


async def test_what_was_stored_is_got_deleted_and_counted(make_store):
    store = LangChainStore(make_store())
    assert store.capabilities == {"delete", "get"}
    one, two = (Chunk(uuid.uuid4().hex, text, {"user_id": "u1"}) for text in ("Opened", "Saved"))
    await store.add([one, two])
    await store.add([two])
    assert await store.count() == 2
    assert await store.get([one.id, uuid.uuid4().hex]) == [one]
    await store.delete([one.id, uuid.uuid4().hex])
    assert await store.count() == 1
    [match] = await store.search("Saved", 5, Filter(user_id="u1"))
    assert (match.id, match.text, match.metadata) == (two.id, "Saved", {"user_id": "u1"})


@pytest.mark.parametrize("distance", ["COSINE", "EUCLID", "DOT"])
async def test_a_score_is_the_cosine_similarity(make_store, distance):
    store = LangChainStore(make_store(distance=models.Distance[distance]))
    await store.add([Chunk(uuid.uuid4().hex, "one two", {}), Chunk(uuid.uuid4().hex, "three", {})])
    scores = [match.score for match in await store.search("one two", 2, Filter())]
    assert scores == pytest.approx([1.0, 0.0], abs=1e-5)


def test_only_a_store_in_memory_is_not_persistent(make_store, embeddings, tmp_path):
    assert not LangChainStore(make_store()).persistent
    client = QdrantClient(path=str(tmp_path / "qdrant"))
    assert LangChainStore(make_store(client)).persistent
    client.close()
    server = SimpleNamespace(_client=SimpleNamespace())
    assert LangChainStore(QdrantVectorStore(server, "visits", embeddings)).persistent


def test_it_is_known_by_its_class_and_takes_ones_own_filter_builder(make_store):
    assert type(kind_of(make_store(), None)) is Qdrant
    own = kind_of(make_store(), lambda asked: ("own", asked.user_id))
    assert own.translate(Filter(user_id="u1")) == ("own", "u1")

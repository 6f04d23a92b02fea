from __future__ import annotations

from types import SimpleNamespace

import pytest
from autoplay_rag import Filter
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_postgres import PGVector
from langchain_postgres.vectorstores import _get_embedding_collection_store
from sqlalchemy.dialects import postgresql

from langchain_autoplay.filters import operators, over_documents, over_metadata
from langchain_autoplay.kinds import PGVector as PGVectorKind
from langchain_autoplay.kinds import kind_of

ids = st.none() | st.sampled_from(["a", "b"])
times = st.none() | st.floats(0, 100)
filters = st.builds(Filter, session_id=ids, user_id=ids, kind=ids, since=times, until=times)
metadata = st.fixed_dictionaries(
    {},
    optional={
        "session_id": st.sampled_from(["a", "b"]),
        "user_id": st.sampled_from(["a", "b"]),
        "kind": st.sampled_from(["a", "b"]),
        "started_at": st.floats(0, 100),
        "ended_at": st.floats(0, 100),
    },
)


def holds(expression: dict | None, found: dict) -> bool:
    """Evaluate what `operators` returned, as the databases do."""
    if expression is None:
        return True
    if "$and" in expression:
        assert len(expression["$and"]) > 1, "Chroma refuses an $and of one"
        return all(holds(part, found) for part in expression["$and"])
    [(key, condition)] = expression.items()
    [(op, wanted)] = condition.items()
    if key not in found:
        return False
    return {
        "$eq": found[key] == wanted,
        "$gte": op == "$gte" and found[key] >= wanted,
        "$lte": op == "$lte" and found[key] <= wanted,
    }[op]


@given(filters, metadata)
def test_all_translations_say_what_the_filter_says(filter_: Filter, found: dict) -> None:
    expected = filter_.matches(found)
    assert holds(operators(filter_), found) == expected
    for translated, value in (
        (over_documents(filter_), Document("text", metadata=found)),
        (over_metadata(filter_), found),
    ):
        assert (translated is None) == (not filter_.conditions())
        assert (translated is None or translated(value)) == expected


@given(filters.filter(Filter.conditions))
def test_postgres_takes_what_is_made_for_it(filter_: Filter) -> None:
    store = PGVector.__new__(PGVector)
    store.EmbeddingStore, _ = _get_embedding_collection_store(None)
    clause = str(
        store._create_filter_clause(operators(filter_)).compile(dialect=postgresql.dialect())
    )
    assert clause.count("jsonb_path_match") == len(filter_.conditions())


@pytest.mark.parametrize(
    ("strategy", "score", "similarity"),
    [
        ("COSINE", 0.25, 0.75),
        ("EUCLIDEAN", 2**0.5, 0.0),
        ("MAX_INNER_PRODUCT", -0.75, 0.75),
    ],
)
def test_postgres_distances_become_similarities(strategy, score, similarity):
    from langchain_postgres.vectorstores import DistanceStrategy

    store = SimpleNamespace(_distance_strategy=DistanceStrategy[strategy])
    assert PGVectorKind(store, None).similarity(score) == pytest.approx(similarity)


def test_a_store_is_known_by_its_class(embeddings):
    assert type(kind_of(PGVector.__new__(PGVector), None)) is PGVectorKind
    assert type(kind_of(InMemoryVectorStore(embeddings), None)).__name__ == "InMemory"

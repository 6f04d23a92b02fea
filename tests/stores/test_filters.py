"""Any filter with any `k` finds what a comparison with all chunks finds, whatever was changed."""

from __future__ import annotations

import asyncio
import math
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoplay_rag.stores import ChromaStore, Chunk, Filter, MemoryStore
from autoplay_rag.stores.chroma.shared import ChromaWorker

NAMES = st.sampled_from(["a", "b", ""])
TIMES = st.one_of(st.integers(0, 5), st.sampled_from([0.5, 2.5, 4.0, -1e300]))
KEYS = {
    "session_id": NAMES,
    "user_id": NAMES,
    "product_id": NAMES,
    "conversation_id": NAMES,
    "kind": NAMES,
    "started_at": TIMES,
    "ended_at": TIMES,
    "title": NAMES,
}
IDS = st.sampled_from([f"c{number}" for number in range(12)] + ["ü\0'"])
VECTORS = st.lists(st.integers(-3, 3), min_size=3, max_size=3)
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("upsert"),
            st.lists(
                st.tuples(IDS, VECTORS, st.fixed_dictionaries({}, optional=KEYS)),
                min_size=1,
                max_size=8,
            ),
        ),
        st.tuples(st.just("delete"), st.lists(IDS, max_size=4)),
        st.tuples(
            st.just("update"),
            st.dictionaries(
                IDS,
                st.fixed_dictionaries(
                    {}, optional={key: st.none() | values for key, values in KEYS.items()}
                ),
                max_size=4,
            ),
        ),
    ),
    max_size=8,
)
FILTERS = st.builds(
    Filter,
    session_id=st.none() | NAMES,
    user_id=st.none() | NAMES,
    product_id=st.none() | NAMES,
    conversation_id=st.none() | NAMES,
    kind=st.none() | NAMES,
    since=st.none() | TIMES,
    until=st.none() | TIMES,
)
SINGLE = st.one_of(
    NAMES.map(lambda name: Filter(user_id=name)),
    NAMES.map(lambda name: Filter(session_id=name)),
    TIMES.map(lambda time: Filter(since=time)),
    TIMES.map(lambda time: Filter(until=time)),
    st.just(Filter()),
)
QUESTIONS = st.lists(
    st.tuples(VECTORS, st.integers(1, 15), FILTERS | SINGLE), min_size=1, max_size=6
)
NUMBERS = count()


def similarity(one, other) -> float:
    lengths = math.hypot(*one) * math.hypot(*other)
    return sum(a * b for a, b in zip(one, other, strict=True)) / lengths if lengths else 0.0


async def check(store, steps, questions, within=1e-5):
    """Make the changes in a store and in a dict, and compare all answers."""
    held: dict[str, tuple[list[int], dict]] = {}
    await store.start("model-a")
    for step, given_ in steps:
        if step == "upsert":
            await store.upsert(
                [Chunk(name, f"text of {name}", dict(metadata)) for name, _, metadata in given_],
                [vector for _, vector, _ in given_],
            )
            held.update({name: (vector, metadata) for name, vector, metadata in given_})
        elif step == "delete":
            await store.delete(given_)
            for name in given_:
                held.pop(name, None)
        else:
            await store.update_metadata(given_)
            for name in given_.keys() & held.keys():
                vector, metadata = held[name]
                merged = {**metadata, **given_[name]}
                held[name] = vector, {k: v for k, v in merged.items() if v is not None}
    for vector, k, wanted in questions:
        scores = {
            name: similarity(vector, stored)
            for name, (stored, metadata) in held.items()
            if wanted.matches(metadata)
        }
        found = await store.query(vector, k, wanted)
        best = sorted(scores.values(), reverse=True)[:k]
        assert [match.score for match in found] == pytest.approx(best, abs=within)
        assert len({match.id for match in found}) == len(found)
        for match in found:
            assert match.score == pytest.approx(scores[match.id], abs=within)
            assert match.text == f"text of {match.id}"
            assert match.metadata == held[match.id][1]
            types = {key: type(value) for key, value in held[match.id][1].items()}
            assert {key: type(value) for key, value in match.metadata.items()} == types
        everything = {name: similarity(vector, stored) for name, (stored, _) in held.items()}
        found_scores = await store.score(vector, [*held, "unknown"])
        assert found_scores == pytest.approx(everything, abs=within)


@given(STEPS, QUESTIONS)
def test_memory_store_is_exact(steps, questions):
    asyncio.run(check(MemoryStore(), steps, questions))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder whose worker stays for all examples: to start one takes seconds."""
    path = tmp_path_factory.mktemp("chroma").resolve()
    worker = ChromaWorker.acquire(path)
    yield path
    asyncio.run(worker.release())


@settings(
    deadline=None,
    max_examples=max(10, settings.default.max_examples // 2),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(STEPS, QUESTIONS)
def test_postgres_without_an_index_is_exact(make_pg_store, steps, questions):
    async def run() -> None:
        store = make_pg_store(schema="filters", table=f"test-{next(NUMBERS)}")
        try:
            await check(store, steps, questions, within=1e-3)  # half precision
            await store.drop()
        finally:
            await store.aclose()

    asyncio.run(run())


@settings(
    deadline=None,
    max_examples=max(10, settings.default.max_examples // 2),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(STEPS, QUESTIONS)
def test_a_small_chroma_is_exact(folder, steps, questions):
    async def run() -> None:
        # Chunks of another collection have the same ids, names and times.
        other = ChromaStore(folder, collection="other")
        await other.start("model-a")
        await other.upsert(
            [Chunk(f"c{i}", "of another", {"user_id": "a", "ended_at": 3}) for i in range(6)],
            [[1, 0, 0]] * 6,
        )
        store = ChromaStore(folder, collection=f"test-{next(NUMBERS)}")
        try:
            await check(store, steps, questions)
            await store.drop()
        finally:
            await store.aclose()
            await other.aclose()

    asyncio.run(run())

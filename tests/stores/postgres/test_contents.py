"""What the contract does not ask for: the tables, the filters, the forms of values."""

from __future__ import annotations

import math
import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_helpers import ALL, EAST, NORTH, chunk, ids

from autoplay_rag.errors import MissingExtraError, StoreRejectedError, UnsupportedFilterError
from autoplay_rag.stores import Chunk, Filter, PgVectorStore, StoreIdentity
from autoplay_rag.stores.postgres.contents import _few
from autoplay_rag.stores.postgres.encoding import (
    decoded_metadata,
    decoded_text,
    encoded_metadata,
    encoded_text,
)


@pytest.fixture
async def store(make_pg_store):
    store = make_pg_store()
    await store.start("model-a")
    yield store
    await store.aclose()


class Odd(Filter):
    """A filter of a user that compares other keys, and in other ways."""

    __slots__ = ("given",)

    def __init__(self, *given):
        super().__init__()
        object.__setattr__(self, "given", given)

    def conditions(self):
        return list(self.given)


async def test_filters_on_any_key(store):
    await store.upsert(
        [
            chunk("a", title="Export", action_count=3, user_id=5),
            chunk("b", title="Import", action_count=4.5),
            chunk("c", title=7, action_count="many", user_id="5"),
            chunk("nul\0", title="a\0b"),
        ],
        [EAST, NORTH, EAST, EAST],
    )

    async def found(*conditions):
        return sorted(ids(await store.query(EAST, 9, Odd(*conditions))))

    assert await found(("title", "==", "Export")) == ["a"]
    assert await found(("title", ">=", "F")) == ["b", "nul\0"]
    assert await found(("title", "==", 7)) == ["c"]
    assert await found(("title", "==", "a\0b")) == ["nul\0"]
    assert await found(("action_count", ">=", 3)) == ["a", "b"]
    assert await found(("action_count", "<=", 3.5)) == ["a"]
    assert await found(("user_id", "==", "5")) == ["c"]
    assert await found(("user_id", "==", 5)) == ["a"]
    assert await found(("user_id", ">=", "4"), ("title", "==", 7)) == ["c"]
    assert await found(("o'dd%s", "==", "x")) == []
    with pytest.raises(UnsupportedFilterError, match="'title' by 'in' with a list"):
        await found(("title", "in", ["a"]))


async def test_long_names_are_told_apart(store):
    """A column of an index holds the first 500 characters."""
    long = "é" * 3000
    await store.upsert(
        [chunk("a", user_id=long + "a"), chunk("b", user_id=long + "b")], [EAST, NORTH]
    )
    assert ids(await store.query(EAST, 5, Filter(user_id=long + "b"))) == ["b"]
    assert await store.query(EAST, 5, Filter(user_id="é" * 500)) == []
    await store.upsert([chunk("c", user_id="x" * 500)], [EAST])
    assert ids(await store.query(EAST, 5, Filter(user_id="x" * 500))) == ["c"]


async def test_an_id_that_no_index_can_hold_is_refused(store):
    noise = random.Random(1).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=9000)
    with pytest.raises(StoreRejectedError, match="refuses the input: index row"):
        await store.upsert([chunk("".join(noise))], [EAST])
    assert await store.count() == 0


async def test_vectors_with_more_dimensions_than_pgvector_keeps_are_refused(store):
    with pytest.raises(StoreRejectedError, match=r"16001 dimensions.*16000"):
        await store.upsert([chunk("a")], [[1.0] * 16_001])
    await store.upsert([chunk("a")], [[1.0] * 16_000])
    assert await store.score([1.0] * 16_000, ["a"]) == pytest.approx({"a": 1}, abs=1e-3)


@pytest.mark.parametrize("dimension", [384, 1536])
async def test_half_precision_hardly_changes_the_scores_of_real_vectors(store, dimension):
    source = random.Random(dimension)
    one, other = ([source.gauss(0, 1) for _ in range(dimension)] for _ in range(2))
    lengths = math.hypot(*one) * math.hypot(*other)
    expected = sum(a * b for a, b in zip(one, other, strict=True)) / lengths
    await store.upsert([chunk("a"), chunk("b")], [one, other])
    scores = await store.score(other, ["a", "b"])
    assert scores == pytest.approx({"a": expected, "b": 1.0}, abs=1e-4)


async def test_a_change_of_metadata_writes_only_rows_that_differ(store, postgres):
    await store.upsert([chunk("a", user_id="u1", n=1), chunk("b")], [EAST, NORTH])
    schema = store._schema

    def versions():
        rows = postgres.run(f"SELECT id, xmin::text FROM {schema}.store_chunk_1")
        vectors = postgres.run(f"SELECT id, xmin::text FROM {schema}.store_vector_1")
        return dict(rows), dict(vectors)

    before, vectors = versions()
    await store.update_metadata({"a": {"user_id": "u1"}, "b": {"user_id": "u2"}})
    after, same = versions()
    assert after["a"] == before["a"]
    assert after["b"] != before["b"]
    assert same == vectors
    await store.update_metadata({"a": {"n": 1.0}})
    [found] = await store.get(["a"])
    assert type(found.metadata["n"]) is float
    # An upsert with the same vector leaves the row of the vector index alone.
    await store.upsert([chunk("a", "new text")], [EAST])
    assert versions()[1] == vectors


async def test_the_columns_follow_the_metadata(store, postgres):
    await store.upsert([chunk("a", user_id="u1", started_at=5, kind=7)], [EAST])
    columns = "user_id, started_at, kind, metadata"
    table = f"{store._schema}.store_chunk_1"
    assert postgres.run(f"SELECT {columns} FROM {table}") == [
        ("u1", 5.0, None, {"user_id": "u1", "started_at": 5, "kind": 7})
    ]


async def test_a_schema_with_an_odd_name(make_pg_store):
    store = make_pg_store(schema='My "odd" schema', table="it's a table")
    await store.start("model-a")
    await store.upsert([chunk("a")], [EAST])
    assert ids(await store.query(EAST, 1, ALL)) == ["a"]
    await store.drop()
    await store.aclose()


async def test_two_stores_that_start_at_once(make_pg_store):
    """In a schema that does not exist yet."""
    import asyncio

    one = make_pg_store()
    others = [make_pg_store(schema=one._schema) for _ in range(4)]
    await asyncio.gather(*(store.start("model-a") for store in (one, *others)))
    await asyncio.gather(
        *(store.upsert([chunk(f"c{n}")], [EAST]) for n, store in enumerate((one, *others)))
    )
    assert await one.count() == 5
    for store in (one, *others):
        await store.aclose()


async def test_overlapping_batches_at_once_do_not_deadlock(store):
    import asyncio

    async def write(number):
        names = [f"c{n}" for n in range(40)]
        random.Random(number).shuffle(names)
        batch = [chunk(name, user_id=f"u{number}") for name in names]
        if number % 3 == 1:
            await store.update_metadata({name: {"kind": "chat"} for name in names})
        elif number % 3 == 2:
            await store.delete(names)
        else:
            await store.upsert(batch, [[1.0, number / 100, 0.0]] * len(batch))

    await asyncio.gather(*(write(number) for number in range(24)))
    await store.upsert([chunk("end")], [EAST])


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("autoplay_rag.stores.postgres.dsn.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'autoplay-rag\[postgres\]'"):
        PgVectorStore("postgresql://db.test/app")
    monkeypatch.undo()
    monkeypatch.setattr("autoplay_rag.stores.postgres.store.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'autoplay-rag\[postgres\]'"):
        PgVectorStore("postgresql://db.test/app")


def test_importing_the_package_does_not_load_psycopg():
    code = (
        "import sys; from autoplay_rag.stores import PgVectorStore;"
        "print({'numpy', 'psycopg'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("set()\n", "")


TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.text("\0\x1a0a", max_size=6)


@given(TEXTS)
def test_any_text_comes_back(text):
    assert decoded_text(encoded_text(text)) == text
    assert "\0" not in encoded_text(text)


@given(
    st.dictionaries(
        TEXTS.filter(bool),
        TEXTS | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False),
    )
)
def test_any_metadata_come_back_with_their_types(metadata):
    back = decoded_metadata(encoded_metadata(metadata))
    assert back == metadata
    assert {key: type(value) for key, value in back.items()} == {
        key: type(value) for key, value in metadata.items()
    }


async def test_numbers_come_back_from_the_server_with_their_types(store):
    numbers = [0.0, 1e15, 1e16, -1.5e300, 1.7976931348623157e308, 5e-324, 0.1, 1e-7, 2**53 + 1,
               -(2**63), 123456789.123456789]  # fmt: skip
    metadata = {f"n{at}": number for at, number in enumerate(numbers)}
    await store.upsert([Chunk("a", "t", metadata)], [EAST])
    [found] = await store.get(["a"])
    assert found.metadata == metadata
    assert [type(found.metadata[key]) for key in metadata] == [type(n) for n in numbers]


def test_what_is_few_grows_with_the_collection_and_with_k():
    assert _few(20, 0) == 1000
    assert _few(20, 50_000) == 2236
    assert _few(100, 50_000) == 5000
    assert _few(100, 10**9) == 10_000


async def test_a_late_identity_does_not_lower_the_batch(store):
    """A process that was frozen saves what it knew before."""
    saved = StoreIdentity("store-1", "journal-1", 7)
    await store.save_identity(saved)
    await store.save_identity(StoreIdentity("store-1", "journal-1", 3))
    assert await store.identity() == saved
    await store.save_identity(StoreIdentity("store-1", "journal-1", 9))
    assert await store.identity() == StoreIdentity("store-1", "journal-1", 9)


@pytest.mark.parametrize("names", [("store-2", "journal-1"), ("store-1", "journal-2")])
async def test_another_identity_begins_with_its_own_batch(store, names):
    await store.save_identity(StoreIdentity("store-1", "journal-1", 7))
    await store.save_identity(StoreIdentity(*names, 3))
    assert await store.identity() == StoreIdentity(*names, 3)

from __future__ import annotations

import math
import subprocess
import sys
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_helpers import ALL, EAST, chunk, ids

from autoplay_rag.errors import ConfigurationError, MissingExtraError, StoreMismatchError
from autoplay_rag.stores import Capability, Filter, MemoryStore
from autoplay_rag.stores.memory import _Table
from autoplay_rag.testing import VectorStoreContract


class TestContract(VectorStoreContract):
    @pytest.fixture
    def make_store(self):
        return MemoryStore


async def test_it_keeps_its_chunks_when_closed_but_not_for_another_process():
    store = MemoryStore()
    await store.upsert([chunk("a")], [EAST])
    await store.aclose()
    assert ids(await store.query(EAST, 1, ALL)) == ["a"]
    assert not store.persistent


async def test_it_declares_every_capability():
    assert MemoryStore().capabilities == set(get_args(Capability))


async def test_a_sibling_is_kept_by_the_first():
    store = MemoryStore()
    sibling = store.sibling("large")
    assert store.sibling("large") is sibling
    assert store.sibling("other") is not sibling
    await store.drop()
    assert store.sibling("large") is sibling


async def test_it_names_the_way_out_of_another_model_and_dimension():
    store = MemoryStore()
    await store.start("model-a")
    await store.upsert([chunk("a")], [EAST])
    way_out = r"rebuild=True\).*--rebuild"
    with pytest.raises(StoreMismatchError, match=f"'model-a'.*'model-b'.*{way_out}"):
        await store.start("model-b")
    with pytest.raises(
        StoreMismatchError, match=f"dimension 3, but was given one of dimension 2.*{way_out}"
    ):
        await store.query([1.0, 0.0], 1, ALL)


async def test_a_page_of_less_than_one_chunk_is_refused():
    with pytest.raises(ConfigurationError, match="page must be at least 1"):
        await anext(MemoryStore().scan(0))


async def test_it_grows_past_its_first_capacity():
    store = MemoryStore()
    for start in range(0, 3000, 1000):
        batch = [chunk(f"c{i}", number=i) for i in range(start, start + 1000)]
        vectors = [[math.cos(i / 1000), math.sin(i / 1000)] for i in range(start, start + 1000)]
        await store.upsert(batch, vectors)
    [hit] = await store.query([math.cos(2.345), math.sin(2.345)], 1, ALL)
    assert hit.id == "c2345"
    assert hit.metadata == {"number": 2345}


def test_a_missing_numpy_is_named(monkeypatch):
    monkeypatch.setattr("autoplay_rag.stores.memory.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'autoplay-rag\[local\]'"):
        MemoryStore()


def test_importing_the_package_loads_neither_numpy_nor_chromadb():
    code = (
        "import sys, autoplay_rag.stores as s; from autoplay_rag.stores import ChromaStore, MemoryStore;"
        "MemoryStore(); print({'numpy', 'chromadb'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_an_unknown_name_is_an_attribute_error():
    import autoplay_rag.stores

    with pytest.raises(AttributeError, match="PineconeStore"):
        _ = autoplay_rag.stores.PineconeStore


IDS = st.sampled_from("abcdefgh")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("upsert"), st.lists(st.tuples(IDS, st.integers(0, 7)), max_size=5)),
        st.tuples(st.just("delete"), st.lists(IDS, max_size=4)),
    ),
    max_size=20,
)


@given(STEPS)
def test_whatever_is_stored_and_deleted_it_holds_what_a_dict_would(steps):
    table = _Table()
    expected: dict[str, int] = {}
    for step, items in steps:
        if step == "upsert" and items:
            vectors = [[math.cos(n), math.sin(n)] for _, n in items]
            table.upsert([chunk(name, number=n) for name, n in items], vectors)
            expected.update(items)
        elif step == "delete":
            table.delete(items)
            for name in items:
                expected.pop(name, None)
    assert {c.id: c.metadata["number"] for c in table.chunks} == expected
    for name, n in expected.items():
        hits = table.query([math.cos(n), math.sin(n)], 8, Filter())
        assert len(hits) == len(expected)
        assert next(hit.score for hit in hits if hit.id == name) == pytest.approx(1, abs=1e-5)
        assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)

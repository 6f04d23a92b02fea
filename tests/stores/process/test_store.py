"""The contract of text stores, over a store in a worker process."""

from __future__ import annotations

import asyncio

import pytest
from word_store import WordStore

from autoplay_rag.stores import Capability, Chunk, Filter, ProcessStore
from autoplay_rag.testing import TextStoreContract

FULL: set[Capability] = {"delete", "get", "scan", "update_metadata", "drop", "identity"}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The file of a store whose worker stays for all tests of this module."""
    path = str(tmp_path_factory.mktemp("words") / "words.db")
    keeper = ProcessStore(WordStore, path)
    asyncio.run(keeper.count())
    yield path
    asyncio.run(keeper.aclose())


@pytest.fixture
def make_store(path):
    asyncio.run(ProcessStore(WordStore, path).drop())  # shares the worker
    return lambda: ProcessStore(WordStore, path)


class TestProcessStore(TextStoreContract):
    @pytest.fixture
    def make_store(self, make_store):
        return make_store


async def test_it_has_the_capabilities_of_the_store_once_it_is_started(make_store):
    store = make_store()
    assert store.capabilities == set()
    await store.start("m")
    assert store.capabilities == FULL
    assert store.data_source == "WordStore"
    await store.aclose()
    assert store.capabilities == FULL


async def test_a_filter_of_every_kind_of_time_reaches_the_store(make_store):
    store = make_store()
    await store.start("m")
    await store.add([Chunk("a", "billing", {"started_at": 10.0, "ended_at": 20.0})])
    found = await store.search("billing", 1, Filter(since="1970-01-01T00:00:15Z", until=30))
    assert [match.id for match in found] == ["a"]
    assert await store.is_own()
    await store.aclose()


async def test_a_scan_may_stop_early_and_others_go_on(make_store):
    store = make_store()
    await store.start("m")
    await store.add([Chunk(f"c{n:02}", "text", {}) for n in range(20)])
    first, second = store.scan(5), store.scan(5)
    assert len(await anext(first)) == len(await anext(second)) == 5
    await first.aclose()
    rest = [chunk.id for chunks in [page async for page in second] for chunk in chunks]
    assert len(rest) == await store.count() - 5
    await store.aclose()

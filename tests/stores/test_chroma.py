"""`ChromaStore` over a real Chroma: the contract, and what is its own."""

from __future__ import annotations

import asyncio
from itertools import count

import pytest
from store_contract import StoreContract

from autoplay_rag.stores import ChromaStore
from autoplay_rag.stores.chroma_shared import SharedWorker

NUMBERS = count()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder whose worker stays for all tests of this module: to start one takes seconds."""
    path = tmp_path_factory.mktemp("chroma").resolve()
    worker = SharedWorker.acquire(path)
    yield path
    asyncio.run(worker.release())


@pytest.fixture
def make_store(folder):
    """Makes stores with collections of their own."""
    return lambda: ChromaStore(folder, collection=f"test-{next(NUMBERS)}")


class TestContract(StoreContract):
    pass

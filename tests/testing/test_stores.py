"""The store contracts: they pass correct stores and fail incorrect ones."""

from __future__ import annotations

import asyncio
import re
from textwrap import dedent, indent

import pytest

from autoplay_rag.errors import MissingCapabilityError, StoreMismatchError, UnsupportedFilterError
from autoplay_rag.stores import Match, MemoryStore, TextStore
from autoplay_rag.testing import TextStoreContract, VectorStoreContract

pytest_plugins = ["pytester"]


class WordStore(TextStore):
    """Ranks by the share of a question's words in a chunk; has no capabilities."""

    def __init__(self):
        self.chunks = {}
        self.model = None

    async def start(self, model):
        if self.chunks and self.model not in (None, model):
            raise StoreMismatchError(f"holds {self.model}, not {model}: start with --rebuild")
        self.model = model

    async def add(self, chunks):
        await asyncio.sleep(0)  # suspends, as any store does that is not in memory
        found = {c.id: Match(c.id, c.text, 0.0, dict(c.metadata)) for c in chunks}
        self.chunks.update(found)

    async def search(self, text, k, filter):
        if k < 1:
            raise ValueError(f"k is {k}")
        asked = set(re.findall(r"\w+", text.lower()))
        found = [
            Match(c.id, c.text, len(asked & set(re.findall(r"\w+", c.text.lower()))) / len(asked), c.metadata)
            for c in self.chunks.values()
            if filter.matches(c.metadata)
        ]  # fmt: skip
        return sorted(found, key=lambda match: -match.score)[:k]


class TestATextStoreWithoutCapabilities(TextStoreContract):
    @pytest.fixture
    def make_store(self):
        return WordStore


class ProductStore(MemoryStore):
    """Filters by equality only, and keeps no model."""

    async def start(self, model):
        pass

    async def query(self, vector, k, filter):
        if filter.since is not None or filter.until is not None:
            raise UnsupportedFilterError("it knows no times")
        return await super().query(vector, k, filter)

    @property
    def capabilities(self):
        return super().capabilities - {"sibling", "exchange"}

    def sibling(self, name):
        raise MissingCapabilityError("ProductStore", "sibling")

    async def exchange(self, name):
        raise MissingCapabilityError("ProductStore", "exchange")


class TestAStoreThatWrapsAnother(VectorStoreContract):
    keeps_model = False
    translates_all_filters = False

    @pytest.fixture
    def make_store(self):
        return ProductStore


FAULTS = {
    "forgets to delete": (
        "test_deleted_chunks_are_gone_and_unknown_ids_are_fine",
        "async def delete(self, ids): pass",
    ),
    "merges metadata on upsert": (
        "test_a_chunk_with_the_same_id_is_replaced_whole",
        """
        async def upsert(self, chunks, vectors):
            old = {c.id: c.metadata for c in await self.get([c.id for c in chunks])}
            merged = [Chunk(c.id, c.text, {**old.get(c.id, {}), **c.metadata}) for c in chunks]
            await super().upsert(merged, vectors)
    """,
    ),
    "searches unfiltered": (
        "test_a_filter_passes_far_chunks_too",
        """
        async def query(self, vector, k, filter):
            return await super().query(vector, k, Filter())
    """,
    ),
    "filters after the top k": (
        "test_a_filter_is_applied_before_the_top_k_are_taken",
        """
        async def query(self, vector, k, filter):
            found = await super().query(vector, k, Filter())
            return [match for match in found if filter.matches(match.metadata)]
    """,
    ),
    "keeps its identity among the chunks": (
        "test_an_identity_is_kept_and_found_by_no_search",
        """
        async def save_identity(self, identity):
            await super().save_identity(identity)
            await self.upsert([Chunk("identity", "identity", {})], [[1.0, 0.0, 0.0]])
    """,
    ),
    "shares its siblings' chunks": (
        "test_a_sibling_shares_nothing",
        "def sibling(self, name): return self",
    ),
    "replaces metadata instead of merging it": (
        "test_updated_metadata_is_merged_and_found",
        """
        async def update_metadata(self, changes):
            for chunk in await self.get(list(changes)):
                gone = dict.fromkeys(chunk.metadata)
                await super().update_metadata({chunk.id: {**gone, **changes[chunk.id]}})
    """,
    ),
    "scans by position": (
        "test_a_scan_misses_nothing_while_others_come_and_are_deleted",
        """
        async def scan(self, page=500):
            start = 0
            while chunks := self._table.chunks[start : start + page]:
                yield list(chunks)
                start += page
    """,
    ),
    "keeps the identity when dropped": (
        "test_a_dropped_store_is_empty_and_takes_another_model",
        """
        async def drop(self):
            kept = await self.identity()
            await super().drop()
            if kept:
                await self.save_identity(kept)
    """,
    ),
    "declares what it cannot do": (
        "test_it_can_do_what_it_declares_and_nothing_else",
        """
        async def get(self, ids):
            raise MissingCapabilityError("Store", "get")
    """,
    ),
    "scores by the dot product": (
        "test_scores_are_the_cosine_similarities",
        """
        async def score(self, vector, ids):
            length = sum(value * value for value in vector) ** 0.5
            return {i: s * length for i, s in (await super().score(vector, ids)).items()}
    """,
    ),
    "exchanges chunks without their identity": (
        "test_an_exchange_moves_all_that_two_collections_hold",
        """
        async def exchange(self, name):
            await super().exchange(name)
            one, other = self._table, self.sibling(name)._table
            one.identity, other.identity = other.identity, one.identity
    """,
    ),
    "copies instead of exchanging": (
        "test_an_exchange_moves_all_that_two_collections_hold",
        "async def exchange(self, name): self._table = self.sibling(name)._table",
    ),
    "mixes two models after an exchange": (
        "test_after_an_exchange_calls_for_the_old_model_are_refused",
        """
        async def exchange(self, name):
            await super().exchange(name)
            self._model = None
    """,
    ),
    "becomes its own with the first start": (
        "test_whose_collection_it_is_stays_so",
        "async def is_own(self): return len(self._table.chunks) > 0",
    ),
    "claims a copy that it did not write": (
        "test_a_copy_holds_what_was_stored_before_it",
        "async def copy_to(self, folder): return True",
    ),
    "erases what was not deleted": (
        "test_erasing_leaves_what_was_not_deleted",
        """
        async def erase(self):
            self._table.clear()
            return True
    """,
    ),
    "loses chunks when compacting": (
        "test_compacting_leaves_what_is_stored",
        """
        async def compact(self):
            if self._table.chunks:
                await self.delete([self._table.chunks[0].id])
            return True
    """,
    ),
    "mixes two models": (
        "test_another_model_is_refused",
        "async def start(self, model): pass",
    ),
}


INI = """
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
"""
IMPORTS = """
import pytest
from autoplay_rag.errors import MissingCapabilityError
from autoplay_rag.stores import Chunk, Filter, MemoryStore
from autoplay_rag.testing import VectorStoreContract
"""
CLASSES = """
class Faulty{number}(MemoryStore):
{body}

class Test{number}(VectorStoreContract):
    @pytest.fixture
    def make_store(self):
        return Faulty{number}
"""


def test_each_fault_is_found_by_the_test_that_is_named_for_it(pytester):
    pytester.makeini(INI)
    code, expressions = IMPORTS, []
    for number, (test, body) in enumerate(FAULTS.values()):
        code += CLASSES.format(number=number, body=indent(dedent(body), "    "))
        expressions.append(f"(Test{number} and {test})")
    pytester.makepyfile(code)
    # All in one run: starting one takes seconds.
    result = pytester.inline_run("-q", "-p", "no:cacheprovider", "-k", " or ".join(expressions))
    failed = {report.nodeid.split("::")[1] for report in result.listoutcomes()[2]}
    for number, fault in enumerate(FAULTS):
        assert f"Test{number}" in failed, fault

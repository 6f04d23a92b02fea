"""The contracts of stores: what every `VectorStore` and every `TextStore` must do.

Example:
    The whole test file of your own store::

        class TestMyStore(VectorStoreContract):
            @pytest.fixture
            def make_store(self, tmp_path):
                return lambda: MyStore(tmp_path / f"{uuid4()}.db")
"""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args
from zlib import crc32

import pytest

from autoplay_rag.errors import (
    MissingCapabilityError,
    StoreMismatchError,
    UnsupportedFilterError,
)
from autoplay_rag.stores.base import (
    Capability,
    Chunk,
    Filter,
    Match,
    Metadata,
    Store,
    StoreIdentity,
    TextStore,
    Vector,
    VectorStore,
)

__all__ = ["TextStoreContract", "VectorStoreContract"]

S = TypeVar("S", bound=Store)

_ALL = Filter()
_EAST, _NORTH, _WEST = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]
_MODEL, _OTHER_MODEL = "model-a", "model-b"
_IDENTITY = StoreIdentity("store-1", "journal-1", 7)
_OTHER_IDENTITY = StoreIdentity("store-2", "journal-1", 3)


def _about_east(chunk_id: str) -> list[float]:
    """Return a different vector for each chunk: an approximate index may miss equal vectors."""
    return [1.0, crc32(chunk_id.encode()) / 2**32 / 100, 0.0]


def _filter_id(value: Filter | set[str]) -> str:
    # The order of a set differs from one test process to the next.
    return str(value) if isinstance(value, Filter) else "".join(sorted(value))


_FILTERS = [
    (Filter(session_id="s1"), {"a", "b"}),
    (Filter(user_id="u1"), {"a"}),
    (Filter(product_id="p2"), {"c"}),
    (Filter(conversation_id="t1"), {"b"}),
    (Filter(kind="summary"), {"b"}),
    (Filter(session_id="s1", kind="actions"), {"a"}),
    (Filter(session_id="s1", user_id="u2", kind="summary"), {"b"}),
    (Filter(session_id="none"), set()),
    (Filter(session_id=""), set()),
    (Filter(since=20), {"b", "c"}),
    (Filter(since=20.5), {"c"}),
    (Filter(until=10), {"a"}),
    (Filter(until=15.0), {"a", "b"}),
    (Filter(since=15, until=15), {"b"}),
    (Filter(since=0), {"a", "b", "c"}),
    (Filter(since=datetime.fromtimestamp(20, UTC)), {"b", "c"}),
    (Filter(since=date(1970, 1, 1), until=datetime.fromtimestamp(12, UTC)), {"a"}),
    (Filter(since=date(1970, 1, 2)), set()),
    (
        Filter(
            session_id="s1",
            user_id="u2",
            product_id="p1",
            conversation_id="t1",
            kind="summary",
            since=20,
            until=15,
        ),
        {"b"},
    ),
]


def _chunk(id: str, text: str = "", **metadata: str | float) -> Chunk:
    return Chunk(id, text or f"text of {id}", metadata)


def _ids(found: Sequence[Match] | Sequence[Chunk]) -> list[str]:
    return [item.id for item in found]


async def _scanned(store: Store, page: int = 500) -> list[Chunk]:
    return [chunk async for chunks in store.scan(page) for chunk in chunks]


_USES: dict[Capability, Callable[[Store], Any]] = {
    "delete": lambda store: store.delete(["unknown"]),
    "get": lambda store: store.get(["unknown"]),
    "scan": _scanned,
    "update_metadata": lambda store: store.update_metadata({}),
    "score": lambda store: store.score(_EAST, ["unknown"]),
    "exchange": lambda store: store.exchange("other"),
    "drop": lambda store: store.drop(),
    "identity": lambda store: store.identity(),
}


async def _use(store: Store, capability: Capability) -> None:
    if capability == "sibling":
        await store.sibling("other").aclose()
        return
    await _USES[capability](store)


async def _lacks(store: Store, capability: Capability) -> bool:
    """Return whether the store lacks a capability. If so, its method must raise the error."""
    if capability in store.capabilities:
        return False
    with pytest.raises(MissingCapabilityError) as missing:
        await _use(store, capability)
    assert missing.value.capability == capability
    return True


class _StoreContract(ABC, Generic[S]):
    """What both kinds of store must do.

    Attributes:
        keeps_model: Whether the store itself detects another model at `start`. An adapter of a
            store that cannot record the model sets this to False.
        translates_all_filters: Whether the store translates every condition of `Filter`. If
            False, it may raise `UnsupportedFilterError` instead.
        score_tolerance: The most by which a score of a `VectorStore` may differ from the cosine
            similarity, for vectors of three dimensions. A store that keeps half precision sets
            this to 5e-4.
    """

    keeps_model = True
    translates_all_filters = True
    score_tolerance = 1e-5

    @pytest.fixture
    async def store(self, make_store: Callable[[], S]) -> AsyncIterator[S]:
        """A started, empty store."""
        store = make_store()
        await store.start(_MODEL)
        yield store
        await store.aclose()

    def reopened(self, store: S) -> S:
        """Return the same store, not started, as a new process would open it after `aclose`.

        By default this is the same object. `start` must then open it again.
        """
        return store

    def copied(self, store: S, folder: Path) -> S | None:
        """Return a store, not started, on the files that `copy_to` wrote.

        By default None: the contract then does not look into the copy.
        """
        del store, folder
        return None

    @abstractmethod
    async def _put(self, store: S, chunks: Sequence[Chunk]) -> None:
        """Store chunks that match about equally well, except for their texts."""

    @abstractmethod
    async def _find(self, store: S, k: int = 100, filter: Filter = _ALL) -> list[Match]:
        """Search for the chunks that `_put` stored."""

    async def _size(self, store: S) -> int:
        try:
            return await store.count()
        except MissingCapabilityError:
            return len(await self._find(store, 10_000))

    # -- storing and searching ----------------------------------------------------------------

    async def test_its_attributes(self, store: S) -> None:
        assert store.max_batch >= 1
        assert isinstance(store.persistent, bool)
        assert store.capabilities <= set(get_args(Capability))

    async def test_an_empty_store_finds_nothing(self, store: S) -> None:
        assert await self._size(store) == 0
        assert await self._find(store, 5) == []
        assert await self._find(store, 5, Filter(user_id="u1")) == []

    async def test_a_match_has_all_that_was_stored(self, store: S) -> None:
        metadata: Metadata = {
            "session_id": "s1",
            "kind": "actions",
            "started_at": 1.5,
            "action_count": 3,
        }
        await self._put(store, [Chunk("c1", "Opened billing — ☃", metadata)])
        [match] = await self._find(store, 1)
        assert (match.id, match.text) == ("c1", "Opened billing — ☃")
        assert match.metadata == metadata
        assert type(match.metadata["action_count"]) is int
        assert type(match.score) is float

    async def test_a_chunk_without_metadata(self, store: S) -> None:
        await self._put(store, [_chunk("c1")])
        [match] = await self._find(store, 1)
        assert match.metadata == {}

    @pytest.mark.parametrize("k", [0, -1])
    async def test_k_below_one_is_refused(self, store: S, k: int) -> None:
        await self._put(store, [_chunk("c1")])
        with pytest.raises(ValueError, match="k"):
            await self._find(store, k)

    async def test_k_may_exceed_what_there_is(self, store: S) -> None:
        await self._put(store, [_chunk("a"), _chunk("b"), _chunk("c")])
        assert len(await self._find(store, 2)) == 2
        assert set(_ids(await self._find(store, 500))) == {"a", "b", "c"}
        assert await self._find(store, 500, Filter(user_id="u1")) == []

    async def test_a_chunk_with_the_same_id_is_replaced_whole(self, store: S) -> None:
        await self._put(
            store, [_chunk("a", "old", user_id="u1", urls="x"), _chunk("b", "kept", user_id="u1")]
        )
        await self._put(store, [_chunk("a", "new", kind="summary"), _chunk("c")])
        [match] = await self._find(store, 5, Filter(kind="summary"))
        assert (match.text, match.metadata) == ("new", {"kind": "summary"})
        assert _ids(await self._find(store, 5, Filter(user_id="u1"))) == ["b"]
        await self._put(store, [_chunk("a", "bare")])
        assert await self._find(store, 5, Filter(kind="summary")) == []
        assert await self._size(store) == 3

    async def test_the_same_chunks_twice_change_nothing(self, store: S) -> None:
        for _ in range(2):
            await self._put(store, [_chunk("a", user_id="u1"), _chunk("b")])
        assert await self._size(store) == 2
        [match] = await self._find(store, 5, Filter(user_id="u1"))
        assert (match.text, match.metadata) == ("text of a", {"user_id": "u1"})

    async def test_an_empty_batch_is_fine(self, store: S) -> None:
        await self._put(store, [])
        assert await self._size(store) == 0

    @pytest.mark.parametrize(("filter", "expected"), _FILTERS, ids=_filter_id)
    async def test_filters(self, store: S, filter: Filter, expected: set[str]) -> None:
        await self._put(
            store,
            [
                _chunk("a", session_id="s1", user_id="u1", product_id="p1", kind="actions",
                       started_at=10.0, ended_at=12.0),
                _chunk("b", session_id="s1", user_id="u2", product_id="p1", kind="summary",
                       conversation_id="t1", started_at=15.0, ended_at=20.0),
                _chunk("c", session_id="s2", product_id="p2", kind="actions",
                       started_at=30, ended_at=30),
                _chunk("bare"),
            ],
        )  # fmt: skip
        try:
            found = await self._find(store, 10, filter)
        except UnsupportedFilterError:
            assert not self.translates_all_filters
            return
        assert set(_ids(found)) == expected

    async def test_a_filter_is_applied_before_the_top_k_are_taken(self, store: S) -> None:
        others = [_chunk(f"other{i}", "the same text", user_id="u1") for i in range(50)]
        wanted = [_chunk(f"wanted{i}", "the same text", user_id="u2") for i in range(3)]
        await self._put(store, [*others, *wanted])
        found = await self._find(store, 3, Filter(user_id="u2"))
        assert set(_ids(found)) == {"wanted0", "wanted1", "wanted2"}

    async def test_what_the_caller_changes_later_is_not_stored(self, store: S) -> None:
        metadata: dict[str, str | int | float] = {"user_id": "u1"}
        await self._put(store, [Chunk("a", "text", metadata)])
        metadata["user_id"] = "u2"
        assert _ids(await self._find(store, 1, Filter(user_id="u1"))) == ["a"]
        assert await self._find(store, 1, Filter(user_id="u2")) == []

    # -- life ---------------------------------------------------------------------------------

    async def test_another_model_is_refused(self, store: S) -> None:
        await self._put(store, [_chunk("a")])
        await store.start(_MODEL)
        if self.keeps_model:
            with pytest.raises(StoreMismatchError) as refused:
                await store.start(_OTHER_MODEL)
            assert _MODEL in str(refused.value)
            assert _OTHER_MODEL in str(refused.value)
            assert "rebuild" in str(refused.value)
        assert _ids(await self._find(store, 1)) == ["a"]

    async def test_an_empty_store_takes_another_model(self, store: S) -> None:
        await store.start(_OTHER_MODEL)
        await self._put(store, [_chunk("b")])
        assert _ids(await self._find(store, 1)) == ["b"]
        if self.keeps_model:
            with pytest.raises(StoreMismatchError):
                await store.start(_MODEL)

    async def test_what_was_stored_is_there_after_a_restart(self, store: S) -> None:
        await self._put(store, [_chunk("a", user_id="u1")])
        await store.aclose()
        again = self.reopened(store)
        if self.keeps_model:
            with pytest.raises(StoreMismatchError):
                await again.start(_OTHER_MODEL)
        await again.start(_MODEL)
        [match] = await self._find(again, 5, Filter(user_id="u1"))
        assert (match.id, match.text, match.metadata) == ("a", "text of a", {"user_id": "u1"})
        await again.aclose()

    async def test_calls_at_once_do_not_disturb_each_other(self, store: S) -> None:
        async def put(number: int) -> None:
            user_id = f"u{number}"
            await self._put(store, [_chunk(f"{number}-{i}", user_id=user_id) for i in range(20)])
            assert len(await self._find(store, 100, Filter(user_id=user_id))) == 20

        async with asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(put(number))
        assert await self._size(store) == 8 * 20

    def test_several_event_loops_may_use_it(self, make_store: Callable[[], S]) -> None:
        store = make_store()

        async def write() -> None:
            await store.start(_MODEL)
            await self._put(store, [_chunk("a")])

        asyncio.run(write())
        assert _ids(asyncio.run(self._find(store, 1))) == ["a"]
        asyncio.run(store.aclose())

    async def test_a_cancelled_call_leaves_the_store_usable(self, store: S) -> None:
        batch = [_chunk(f"c{i}") for i in range(100)]
        task = asyncio.create_task(self._put(store, batch))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await self._put(store, [_chunk("after", user_id="u1")])
        assert _ids(await self._find(store, 1, Filter(user_id="u1"))) == ["after"]

    async def test_closing_twice_or_unstarted_is_fine(self, make_store: Callable[[], S]) -> None:
        store = make_store()
        await store.aclose()
        await store.aclose()

    # -- capabilities -------------------------------------------------------------------------

    @pytest.mark.parametrize("capability", get_args(Capability))
    async def test_it_can_do_what_it_declares_and_nothing_else(
        self, store: S, capability: Capability
    ) -> None:
        if not await _lacks(store, capability):
            await _use(store, capability)

    async def test_saving_an_identity_is_declared_too(self, store: S) -> None:
        if "identity" not in store.capabilities:
            with pytest.raises(MissingCapabilityError):
                await store.save_identity(_IDENTITY)
            return
        await store.save_identity(_IDENTITY)
        assert await store.identity() == _IDENTITY

    async def test_deleted_chunks_are_gone_and_unknown_ids_are_fine(self, store: S) -> None:
        if await _lacks(store, "delete"):
            return
        await self._put(store, [_chunk("a"), _chunk("b"), _chunk("c")])
        await store.delete(["a", "unknown"])
        assert set(_ids(await self._find(store))) == {"b", "c"}
        await store.delete(["a"])
        await store.delete([])
        assert await self._size(store) == 2
        await self._put(store, [_chunk("a", "again")])
        assert set(_ids(await self._find(store))) == {"a", "b", "c"}
        await store.delete(["a", "b", "c"])
        assert await self._size(store) == 0
        assert await self._find(store) == []

    async def test_a_store_whose_chunks_are_all_deleted_takes_another_model(self, store: S) -> None:
        if await _lacks(store, "delete"):
            return
        await self._put(store, [_chunk("a")])
        await store.delete(["a"])
        await store.start(_OTHER_MODEL)
        await self._put(store, [_chunk("b")])
        assert _ids(await self._find(store)) == ["b"]

    async def test_get_returns_what_is_stored(self, store: S) -> None:
        if await _lacks(store, "get"):
            return
        metadata: Metadata = {"session_id": "s1", "started_at": 1.5, "action_count": 3}
        stored = [Chunk("a", "Opened billing — ☃", metadata), _chunk("b"), _chunk("c")]
        await self._put(store, stored)
        found = await store.get(["b", "unknown", "a"])
        assert sorted(found, key=lambda chunk: chunk.id) == stored[:2]
        [first] = await store.get(["a", "a"])
        assert [type(value) for value in first.metadata.values()] == [
            type(metadata[key]) for key in first.metadata
        ]
        assert await store.get([]) == []
        assert await store.get(["unknown"]) == []

    async def test_what_get_returned_is_the_callers(self, store: S) -> None:
        if await _lacks(store, "get"):
            return
        await self._put(store, [_chunk("a", user_id="u1")])
        for chunk in await store.get(["a"]):
            dict.clear(chunk.metadata)  # type: ignore[arg-type]
        assert await store.get(["a"]) == [_chunk("a", user_id="u1")]

    async def test_get_takes_more_than_a_batch(self, store: S) -> None:
        if await _lacks(store, "get"):
            return
        await self._put(store, [_chunk("a"), _chunk("b")])
        unknown = [f"unknown{i}" for i in range(min(store.max_batch, 1000))]
        assert sorted(_ids(await store.get(["a", *unknown, "b"]))) == ["a", "b"]

    @pytest.mark.parametrize("page", [1, 3, 7, 1000])
    async def test_a_scan_gives_every_chunk_once(self, store: S, page: int) -> None:
        if await _lacks(store, "scan"):
            return
        stored = [_chunk(f"c{i}", user_id="u1", number=i) for i in range(7)]
        await self._put(store, stored)
        pages = [chunks async for chunks in store.scan(page)]
        assert all(1 <= len(chunks) <= page for chunks in pages)
        found = [chunk for chunks in pages for chunk in chunks]
        assert sorted(found, key=lambda chunk: chunk.id) == stored

    async def test_a_scan_of_an_empty_store(self, store: S) -> None:
        if await _lacks(store, "scan"):
            return
        assert await _scanned(store) == []

    async def test_a_scan_misses_nothing_while_others_come_and_are_deleted(self, store: S) -> None:
        if await _lacks(store, "scan"):
            return
        await self._put(store, [_chunk(f"c{i:02}") for i in range(20)])
        seen: list[str] = []
        deleted: set[str] = set()
        async for chunks in store.scan(3):
            seen += _ids(chunks)
            if len(deleted) < 5 and "delete" in store.capabilities:
                gone = seen[-1]
                deleted.add(gone)
                await store.delete([gone])
            await self._put(store, [_chunk(f"new{len(seen)}")])
            if len(seen) > 60:
                break
        stayed = [found for found in seen if found.startswith("c") and found not in deleted]
        assert sorted(stayed) == [f"c{i:02}" for i in range(20) if f"c{i:02}" not in deleted]
        assert len(seen) == len(set(seen))

    async def test_a_scan_may_be_left(self, store: S) -> None:
        if await _lacks(store, "scan"):
            return
        await self._put(store, [_chunk("a"), _chunk("b"), _chunk("c")])
        scan: Any = store.scan(1)
        async with aclosing(scan):
            async for _ in scan:
                break
        assert sorted(_ids(await _scanned(store))) == ["a", "b", "c"]

    async def test_updated_metadata_is_merged_and_found(self, store: S) -> None:
        if await _lacks(store, "update_metadata"):
            return
        await self._put(
            store, [_chunk("a", session_id="s1", email="e", number=1), _chunk("b", user_id="u2")]
        )
        [before] = await self._find(store, 1, Filter(session_id="s1"))
        await store.update_metadata(
            {
                "a": {"user_id": "u1", "email": None, "number": "one", "absent": None},
                "unknown": {"user_id": "u1"},
            }
        )
        [after] = await self._find(store, 5, Filter(user_id="u1"))
        assert (after.id, after.text) == ("a", "text of a")
        assert after.score == pytest.approx(before.score, abs=self.score_tolerance)
        assert after.metadata == {"session_id": "s1", "user_id": "u1", "number": "one"}
        assert _ids(await self._find(store, 5, Filter(user_id="u2"))) == ["b"]
        assert await self._size(store) == 2

    async def test_an_update_may_remove_all_metadata_or_nothing(self, store: S) -> None:
        if await _lacks(store, "update_metadata"):
            return
        await self._put(store, [_chunk("a", user_id="u1"), _chunk("b", user_id="u1")])
        for _ in range(2):
            await store.update_metadata({"a": {"user_id": None}, "b": {}})
            await store.update_metadata({})
        found = {match.id: match.metadata for match in await self._find(store)}
        assert found == {"a": {}, "b": {"user_id": "u1"}}
        await store.update_metadata({"a": {"user_id": "u3"}})
        assert _ids(await self._find(store, 5, Filter(user_id="u3"))) == ["a"]

    async def test_a_replaced_chunk_keeps_nothing_of_an_update(self, store: S) -> None:
        if await _lacks(store, "update_metadata"):
            return
        await self._put(store, [_chunk("a")])
        await store.update_metadata({"a": {"user_id": "u1"}})
        await self._put(store, [_chunk("a", kind="chat")])
        [match] = await self._find(store, 1)
        assert match.metadata == {"kind": "chat"}

    async def test_a_dropped_store_is_empty_and_takes_another_model(self, store: S) -> None:
        if await _lacks(store, "drop"):
            return
        await self._put(store, [_chunk("a", user_id="u1")])
        if "identity" in store.capabilities:
            await store.save_identity(_IDENTITY)
        await store.drop()
        await store.drop()
        await store.start(_OTHER_MODEL)
        assert await self._size(store) == 0
        assert await self._find(store, 5) == []
        if "identity" in store.capabilities:
            assert await store.identity() is None
        await self._put(store, [_chunk("a", kind="chat")])
        [match] = await self._find(store, 5)
        assert match.metadata == {"kind": "chat"}

    async def test_a_store_of_another_model_can_be_dropped(self, store: S) -> None:
        if await _lacks(store, "drop"):
            return
        await self._put(store, [_chunk("a")])
        await store.aclose()
        again = self.reopened(store)
        if self.keeps_model:
            with pytest.raises(StoreMismatchError):
                await again.start(_OTHER_MODEL)
        await again.drop()
        await again.start(_OTHER_MODEL)
        assert await self._size(again) == 0
        await again.aclose()

    async def test_a_sibling_shares_nothing(self, store: S) -> None:
        if await _lacks(store, "sibling"):
            return
        one, two = store.sibling("one"), store.sibling("two")
        await self._put(store, [_chunk("a", user_id="u1")])
        await one.start(_OTHER_MODEL)
        await two.start(_MODEL)
        await self._put(one, [_chunk("b", user_id="u2")])
        assert _ids(await self._find(store)) == ["a"]
        assert _ids(await self._find(one)) == ["b"]
        assert await self._find(two) == []
        if not await _lacks(store, "identity"):
            await one.save_identity(_IDENTITY)
            assert await store.identity() is None
        if not await _lacks(store, "drop"):
            await store.drop()
            assert _ids(await self._find(one)) == ["b"]
        await one.aclose()
        await two.aclose()

    async def test_a_sibling_of_the_same_name_is_the_same_collection(self, store: S) -> None:
        if await _lacks(store, "sibling"):
            return
        one = store.sibling("one")
        await one.start(_OTHER_MODEL)
        await self._put(one, [_chunk("b")])
        again = store.sibling("one")
        assert again == one
        await again.start(_OTHER_MODEL)
        assert _ids(await self._find(again)) == ["b"]
        await one.aclose()
        await again.aclose()

    async def test_an_exchange_moves_all_that_two_collections_hold(self, store: S) -> None:
        if await _lacks(store, "exchange"):
            return
        assert "sibling" in store.capabilities
        other = store.sibling("other")
        await other.start(_OTHER_MODEL)
        await self._put(store, [_chunk("a", user_id="u1"), _chunk("c")])
        await self._put(other, [_chunk("b", user_id="u2")])
        named = "identity" in store.capabilities
        if named:
            await store.save_identity(_IDENTITY)
            await other.save_identity(_OTHER_IDENTITY)
        await store.exchange("other")
        if named:
            assert await store.identity() == _OTHER_IDENTITY
            assert await other.identity() == _IDENTITY
        await store.start(_OTHER_MODEL)
        await other.start(_MODEL)
        [match] = await self._find(store)
        assert (match.id, match.text, match.metadata) == ("b", "text of b", {"user_id": "u2"})
        assert set(_ids(await self._find(other))) == {"a", "c"}
        assert _ids(await self._find(other, 5, Filter(user_id="u1"))) == ["a"]
        await self._put(store, [_chunk("d")])
        await store.exchange("other")
        await store.start(_MODEL)
        await other.start(_OTHER_MODEL)
        assert set(_ids(await self._find(store))) == {"a", "c"}
        assert set(_ids(await self._find(other))) == {"b", "d"}
        await other.aclose()

    async def test_after_an_exchange_calls_for_the_old_model_are_refused(self, store: S) -> None:
        if await _lacks(store, "exchange") or not self.keeps_model:
            return
        other = store.sibling("other")
        await other.start(_OTHER_MODEL)
        await self._put(store, [_chunk("a")])
        await self._put(other, [_chunk("b")])
        await store.exchange("other")
        for one in (store, other):
            with pytest.raises(StoreMismatchError):
                await self._put(one, [_chunk("c")])
            with pytest.raises(StoreMismatchError):
                await self._find(one)
        with pytest.raises(StoreMismatchError):
            await store.start(_MODEL)
        await store.start(_OTHER_MODEL)
        await other.start(_MODEL)
        assert _ids(await self._find(store)) == ["b"]
        assert _ids(await self._find(other)) == ["a"]
        await other.aclose()

    async def test_an_exchange_with_the_same_model_needs_no_start(self, store: S) -> None:
        if await _lacks(store, "exchange"):
            return
        other = store.sibling("other")
        await other.start(_MODEL)
        await self._put(store, [_chunk("a")])
        await self._put(other, [_chunk("b")])
        await store.exchange("other")
        await self._put(store, [_chunk("c")])
        assert set(_ids(await self._find(store))) == {"b", "c"}
        assert _ids(await self._find(other)) == ["a"]
        if "drop" in store.capabilities:
            await other.drop()
            assert set(_ids(await self._find(store))) == {"b", "c"}
        await other.aclose()

    async def test_an_exchange_with_a_collection_that_is_missing(self, store: S) -> None:
        if await _lacks(store, "exchange"):
            return
        await self._put(store, [_chunk("a")])
        await store.exchange("other")
        await store.start(_OTHER_MODEL)
        assert await self._find(store) == []
        other = store.sibling("other")
        await other.start(_MODEL)
        assert _ids(await self._find(other)) == ["a"]
        await other.aclose()

    async def test_an_exchange_is_there_after_a_restart(self, store: S) -> None:
        if await _lacks(store, "exchange"):
            return
        other = store.sibling("other")
        await other.start(_OTHER_MODEL)
        await self._put(store, [_chunk("a")])
        await self._put(other, [_chunk("b")])
        await store.exchange("other")
        await store.aclose()
        await other.aclose()
        again = self.reopened(store)
        if self.keeps_model:
            with pytest.raises(StoreMismatchError):
                await again.start(_MODEL)
        await again.start(_OTHER_MODEL)
        assert _ids(await self._find(again)) == ["b"]
        sibling = again.sibling("other")
        await sibling.start(_MODEL)
        assert _ids(await self._find(sibling)) == ["a"]
        await sibling.aclose()
        await again.aclose()

    # -- files ---------------------------------------------------------------------------------

    async def test_whose_collection_it_is_stays_so(self, store: S) -> None:
        own = await store.is_own()
        assert isinstance(own, bool)
        await self._put(store, [_chunk("a")])
        assert await store.is_own() is own
        await store.aclose()
        again = self.reopened(store)
        assert await again.is_own() is own  # before `start` as well
        await again.start(_MODEL)
        assert await again.is_own() is own
        await again.aclose()

    async def test_a_copy_holds_what_was_stored_before_it(self, store: S, tmp_path: Path) -> None:
        folder = tmp_path / "copy"
        folder.mkdir()
        await self._put(store, [_chunk("a", user_id="u1")])
        if "identity" in store.capabilities:
            await store.save_identity(_IDENTITY)
        made = await store.copy_to(folder)
        assert made is any(folder.iterdir())
        await self._put(store, [_chunk("later")])
        assert set(_ids(await self._find(store))) == {"a", "later"}
        copy = self.copied(store, folder) if made else None
        if copy is None:
            return
        if "identity" in store.capabilities:
            assert await copy.identity() == _IDENTITY
        await copy.start(_MODEL)
        [match] = await self._find(copy)
        assert (match.id, match.text, match.metadata) == ("a", "text of a", {"user_id": "u1"})
        await copy.aclose()

    async def test_erasing_leaves_what_was_not_deleted(self, store: S) -> None:
        assert isinstance(await store.erase(), bool)
        await self._put(store, [_chunk("a", user_id="u1"), _chunk("b"), _chunk("c")])
        if "delete" in store.capabilities:
            await store.delete(["b"])
        left = {match.id: match for match in await self._find(store)}
        for _ in range(2):
            assert isinstance(await store.erase(), bool)
        assert {match.id: match for match in await self._find(store)} == left
        await self._put(store, [_chunk("b", "again"), _chunk("d")])
        found = await self._find(store)
        assert sorted(_ids(found)) == ["a", "b", "c", "d"]
        assert {match.id: match.text for match in found}["b"] == "again"

    async def test_compacting_leaves_what_is_stored(self, store: S) -> None:
        assert isinstance(await store.compact(), bool)
        await self._put(store, [_chunk(f"c{i}", user_id=f"u{i % 2}") for i in range(20)])
        if "delete" in store.capabilities:
            await store.delete([f"c{i}" for i in range(15)])
        left = {match.id: match for match in await self._find(store)}
        assert isinstance(await store.compact(), bool)
        assert {match.id: match for match in await self._find(store)} == left
        await self._put(store, [_chunk("new", user_id="u9")])
        assert _ids(await self._find(store, 5, Filter(user_id="u9"))) == ["new"]

    # -- identity ------------------------------------------------------------------------------

    async def test_an_identity_is_kept_and_found_by_no_search(self, store: S) -> None:
        if await _lacks(store, "identity"):
            return
        assert await store.identity() is None
        await store.save_identity(_IDENTITY)
        await store.save_identity(_IDENTITY)
        assert await store.identity() == _IDENTITY
        assert await self._size(store) == 0
        assert await self._find(store) == []
        if not await _lacks(store, "scan"):
            assert await _scanned(store) == []
        later = StoreIdentity("store-1", "journal-1", 2**40)
        await store.save_identity(later)
        await self._put(store, [_chunk("a")])
        assert await store.identity() == later

    async def test_an_identity_is_there_after_a_restart(self, store: S) -> None:
        if await _lacks(store, "identity"):
            return
        await self._put(store, [_chunk("a")])
        await store.save_identity(_IDENTITY)
        await store.aclose()
        again = self.reopened(store)
        await again.start(_MODEL)
        assert await again.identity() == _IDENTITY
        assert _ids(await self._find(again)) == ["a"]
        await again.aclose()

    async def test_an_empty_store_that_takes_another_model_keeps_its_identity(
        self, store: S
    ) -> None:
        if await _lacks(store, "identity"):
            return
        await store.save_identity(_IDENTITY)
        await store.start(_OTHER_MODEL)
        assert await store.identity() == _IDENTITY


class VectorStoreContract(_StoreContract[VectorStore]):
    """What every `VectorStore` must do, with each capability that it declares.

    Add a fixture `make_store`: a function that makes a new, empty store on each call. Vectors have
    three dimensions.

    Attributes:
        keeps_model: Whether the store itself detects another model or another dimension at
            `start`. An adapter of a store that cannot record them sets this to False.
        translates_all_filters: Whether the store translates every condition of `Filter`. If
            False, it may raise `UnsupportedFilterError` instead.
        score_tolerance: The most by which a score may differ from the cosine similarity. A store
            that keeps half precision sets this to 5e-4.

    Example:
        >>> import pytest
        >>> from autoplay_rag.stores import MemoryStore
        >>> class TestMemoryStore(VectorStoreContract):
        ...     @pytest.fixture
        ...     def make_store(self):
        ...         return MemoryStore
    """

    async def _put(self, store: VectorStore, chunks: Sequence[Chunk]) -> None:
        await store.upsert(chunks, [_about_east(chunk.id) for chunk in chunks])

    async def _find(self, store: VectorStore, k: int = 100, filter: Filter = _ALL) -> list[Match]:
        return await store.query(_EAST, k, filter)

    async def test_it_is_a_vector_store(self, store: VectorStore) -> None:
        assert isinstance(store, VectorStore)

    async def test_the_nearest_come_first_with_cosine_scores(self, store: VectorStore) -> None:
        vectors = [[0.0, 3.0, 0.0], [2.0, 0.0, 0.0], [5.0, 5.0, 0.0], [-1.0, 0.0, 0.0]]
        await store.upsert(
            [_chunk("north"), _chunk("east"), _chunk("both"), _chunk("west")], vectors
        )
        found = await store.query([10.0, 0.0, 0.0], 4, _ALL)
        assert _ids(found) == ["east", "both", "north", "west"]
        assert [match.score for match in found] == pytest.approx(
            [1, math.sqrt(0.5), 0, -1], abs=self.score_tolerance
        )

    async def test_k_takes_the_nearest(self, store: VectorStore) -> None:
        await store.upsert([_chunk("a"), _chunk("b"), _chunk("c")], [_EAST, _NORTH, _WEST])
        assert _ids(await store.query(_EAST, 2, _ALL)) == ["a", "b"]
        assert _ids(await store.query(_EAST, 500, _ALL)) == ["a", "b", "c"]

    async def test_an_upsert_replaces_the_vector_too(self, store: VectorStore) -> None:
        await store.upsert([_chunk("a", "old"), _chunk("b")], [_EAST, _NORTH])
        await store.upsert([_chunk("a", "new")], [_WEST])
        [match] = await store.query(_WEST, 1, _ALL)
        assert (match.id, match.text) == ("a", "new")
        assert match.score == pytest.approx(1, abs=self.score_tolerance)
        assert _ids(await store.query(_EAST, 2, _ALL)) == ["b", "a"]

    async def test_of_equal_ids_in_a_batch_the_last_stays(self, store: VectorStore) -> None:
        await store.upsert([_chunk("a", "first"), _chunk("a", "second")], [_EAST, _NORTH])
        assert await self._size(store) == 1
        [match] = await store.query(_NORTH, 1, _ALL)
        assert match.text == "second"
        assert match.score == pytest.approx(1, abs=self.score_tolerance)

    async def test_scores_are_the_cosine_similarities(self, store: VectorStore) -> None:
        if await _lacks(store, "score"):
            return
        assert await store.score(_EAST, ["east"]) == {}
        stored = {"north": [0.0, 3.0, 0.0], "east": [2.0, 0.0, 0.0], "west": [-1.0, 0.0, 0.0],
                  "both": [5.0, 5.0, 0.0], "zero": [0.0, 0.0, 0.0]}  # fmt: skip
        await store.upsert([_chunk(chunk_id) for chunk_id in stored], list(stored.values()))
        found = await store.score([10.0, 0.0, 0.0], ["west", "unknown", "both", "both", "zero"])
        assert found == pytest.approx(
            {"west": -1, "both": math.sqrt(0.5), "zero": 0}, abs=self.score_tolerance
        )
        assert all(type(score) is float for score in found.values())
        assert await store.score(_EAST, []) == {}
        zero = await store.score([0.0, 0.0, 0.0], list(stored))
        assert zero == pytest.approx(dict.fromkeys(stored, 0), abs=self.score_tolerance)
        if not await _lacks(store, "delete"):
            await store.delete(["west"])
            assert await store.score(_EAST, ["west"]) == {}
        await store.upsert([_chunk("east")], [_NORTH])
        assert await store.score(_EAST, ["east"]) == pytest.approx(
            {"east": 0}, abs=self.score_tolerance
        )

    async def test_scores_of_more_than_a_batch(self, store: VectorStore) -> None:
        if await _lacks(store, "score"):
            return
        await self._put(store, [_chunk("a"), _chunk("b")])
        unknown = [f"unknown{i}" for i in range(min(store.max_batch, 1000))]
        assert set(await store.score(_EAST, ["a", *unknown, "b"])) == {"a", "b"}

    async def test_a_score_needs_a_vector_of_the_dimension_stored(self, store: VectorStore) -> None:
        if await _lacks(store, "score"):
            return
        await store.upsert([_chunk("a")], [_EAST])
        for vector in ([math.nan, 0.0, 0.0], []):
            with pytest.raises(ValueError, match=r"."):
                await store.score(vector, ["a"])
        if self.keeps_model:
            with pytest.raises(StoreMismatchError, match=r"3.* 2"):
                await store.score([1.0, 0.0], ["a"])

    async def test_a_filter_passes_far_chunks_too(self, store: VectorStore) -> None:
        near = [_chunk(f"near{i}", user_id="u1") for i in range(50)]
        far = [_chunk(f"far{i}", user_id="u2") for i in range(3)]
        vectors = [_about_east(chunk.id) for chunk in near] + [_WEST] * 3
        await store.upsert([*near, *far], vectors)
        found = await store.query(_EAST, 3, Filter(user_id="u2"))
        assert set(_ids(found)) == {"far0", "far1", "far2"}

    async def test_arrays_are_taken_as_lists_are(self, store: VectorStore) -> None:
        vectors: list[Vector] = [array("f", _EAST), array("d", _NORTH)]
        await store.upsert([_chunk("a"), _chunk("b")], vectors)
        assert _ids(await store.query(array("f", _NORTH), 2, _ALL)) == ["b", "a"]

    async def test_a_vector_the_caller_changes_later_is_not_stored(
        self, store: VectorStore
    ) -> None:
        vector = array("f", _EAST)
        await store.upsert([_chunk("a")], [vector])
        vector[0] = -1.0
        [match] = await store.query(_EAST, 1, _ALL)
        assert match.score == pytest.approx(1, abs=self.score_tolerance)

    async def test_a_zero_vector_is_similar_to_nothing(self, store: VectorStore) -> None:
        await store.upsert([_chunk("zero"), _chunk("west")], [[0.0, 0.0, 0.0], _WEST])
        found = await store.query(_EAST, 2, _ALL)
        assert _ids(found) == ["zero", "west"]
        assert found[0].score == pytest.approx(0, abs=self.score_tolerance)
        zero = await store.query([0.0, 0.0, 0.0], 2, _ALL)
        assert all(math.isfinite(match.score) for match in zero)

    @pytest.mark.parametrize(
        ("chunk", "vector"),
        [
            (_chunk("bad"), None),
            (_chunk("bad"), []),
            (_chunk("bad"), [1.0, 0.0]),
            (_chunk("bad"), ["a", "b", "c"]),
            (_chunk("bad"), [1.0, math.nan, 0.0]),
            (_chunk("bad"), [math.inf, -math.inf, 0.0]),
            (_chunk("bad"), [1e300, 0.0, 0.0]),
            (Chunk("", "t", {}), _EAST),
            (Chunk("\ud800", "t", {}), _EAST),
            (Chunk("bad", None, {}), _EAST),  # type: ignore[arg-type]
            (Chunk("bad", "\ud800", {}), _EAST),
            (Chunk("bad", "t", {"urls": ["x"]}), _EAST),  # type: ignore[dict-item]
            (Chunk("bad", "t", {"k": None}), _EAST),  # type: ignore[dict-item]
            (Chunk("bad", "t", {"k": math.nan}), _EAST),
            (Chunk("bad", "t", {"k": 2**63}), _EAST),
            (Chunk("bad", "t", {"k": "\udfff"}), _EAST),
            (Chunk("bad", "t", {1: "x"}), _EAST),  # type: ignore[dict-item]
        ],
        ids=lambda _: "",
    )
    async def test_a_batch_with_a_value_no_store_can_keep_is_refused_whole(
        self, store: VectorStore, chunk: Chunk, vector: Any
    ) -> None:
        """`autoplay_rag.stores.pack` makes these checks."""
        with pytest.raises(ValueError, match=r"."):
            await store.upsert([_chunk("ok"), chunk], [_EAST, vector])
        assert await self._size(store) == 0

    @pytest.mark.parametrize("vectors", [[], [_EAST, _EAST]], ids=len)
    async def test_a_vector_for_each_chunk_is_needed(
        self, store: VectorStore, vectors: list[Vector]
    ) -> None:
        with pytest.raises(ValueError, match=r"."):
            await store.upsert([_chunk("a")], vectors)
        assert await self._size(store) == 0

    async def test_extreme_but_fine_values(self, store: VectorStore) -> None:
        metadata: Metadata = {
            "low": -(2**63),
            "high": 2**63 - 1,
            "tiny": 5e-324,
            "empty": "",
            "nul": "a\0b",
        }
        await store.upsert([Chunk("c 1/☃", "a\0b", metadata)], [[1e38, 1e38, 1e-38]])
        [match] = await store.query(_EAST, 1, _ALL)
        assert (match.id, match.text, match.metadata) == ("c 1/☃", "a\0b", metadata)

    @pytest.mark.parametrize("value", [math.nan, 2**63, ["x"], "\udfff"], ids=lambda _: "")
    async def test_an_update_with_a_value_no_store_can_keep_is_refused_whole(
        self, store: VectorStore, value: Any
    ) -> None:
        """`autoplay_rag.stores.checked_changes` makes these checks."""
        if await _lacks(store, "update_metadata"):
            return
        await self._put(store, [_chunk("a"), _chunk("b")])
        with pytest.raises(ValueError, match=r"."):
            await store.update_metadata({"a": {"k": 1}, "b": {"k": value}})
        assert [match.metadata for match in await self._find(store)] == [{}, {}]

    async def test_another_dimension_is_refused(self, store: VectorStore) -> None:
        await store.upsert([_chunk("a")], [_EAST])
        if self.keeps_model:
            with pytest.raises(StoreMismatchError, match=r"3.* 2"):
                await store.upsert([_chunk("b")], [[1.0, 0.0]])
            with pytest.raises(StoreMismatchError, match=r"3.* 2"):
                await store.query([1.0, 0.0], 1, _ALL)
        assert await self._size(store) == 1

    async def test_an_empty_store_takes_another_dimension(self, store: VectorStore) -> None:
        await store.start(_OTHER_MODEL)
        await store.upsert([_chunk("b")], [[1.0, 0.0]])
        assert _ids(await store.query([1.0, 0.0], 1, _ALL)) == ["b"]

    async def test_a_sibling_takes_another_dimension(self, store: VectorStore) -> None:
        if await _lacks(store, "sibling"):
            return
        await store.upsert([_chunk("a")], [_EAST])
        other = store.sibling("other")
        await other.start(_OTHER_MODEL)
        await other.upsert([_chunk("a")], [[1.0, 0.0]])
        assert _ids(await other.query([1.0, 0.0], 1, _ALL)) == ["a"]
        assert _ids(await store.query(_EAST, 1, _ALL)) == ["a"]
        await other.aclose()

    async def test_an_exchange_takes_the_dimension_along(self, store: VectorStore) -> None:
        if await _lacks(store, "exchange"):
            return
        other = store.sibling("other")
        await other.start(_OTHER_MODEL)
        await store.upsert([_chunk("a")], [_EAST])
        await other.upsert([_chunk("b")], [[1.0, 0.0]])
        await store.exchange("other")
        await store.start(_OTHER_MODEL)
        assert _ids(await store.query([1.0, 0.0], 1, _ALL)) == ["b"]
        await store.upsert([_chunk("c")], [[0.0, 1.0]])
        assert _ids(await store.query([0.0, 1.0], 1, _ALL)) == ["c"]
        if self.keeps_model:
            with pytest.raises(StoreMismatchError, match=r"2.* 3"):
                await store.query(_EAST, 1, _ALL)
        await other.aclose()

    async def test_a_dropped_store_takes_another_dimension(self, store: VectorStore) -> None:
        if await _lacks(store, "drop"):
            return
        await store.upsert([_chunk("a")], [_EAST])
        await store.drop()
        await store.start(_OTHER_MODEL)
        await store.upsert([_chunk("a")], [[1.0, 0.0]])
        assert _ids(await store.query([1.0, 0.0], 1, _ALL)) == ["a"]

    @pytest.mark.parametrize("vector", [[math.nan, 0.0, 0.0], [], ["a"]], ids=str)
    async def test_a_question_that_is_not_a_vector_is_refused(
        self, store: VectorStore, vector: Any
    ) -> None:
        await store.upsert([_chunk("a")], [_EAST])
        with pytest.raises(ValueError, match=r"."):
            await store.query(vector, 1, _ALL)


class TextStoreContract(_StoreContract[TextStore]):
    """What every `TextStore` must do, with each capability that it declares.

    Add a fixture `make_store`: a function that makes a new, empty store on each call. A search for
    the exact text of a chunk must find that chunk first.

    Attributes:
        keeps_model: Whether the store itself detects another model at `start`.
        translates_all_filters: Whether the store translates every condition of `Filter`. If
            False, it may raise `UnsupportedFilterError` instead.
    """

    async def _put(self, store: TextStore, chunks: Sequence[Chunk]) -> None:
        await store.add(chunks)

    async def _find(self, store: TextStore, k: int = 100, filter: Filter = _ALL) -> list[Match]:
        return await store.search("the same text", k, filter)

    async def test_it_is_a_text_store(self, store: TextStore) -> None:
        assert isinstance(store, TextStore)

    async def test_the_best_come_first(self, store: TextStore) -> None:
        texts = [
            "Exported the monthly report as a spreadsheet",
            "Invited a colleague to the team",
            "Changed the credit card for billing",
        ]
        await store.add([_chunk(f"c{i}", text) for i, text in enumerate(texts)])
        for number, text in enumerate(texts):
            found = await store.search(text, 3, _ALL)
            assert found[0].id == f"c{number}"
            scores = [match.score for match in found]
            assert scores == sorted(scores, reverse=True)
            assert all(math.isfinite(score) for score in scores)
            assert _ids(await store.search(text, 1, _ALL)) == [f"c{number}"]

    async def test_a_replaced_text_is_found_by_the_new_one_alone(self, store: TextStore) -> None:
        await store.add([_chunk("a", "Exported a report"), _chunk("b", "Changed a credit card")])
        await store.add([_chunk("a", "Invited a colleague")])
        [match] = await store.search("Invited a colleague", 1, _ALL)
        assert (match.id, match.text) == ("a", "Invited a colleague")
        found = await store.search("Exported a report", 5, _ALL)
        assert "Exported a report" not in [match.text for match in found]

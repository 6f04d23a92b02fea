"""What every `VectorStore` must do.

To test another store, make a class that inherits from `StoreContract` in a test module and give
it a fixture `make_store` that returns a function making an empty store.
"""

from __future__ import annotations

import asyncio
import math
from array import array
from collections.abc import Callable

import pytest

from autoplay_rag.errors import StoreMismatchError, StoreRejectedError
from autoplay_rag.stores import Chunk, Filter, Hit, VectorStore

MakeStore = Callable[[], VectorStore]
ALL = Filter()
EAST, NORTH, WEST = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]


def chunk(id: str, text: str = "", **metadata: str | float) -> Chunk:
    return Chunk(id, text or f"text of {id}", metadata)


def ids(hits: list[Hit]) -> list[str]:
    return [hit.id for hit in hits]


class StoreContract:
    @pytest.fixture
    async def store(self, make_store: MakeStore):
        store = make_store()
        await store.start("model-a")
        yield store
        await store.aclose()

    async def test_is_a_vector_store(self, store: VectorStore):
        assert isinstance(store, VectorStore)
        assert store.max_batch >= 1

    async def test_an_empty_store_finds_nothing(self, store: VectorStore):
        assert await store.count() == 0
        assert await store.query(EAST, 5, ALL) == []
        assert await store.query(EAST, 5, Filter(user_id="u1")) == []

    async def test_the_nearest_come_first_with_cosine_scores(self, store: VectorStore):
        vectors = [[0.0, 3.0, 0.0], [2.0, 0.0, 0.0], [5.0, 5.0, 0.0], [-1.0, 0.0, 0.0]]
        await store.upsert([chunk("north"), chunk("east"), chunk("both"), chunk("west")], vectors)
        hits = await store.query([10.0, 0.0, 0.0], 4, ALL)
        assert ids(hits) == ["east", "both", "north", "west"]
        assert [hit.score for hit in hits] == pytest.approx([1, math.sqrt(0.5), 0, -1], abs=1e-5)

    async def test_a_hit_has_all_that_was_stored(self, store: VectorStore):
        metadata = {"session_id": "s1", "kind": "actions", "started_at": 1.5, "action_count": 3}
        await store.upsert([Chunk("c1", "Opened billing — ☃", metadata)], [EAST])
        [hit] = await store.query(EAST, 1, ALL)
        assert (hit.id, hit.session_id, hit.text) == ("c1", "s1", "Opened billing — ☃")
        assert hit.metadata == metadata
        assert type(hit.metadata["action_count"]) is int
        assert type(hit.score) is float

    async def test_a_chunk_without_metadata(self, store: VectorStore):
        await store.upsert([chunk("c1")], [EAST])
        [hit] = await store.query(EAST, 1, ALL)
        assert hit.metadata == {}
        assert hit.session_id is None

    async def test_k_limits_and_may_exceed_what_there_is(self, store: VectorStore):
        await store.upsert([chunk("a"), chunk("b"), chunk("c")], [EAST, NORTH, WEST])
        assert ids(await store.query(EAST, 2, ALL)) == ["a", "b"]
        assert ids(await store.query(EAST, 500, ALL)) == ["a", "b", "c"]
        assert ids(await store.query(EAST, 500, Filter(user_id="u1"))) == []

    @pytest.mark.parametrize("k", [0, -1])
    async def test_k_below_one_is_refused(self, store: VectorStore, k: int):
        with pytest.raises(StoreRejectedError, match="k is"):
            await store.query(EAST, k, ALL)

    async def test_an_upsert_replaces_text_vector_and_metadata_whole(self, store: VectorStore):
        await store.upsert(
            [chunk("a", "old", user_id="u1", urls="x"), chunk("b", "kept", user_id="u1")],
            [EAST, NORTH],
        )
        await store.upsert([chunk("a", "new", kind="summary"), chunk("c")], [WEST, WEST])
        [hit] = await store.query(WEST, 1, Filter(kind="summary"))
        assert (hit.text, hit.metadata) == ("new", {"kind": "summary"})
        assert hit.score == pytest.approx(1, abs=1e-5)
        assert ids(await store.query(EAST, 5, Filter(user_id="u1"))) == ["b"]
        await store.upsert([chunk("a", "bare")], [WEST])
        assert await store.query(WEST, 5, Filter(kind="summary")) == []
        assert await store.count() == 3

    async def test_the_same_upsert_twice_changes_nothing(self, store: VectorStore):
        for _ in range(2):
            await store.upsert([chunk("a", user_id="u1"), chunk("b")], [EAST, NORTH])
        assert await store.count() == 2
        [hit] = await store.query(EAST, 1, ALL)
        assert hit.metadata == {"user_id": "u1"}

    async def test_of_equal_ids_in_a_batch_the_last_stays(self, store: VectorStore):
        await store.upsert([chunk("a", "first"), chunk("a", "second")], [EAST, NORTH])
        assert await store.count() == 1
        [hit] = await store.query(NORTH, 1, ALL)
        assert hit.text == "second"
        assert hit.score == pytest.approx(1, abs=1e-5)

    async def test_deleted_chunks_are_gone_and_unknown_ids_are_fine(self, store: VectorStore):
        await store.upsert([chunk("a"), chunk("b"), chunk("c")], [EAST, NORTH, WEST])
        await store.delete(["a", "unknown"])
        assert ids(await store.query(EAST, 5, ALL)) == ["b", "c"]
        await store.delete(["a"])
        await store.delete([])
        assert await store.count() == 2
        await store.upsert([chunk("a", "again")], [EAST])
        assert ids(await store.query(EAST, 1, ALL)) == ["a"]
        await store.delete(["a", "b", "c"])
        assert await store.count() == 0
        assert await store.query(EAST, 5, ALL) == []

    async def test_an_empty_upsert_is_fine(self, store: VectorStore):
        await store.upsert([], [])
        assert await store.count() == 0

    @pytest.mark.parametrize(
        ("filter", "expected"),
        [
            (Filter(session_id="s1"), {"a", "b"}),
            (Filter(user_id="u1"), {"a"}),
            (Filter(product_id="p2"), {"c"}),
            (Filter(conversation_id="t1"), {"b"}),
            (Filter(kind="summary"), {"b"}),
            (Filter(session_id="s1", kind="actions"), {"a"}),
            (Filter(session_id="s1", user_id="u2", kind="summary"), {"b"}),
            (Filter(session_id="none"), set()),
            (Filter(since=20), {"b", "c"}),
            (Filter(since=20.5), {"c"}),
            (Filter(until=10), {"a"}),
            (Filter(until=15.0), {"a", "b"}),
            (Filter(since=15, until=15), {"b"}),
            (Filter(since=0), {"a", "b", "c"}),
            (Filter(session_id=""), set()),
        ],
        ids=str,
    )
    async def test_filters(self, store: VectorStore, filter: Filter, expected: set[str]):
        await store.upsert(
            [
                chunk("a", session_id="s1", user_id="u1", product_id="p1", kind="actions",
                      started_at=10.0, ended_at=12.0),
                chunk("b", session_id="s1", user_id="u2", product_id="p1", kind="summary",
                      conversation_id="t1", started_at=15.0, ended_at=20.0),
                chunk("c", session_id="s2", product_id="p2", kind="actions",
                      started_at=30, ended_at=30),
                chunk("bare"),
            ],
            [EAST, EAST, NORTH, EAST],
        )  # fmt: skip
        hits = await store.query(EAST, 10, filter)
        assert set(ids(hits)) == expected
        assert all(filter.matches(hit.metadata) for hit in hits)

    async def test_a_filter_is_applied_before_the_top_k_are_taken(self, store: VectorStore):
        near = [chunk(f"near{i}", user_id="u1") for i in range(50)]
        far = [chunk(f"far{i}", user_id="u2") for i in range(3)]
        await store.upsert([*near, *far], [EAST] * 50 + [WEST] * 3)
        hits = await store.query(EAST, 3, Filter(user_id="u2"))
        assert set(ids(hits)) == {"far0", "far1", "far2"}

    async def test_arrays_are_taken_as_lists_are(self, store: VectorStore):
        await store.upsert([chunk("a"), chunk("b")], [array("f", EAST), array("d", NORTH)])
        assert ids(await store.query(array("f", NORTH), 2, ALL)) == ["b", "a"]

    async def test_a_zero_vector_is_similar_to_nothing(self, store: VectorStore):
        await store.upsert([chunk("zero"), chunk("west")], [[0.0, 0.0, 0.0], WEST])
        hits = await store.query(EAST, 2, ALL)
        assert ids(hits) == ["zero", "west"]
        assert hits[0].score == pytest.approx(0, abs=1e-5)
        assert all(math.isfinite(hit.score) for hit in await store.query([0.0, 0.0, 0.0], 2, ALL))

    @pytest.mark.parametrize(
        ("chunks", "vectors", "message"),
        [
            ([chunk("ok"), chunk("bad")], [EAST], "2 chunks came with 1 vectors"),
            ([], [EAST], "0 chunks came with 1 vectors"),
            ([chunk("ok"), chunk("bad")], [EAST, [1.0, 0.0]], "'bad' .* dimension 2.* 3"),
            ([chunk("ok"), chunk("bad")], [EAST, [1.0, math.nan, 0.0]], "'bad' holds NaN"),
            ([chunk("ok"), chunk("bad")], [EAST, [math.inf, -math.inf, 0.0]], "'bad' holds NaN"),
            ([chunk("ok"), chunk("bad")], [EAST, [1e300, 0.0, 0.0]], "'bad' holds NaN"),
            ([chunk("ok"), chunk("bad")], [EAST, []], "'bad' is empty"),
            ([chunk("ok"), chunk("bad")], [EAST, ["a", "b", "c"]], "'bad' is no sequence"),
            ([chunk("ok"), chunk("bad")], [EAST, None], "'bad' is no sequence"),
            ([chunk("ok"), Chunk("bad", None, {})], [EAST, EAST], "text of chunk 'bad'"),
            ([chunk("ok"), Chunk("bad", "\ud800", {})], [EAST, EAST], "'bad' holds a lone"),
            ([chunk("ok"), Chunk("bad", "t", {"urls": ["x"]})], [EAST, EAST], "'urls' .* a list"),
            ([chunk("ok"), Chunk("bad", "t", {"k": None})], [EAST, EAST], "'k' of chunk 'bad'"),
            ([chunk("ok"), Chunk("bad", "t", {"k": math.nan})], [EAST, EAST], "not a finite"),
            ([chunk("ok"), Chunk("bad", "t", {"k": 2**63})], [EAST, EAST], "more than 64 bits"),
            ([chunk("ok"), Chunk("bad", "t", {"k": "\udfff"})], [EAST, EAST], "'k' .* surrogate"),
            ([chunk("ok"), Chunk("bad", "t", {1: "x"})], [EAST, EAST], "key of chunk 'bad'"),
            ([chunk("ok"), Chunk("\ud800", "t", {})], [EAST, EAST], "id of a chunk"),
            ([chunk("ok"), Chunk("", "t", {})], [EAST, EAST], "id of a chunk"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )  # fmt: skip
    async def test_a_batch_no_store_can_take_is_refused_whole(
        self, store: VectorStore, chunks: list[Chunk], vectors: list[list[float]], message: str
    ):
        with pytest.raises(StoreRejectedError, match=message):
            await store.upsert(chunks, vectors)
        assert await store.count() == 0

    async def test_extreme_but_fine_values(self, store: VectorStore):
        metadata = {"low": -(2**63), "high": 2**63 - 1, "tiny": 5e-324, "empty": "", "nul": "a\0b"}
        await store.upsert([Chunk("c 1/☃", "a\0b", metadata)], [[1e38, 1e38, 1e-38]])
        [hit] = await store.query(EAST, 1, ALL)
        assert (hit.id, hit.text, hit.metadata) == ("c 1/☃", "a\0b", metadata)

    async def test_another_dimension_is_refused(self, store: VectorStore):
        await store.upsert([chunk("a")], [EAST])
        with pytest.raises(StoreMismatchError, match=r"dimension 3.* 2"):
            await store.upsert([chunk("b")], [[1.0, 0.0]])
        with pytest.raises(StoreMismatchError, match=r"dimension 3.* 2"):
            await store.query([1.0, 0.0], 1, ALL)
        assert await store.count() == 1

    @pytest.mark.parametrize("vector", [[math.nan, 0.0, 0.0], [], ["a"]])
    async def test_a_question_that_is_no_vector_is_refused(self, store: VectorStore, vector):
        await store.upsert([chunk("a")], [EAST])
        with pytest.raises(StoreRejectedError, match="the question"):
            await store.query(vector, 1, ALL)

    async def test_another_model_is_refused(self, store: VectorStore):
        await store.upsert([chunk("a")], [EAST])
        await store.start("model-a")
        with pytest.raises(StoreMismatchError, match=r"'model-a'.*'model-b'"):
            await store.start("model-b")
        assert ids(await store.query(EAST, 1, ALL)) == ["a"]

    async def test_an_empty_store_takes_another_model_and_dimension(self, store: VectorStore):
        await store.upsert([chunk("a")], [EAST])
        await store.delete(["a"])
        await store.start("model-b")
        await store.upsert([chunk("b")], [[1.0, 0.0]])
        assert ids(await store.query([1.0, 0.0], 1, ALL)) == ["b"]
        with pytest.raises(StoreMismatchError):
            await store.start("model-a")

    async def test_what_the_caller_changes_later_is_not_stored(self, store: VectorStore):
        metadata: dict[str, str | int | float] = {"user_id": "u1"}
        vector = array("f", EAST)
        await store.upsert([Chunk("a", "text", metadata)], [vector])
        metadata["user_id"] = "u2"
        vector[0] = -1.0
        [hit] = await store.query(EAST, 1, Filter(user_id="u1"))
        assert hit.score == pytest.approx(1, abs=1e-5)
        assert await store.query(EAST, 1, Filter(user_id="u2")) == []

    async def test_calls_at_once_do_not_disturb_each_other(self, store: VectorStore):
        async def put(number: int) -> None:
            batch = [chunk(f"{number}-{i}", user_id=f"u{number}") for i in range(20)]
            await store.upsert(batch, [[1.0, number / 10, i / 100] for i in range(20)])
            hits = await store.query(EAST, 100, Filter(user_id=f"u{number}"))
            assert len(hits) == 20
            await store.delete([c.id for c in batch[:5]])

        async with asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(put(number))
        assert await store.count() == 8 * 15

    def test_several_event_loops_may_use_it(self, make_store: MakeStore):
        store = make_store()

        async def write() -> None:
            await store.start("model-a")
            await store.upsert([chunk("a")], [EAST])

        async def read() -> list[Hit]:
            return await store.query(EAST, 1, ALL)

        asyncio.run(write())
        assert ids(asyncio.run(read())) == ["a"]
        asyncio.run(store.aclose())

    async def test_a_cancelled_call_leaves_the_store_usable(self, store: VectorStore):
        batch = [chunk(f"c{i}") for i in range(100)]
        task = asyncio.create_task(store.upsert(batch, [EAST] * 100))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await store.upsert([chunk("after")], [NORTH])
        assert ids(await store.query(NORTH, 1, ALL)) == ["after"]

    async def test_closing_twice_or_unstarted_is_fine(self, make_store: MakeStore):
        store = make_store()
        await store.aclose()
        await store.aclose()

from __future__ import annotations

import math
from array import array

import pytest
from store_helpers import EAST, chunk

from autoplay_rag.errors import StoreRejectedError
from autoplay_rag.stores import Chunk, checked_changes, pack, pack_vector


@pytest.mark.parametrize(
    ("chunks", "vectors", "message"),
    [
        ([chunk("ok"), chunk("bad")], [EAST], "2 chunks and 1 vectors"),
        ([], [EAST], "0 chunks and 1 vectors"),
        ([chunk("ok"), chunk("bad")], [EAST, [1.0, 0.0]], "'bad' .* dimension 2.* 3"),
        ([chunk("ok"), chunk("bad")], [EAST, [1.0, math.nan, 0.0]], "'bad' has NaN"),
        ([chunk("ok"), chunk("bad")], [EAST, [math.inf, -math.inf, 0.0]], "'bad' has NaN"),
        ([chunk("ok"), chunk("bad")], [EAST, [1e300, 0.0, 0.0]], "'bad' has NaN"),
        ([chunk("ok"), chunk("bad")], [EAST, []], "'bad' is empty"),
        ([chunk("ok"), chunk("bad")], [EAST, ["a", "b", "c"]], "'bad' is not a sequence"),
        ([chunk("ok"), chunk("bad")], [EAST, None], "'bad' is not a sequence"),
        ([chunk("ok"), Chunk("bad", None, {})], [EAST, EAST], "text of chunk 'bad'"),
        ([chunk("ok"), Chunk("bad", "\ud800", {})], [EAST, EAST], "'bad' has a lone"),
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
def test_a_value_no_store_can_keep_is_refused_by_name(chunks, vectors, message):
    with pytest.raises(StoreRejectedError, match=message):
        pack(chunks, vectors)


@pytest.mark.parametrize("vector", [[math.nan, 0.0, 0.0], [], ["a"]], ids=str)
def test_a_question_that_is_not_a_vector_is_refused_by_name(vector):
    with pytest.raises(StoreRejectedError, match="the vector of the question"):
        pack_vector(vector, "the question")


def test_columns_are_copies_and_the_last_of_equal_ids_is_kept():
    metadata, vector = {"user_id": "u1"}, array("f", EAST)
    rows = pack([chunk("a"), Chunk("a", "second", metadata)], [EAST, vector])
    metadata["user_id"], vector[0] = "u2", -1.0
    assert (rows.ids, rows.texts, rows.metadatas) == (["a"], ["second"], [{"user_id": "u1"}])
    assert list(array("f", rows.vectors)) == EAST


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ok": {"k": 1}, "bad": {"k": math.nan}}, "'k' of chunk 'bad' is not a finite"),
        ({"bad": {"k": ["x"]}}, "'k' of chunk 'bad' is a list"),
        ({"bad": {"k": 2**63}}, "more than 64 bits"),
        ({"bad": {"": None}}, "key of chunk 'bad'"),
        ({"": {"k": 1}}, "id of a chunk"),
        ({"\ud800": {}}, "id of a chunk"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_change_no_store_can_make_is_refused_by_name(changes, message):
    with pytest.raises(StoreRejectedError, match=message):
        checked_changes(changes)


def test_changes_are_copies():
    wanted = {"user_id": "u1", "email": None}
    checked = checked_changes({"a": wanted})
    wanted["user_id"] = "u2"
    assert checked == {"a": {"user_id": "u1", "email": None}}

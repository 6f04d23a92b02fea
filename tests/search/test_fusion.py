"""The hybrid ranking."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag.journal.base import FoundPassage
from autoplay_rag.search.fusion import fused, group
from autoplay_rag.search.lexical import Question

ASKED = Question.of("export report")
COUNTS = {"export": 1, "report": 1}


def passage(seq, lane, text, chunk=None):
    return FoundPassage(seq, lane, text, chunk, None, None)


def ranked(passages, dense=None, mode="hybrid", **options):
    found = fused(ASKED, passages, dense or {}, COUNTS, 10, mode=mode, **options)
    return [one.unit for one in found]


def test_the_best_chunk_of_the_best_session_is_first():
    passages = [
        passage(1, 1, "opened export", "a1"),
        passage(2, 1, "saw report", "a2"),
        passage(3, 2, "opened export and more and more words", "b1"),
    ]
    found = fused(ASKED, passages, {}, COUNTS, 10, mode="text")
    assert {one.unit for one in found[:2]} == {"a1", "a2"}
    assert found[0].score == max(one.score for one in found)
    assert [one.dense_score for one in found] == [None] * 3


def test_dense_scores_rank_if_no_word_matches():
    passages = [passage(1, 1, "x", "a"), passage(2, 2, "y", "b"), passage(3, 3, "z", "c")]
    found = fused(ASKED, passages, {"a": 0.2, "b": 0.7, "c": 0.5}, {}, 10, mode="hybrid")
    assert [(one.unit, one.text_score) for one in found] == [("b", None), ("c", None), ("a", None)]
    assert [one.score for one in found] == pytest.approx([0.1, 0.06, 0.0])


def test_a_single_dense_candidate_gets_the_full_dense_part():
    (one,) = fused(ASKED, [passage(1, 1, "x", "a")], {"a": -0.3}, {}, 10, mode="hybrid")
    assert (one.score, one.dense_score, one.text_score) == (0.1, -0.3, None)


def test_each_mode_returns_candidates_of_its_side():
    passages = [passage(1, 1, "export", "a"), passage(2, 2, "y", "b"), passage(3, 3, "z")]
    assert ranked(passages, {"b": 0.5}, "hybrid") == ["a", "b"]
    assert ranked(passages, {"b": 0.5}, "text") == ["a"]
    assert ranked(passages, {"b": 0.5}, "dense") == ["b"]
    assert ranked(passages, {"b": 0.5}, "hybrid", whole=True) == ["a", "b", 3]


def test_a_payload_that_is_not_embedded_is_a_separate_candidate():
    passages = [passage(1, 1, "export", "a"), passage(2, 1, "export report")]
    assert ranked(passages, {"a": 0.9}, "hybrid")[0] == 2


units = st.one_of(st.none(), st.sampled_from(["c1", "c2", "c3"]))


@given(
    st.lists(st.tuples(st.integers(1, 3), st.text(), units), max_size=8),
    st.dictionaries(st.sampled_from(["c1", "c2", "c3"]), st.floats(-1, 1)),
    st.sampled_from(["hybrid", "dense", "text"]),
)
def test_each_unit_is_ranked_once_best_first(rows, dense, mode):
    passages = [passage(seq, lane, text, unit) for seq, (lane, text, unit) in enumerate(rows)]
    found = fused(ASKED, passages, dense, COUNTS, 10, mode=mode)
    assert len({(one.unit, one.lane) for one in found}) == len(found)
    scored = [one.score for one in found]
    assert scored == sorted(scored, reverse=True)
    sessions = group(found)
    firsts = [some[0].score for some in sessions.values()]
    assert firsts == sorted(firsts, reverse=True)

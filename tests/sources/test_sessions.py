"""Sessions cut by an idle gap: the same names after a restart, and from any split of the batches."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag.sources.sessions import IDLE_GAP, SessionCutter, cut_name, is_cut_name

times = st.lists(st.integers(1, 20).map(lambda step: step * 300.0), min_size=1, max_size=40)


def moments(steps):
    at, found = 1_700_000_000.0, []
    for step in steps:
        at += step
        found.append(at)
    return found


def test_a_gap_ends_a_session():
    cutter = SessionCutter("acme", "u1")
    first = cutter.session_at(1000.0)
    assert cutter.session_at(1000.0 + IDLE_GAP) == first
    assert cutter.session_at(1000.0 + 2 * IDLE_GAP + 1) != first


@given(times)
def test_sessions_are_the_runs_without_a_gap(steps):
    at = moments(steps)
    cutter = SessionCutter("acme", "u1")
    names = [cutter.session_at(one) for one in at]
    for (earlier, name), (later, other) in pairwise(zip(at, names, strict=True)):
        assert (name == other) == (later - earlier <= IDLE_GAP)
    assert all(map(is_cut_name, names))
    assert names[0] == cut_name("acme", "u1", at[0])


@given(times, st.data())
def test_a_restart_and_another_split_name_them_alike(steps, data):
    at = moments(steps)
    whole = SessionCutter("acme", "u1")
    expected = [whole.session_at(one) for one in at]
    again = SessionCutter("acme", "u1")
    cut = data.draw(st.integers(0, len(at)))
    first = [again.session_at(one) for one in at[:cut]]
    # The same actions come again, with more: an answer of the pull endpoint overlaps the last one.
    assert [again.session_at(one) for one in at] == expected
    assert first == expected[:cut]
    restarted = SessionCutter("acme", "u1")
    assert [restarted.session_at(one) for one in at] == expected


@given(times, st.integers(0, 39))
def test_a_remembered_session_keeps_its_name_once_its_first_action_is_gone(steps, gone):
    at = moments(steps)
    whole = SessionCutter("acme", "u1")
    expected = [whole.session_at(one) for one in at]
    restarted = SessionCutter("acme", "u1")
    for name in dict.fromkeys(expected):
        own = [one for one, other in zip(at, expected, strict=True) if other == name]
        restarted.remember(name, own[0], own[-1])
    assert [restarted.session_at(one) for one in at[gone:]] == expected[gone:]


def test_an_action_belongs_to_the_session_it_falls_into_and_not_to_the_nearer_end_of_another():
    cutter = SessionCutter("acme", "u1")
    cutter.remember("ps_1", 1000.0, 5000.0)
    cutter.remember("ps_2", 5200.0, 6000.0)
    assert cutter.session_at(4990.0) == "ps_1"
    assert cutter.session_at(5190.0) == "ps_2"
    assert cutter.session_at(0.0) == "ps_2"  # without a time: where the last one went


def test_names_show_no_person_and_differ_between_people_and_products():
    names = {cut_name(product, user, 1000.0) for product in ("a", "b") for user in ("ann", "bob")}
    assert len(names) == 4
    assert not any("ann" in name or "bob" in name for name in names)


def test_seconds_and_milliseconds_name_the_same_session():
    assert cut_name("a", "u", 1712345678.123) == cut_name("a", "u", 1712345678123.0)


def test_memory_is_bounded():
    cutter = SessionCutter("acme", "u1", most=3)
    names = [cutter.session_at(at * 10_000.0) for at in range(1, 6)]
    assert len(set(names)) == 5
    assert cutter.session_at(50_000.0) == names[-1]
    assert cutter.session_at(10_000.0) == names[0]  # cut anew, with the same name

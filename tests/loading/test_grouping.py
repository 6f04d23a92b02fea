from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag.loading import grouping
from autoplay_rag.loading.grouping import SessionGroups
from autoplay_rag.payloads import ActionsPayload, SummaryPayload


def actions(session: str | None, product: str = "acme") -> ActionsPayload:
    return ActionsPayload(product, session)


def add(groups: SessionGroups, payload, key: str, now: float = 0.0) -> list[list[str]]:
    return keys(groups.add(payload, (key, payload), now))


def keys(found) -> list[list[str]]:
    return [[key for key, _ in group] for group in found]


def test_a_summary_ends_its_session_alone():
    groups = SessionGroups(idle=60)
    assert add(groups, actions("s1"), "a") == []
    assert add(groups, actions("s2"), "b") == []
    assert add(groups, actions("s1"), "c") == []
    assert add(groups, SummaryPayload("acme", "s1", "done"), "d") == [["a", "c", "d"]]
    assert keys(groups.rest()) == [["b"]]


def test_a_summary_that_is_not_wanted_ends_its_session_too():
    groups = SessionGroups(idle=60)
    add(groups, actions("s1"), "a")
    assert keys(groups.add(SummaryPayload("acme", "s1", "done"), None, 0.0)) == [["a"]]
    assert groups.add(SummaryPayload("acme", "s1", "done"), None, 0.0) == []
    assert groups.rest() == []


def test_the_same_session_of_two_products_is_two():
    groups = SessionGroups(idle=60)
    add(groups, actions("s1"), "a")
    add(groups, actions("s1", product="other"), "b")
    assert keys(groups.rest()) == [["a"], ["b"]]


def test_what_has_no_session_waits_for_nothing():
    groups = SessionGroups(idle=60)
    assert add(groups, actions(None), "a") == [["a"]]
    assert groups.add(actions(None), None, 0.0) == []
    assert groups.next_due() is None


def test_silence_ends_a_session():
    groups = SessionGroups(idle=60)
    add(groups, actions("s1"), "a", now=0.0)
    add(groups, actions("s2"), "b", now=10.0)
    add(groups, actions("s1"), "c", now=50.0)
    assert groups.next_due() == 70.0
    assert groups.due(69.9) == []
    assert keys(groups.due(70.0)) == [["b"]]
    assert keys(groups.due(110.0)) == [["a", "c"]]
    assert groups.next_due() is None


def test_payloads_that_are_not_wanted_keep_their_session_awake():
    groups = SessionGroups(idle=60)
    add(groups, actions("s1"), "a", now=0.0)
    groups.add(actions("s1"), None, 50.0)
    assert groups.next_due() == 110.0


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), max_size=80))
def test_nothing_is_lost_doubled_or_held_without_bound(steps):
    groups = SessionGroups(idle=5)
    given_: list[str] = []
    wanted: list[str] = []
    grouping._MAX_PAYLOADS, grouping._MAX_HELD, kept = 4, 8, (500, 10_000)
    try:
        for now, (session, keep) in enumerate(steps):
            payload = actions(session)
            found = groups.add(payload, (f"{now}", payload) if keep else None, now)
            wanted += [f"{now}"] * keep
            given_ += [key for group in keys(found) for key in group]
            assert all(group for group in found)
            assert len(wanted) - len(given_) <= 8
            assert all(len(group) <= 4 for group in found)
            given_ += [key for group in keys(groups.due(now)) for key in group]
    finally:
        grouping._MAX_PAYLOADS, grouping._MAX_HELD = kept
    given_ += [key for group in keys(groups.rest()) for key in group]
    assert sorted(given_) == sorted(wanted)
    assert groups._held == 0


def test_another_person_in_the_same_session_begins_another_document():
    groups = SessionGroups(idle=60)

    def by(user: str | None) -> ActionsPayload:
        return ActionsPayload("acme", "s1", user)

    assert [add(groups, by(user), f"{n}") for n, user in enumerate([None, "ann", None])] == [[]] * 3
    assert add(groups, by("bob"), "3") == [["0", "1", "2"]]
    assert add(groups, SummaryPayload("acme", "s1", "done"), "4") == [["3", "4"]]
    assert add(groups, by("ann"), "5") == []
    assert groups.add(by("bob"), None, 0.0)[0][0][0] == "5"
    assert groups.rest() == []


def test_an_empty_session_id_is_none():
    assert add(SessionGroups(idle=60), actions(""), "a") == [["a"]]


def test_a_gap_in_a_sessions_own_times_begins_another_document():
    groups = SessionGroups(idle=60)
    assert add(groups, actions("s1"), "a", now=100.0) == []
    assert add(groups, actions("s1"), "b", now=159.0) == []
    assert add(groups, actions("s1"), "c", now=219.0) == [["a", "b"]]
    assert groups.next_due() == 279.0
    assert keys(groups.rest()) == [["c"]]
    assert groups.next_due() is None


def test_an_unknown_time_is_no_gap():
    groups = SessionGroups(idle=60)
    found = [
        add(groups, actions("s1"), key, now) for key, now in [("a", 1e9), ("b", 0), ("c", 1e9)]
    ]
    assert found == [[], [], []]
    assert keys(groups.rest()) == [["a", "b", "c"]]


def test_a_session_without_times_is_emitted_whole_at_the_end():
    groups = SessionGroups(idle=60)
    for n in range(3):
        assert add(groups, actions("s1"), f"{n}", now=0.0) == []
        assert groups.next_due() is None
        assert groups.due(1.7e9 + n) == []
    assert keys(groups.rest()) == [["0", "1", "2"]]


def test_a_session_without_times_does_not_grow_without_bound(monkeypatch):
    monkeypatch.setattr(grouping, "_MAX_PAYLOADS", 3)
    groups = SessionGroups(idle=60)
    found = [add(groups, actions("s1"), f"{n}") for n in range(4)]
    assert found == [[], [], [["0", "1", "2"]], []]
    assert keys(groups.rest()) == [["3"]]


def test_a_session_is_idle_from_its_first_known_time():
    groups = SessionGroups(idle=60)
    add(groups, actions("s1"), "a", now=0.0)
    add(groups, actions("s1"), "b", now=100.0)
    add(groups, actions("s1"), "c", now=0.0)
    assert groups.next_due() == 160.0
    assert keys(groups.due(160.0)) == [["a", "b", "c"]]


def test_sessions_become_idle_by_their_own_times_in_any_order():
    groups = SessionGroups(idle=60)
    add(groups, actions("ahead"), "a", now=1e6)
    add(groups, actions("s1"), "b", now=100.0)
    add(groups, actions("s2"), "c", now=90.0)
    add(groups, actions("s2"), "d", now=50.0)
    assert groups.next_due() == 110.0
    assert keys(groups.due(160.0)) == [["c", "d"], ["b"]]
    assert groups.next_due() == 1e6 + 60


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([0, 1, 5, 7, 20, 1e9])), max_size=60)
)
def test_what_is_due_is_always_what_is_idle(steps):
    groups = SessionGroups(idle=5)
    last: dict[str, float] = {}
    for n, (session, at) in enumerate(steps):
        payload = actions(session)
        groups.add(payload, (str(n), payload), at)
        last[session] = at or last.get(session, 0)
        timed = [at for at in last.values() if at]
        assert groups.next_due() == (min(timed) + 5 if timed else None)
        for [(_, first), *_] in groups.due(10):
            assert 0 < last.pop(first.session_id) <= 10 - 5
        assert all(at + 5 > 10 for at in last.values() if at)

"""From payloads to plans. Pure: no journal, no store."""

from __future__ import annotations

from itertools import count

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag.content.identity import NOBODY, People
from autoplay_rag.content.keys import chunk_id, lane_of, payload_key
from autoplay_rag.ingest.planner import Planner
from autoplay_rag.journal.base import Session, Waiting
from autoplay_rag.payloads import ActionsPayload, ChatTurn, SlimAction, SummaryPayload


def waiting(*payloads, first=1) -> list[Waiting]:
    return [
        Waiting(seq, payload_key(payload), lane_of(payload, seq), msgspec.json.encode(payload))
        for seq, payload in enumerate(payloads, first)
    ]


@pytest.fixture
def planner(titles):
    def make(render=titles, count_tokens=len, max_actions=20, include_email=False):
        return Planner(render, count_tokens, max_actions, include_email=include_email)

    return make


def texts(plan) -> list[str]:
    return [planned.chunk.text for planned in plan.chunks]


def seqs(plan) -> list[tuple[int, ...]]:
    return [planned.seqs for planned in plan.chunks]


def metadata(plan, name) -> list:
    return [planned.chunk.metadata.get(name) for planned in plan.chunks]


# -- chunks -----------------------------------------------------------------------------------


def test_neighbouring_actions_share_a_chunk(planner, make_actions):
    payloads = [make_actions("s", "a", "b"), make_actions("s", "c"), make_actions("s", "d")]
    plan, _ = planner(max_actions=3).plan(7, waiting(*payloads), None)
    assert (plan.number, plan.lane) == (7, lane_of(payloads[0], 1))
    assert texts(plan) == ["a\nb\nc", "d"]
    assert seqs(plan) == [(1, 2), (3,)]
    assert [planned.tokens for planned in plan.chunks] == [5, 1]
    first = payloads[0]
    assert plan.chunks[0].chunk.id == chunk_id(first, payload_key(first))
    assert plan.seqs == [1, 2, 3]


def test_a_payload_of_many_actions_fills_several_chunks(planner, make_actions):
    payload = make_actions("s", *"abcde")
    plan, _ = planner(max_actions=2).plan(1, waiting(payload), None)
    assert texts(plan) == ["a\nb", "c\nd", "e"]
    assert seqs(plan) == [(1,), (1,), (1,)]
    assert len({planned.chunk.id for planned in plan.chunks}) == 3
    assert plan.seqs == [1]


def test_summaries_and_chats_are_chunks_of_their_own(planner, make_actions):
    payloads = [
        make_actions("s", "a"),
        SummaryPayload("acme", "s", "Did a.", 1, 2000.0),
        make_actions("s", "b"),
        ChatTurn("acme", "s", question="How?", answer="So."),
    ]
    plan, _ = planner().plan(1, waiting(*payloads), None)
    assert seqs(plan) == [(1,), (2,), (3,), (4,)]
    assert metadata(plan, "kind") == ["actions", "summary", "actions", "chat"]


def test_a_payload_without_a_session_is_planned_and_nothing_is_known_of_it(planner, make_actions):
    plan, session = planner().plan(1, waiting(make_actions(None, "a", user="ann")), None)
    assert plan.lane < 0
    assert session is None
    assert metadata(plan, "user_id") == ["ann"]


# -- failures ---------------------------------------------------------------------------------


def failing_on(word, titles, how):
    def render(payloads):
        text = titles(payloads)
        return how(text) if word in text else text

    return render


def raise_error(_text):
    raise RuntimeError("bad text")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (raise_error, "RuntimeError: bad text"),
        (lambda text: " \n", "ValueError: it returned an empty text"),
        (lambda text: None, "AttributeError"),
        (lambda text: "half \ud800", "UnicodeEncodeError"),
    ],
)
def test_a_render_that_fails_costs_only_the_payload_at_fault(
    planner, make_actions, titles, how, said
):
    render = failing_on("poison", titles, how)
    payloads = [make_actions("s", title) for title in ("a", "poison", "b")]
    plan, session = planner(render).plan(1, waiting(*payloads), None)
    assert texts(plan) == ["a", "b"]
    assert seqs(plan) == [(1,), (3,)]
    assert list(plan.unplanned) == [2]
    assert plan.unplanned[2].startswith(f"render failed: {said}")
    assert plan.seqs == [1, 2, 3]
    assert session is not None


def test_a_payload_of_several_chunks_fails_as_a_whole(planner, make_actions, titles):
    render = failing_on("poison", titles, raise_error)
    payloads = [
        make_actions("s", "a"),
        make_actions("s", "b", "c", "poison"),
        make_actions("s", "d"),
    ]
    plan, _ = planner(render, max_actions=2).plan(1, waiting(*payloads), None)
    assert texts(plan) == ["a", "d"]
    assert list(plan.unplanned) == [2]


def test_counting_tokens_that_fails_costs_only_the_payload_at_fault(planner, make_actions):
    def count_tokens(text):
        if "poison" in text:
            raise KeyError("no such token")
        return len(text)

    payloads = [make_actions("s", "a"), make_actions("s", "poison")]
    plan, _ = planner(count_tokens=count_tokens).plan(1, waiting(*payloads), None)
    assert texts(plan) == ["a"]
    assert "no such token" in plan.unplanned[2]


@pytest.mark.parametrize("body", [None, b"", b"{", b"\xff\xfe"])
def test_a_damaged_body_costs_only_its_payload(planner, make_actions, body):
    items = waiting(*(make_actions("s", title) for title in "abc"))
    items[1] = items[1]._replace(body=body)
    plan, session = planner().plan(1, items, None)
    assert texts(plan) == ["a\nc"]
    assert plan.unplanned == {2: "the payload's copy in the journal is damaged"}
    assert session is not None


def test_nothing_but_damaged_bodies_says_nothing_of_the_session(planner, make_actions):
    items = [item._replace(body=None) for item in waiting(make_actions("s", "a"))]
    plan, session = planner().plan(1, items, None)
    assert (plan.chunks, list(plan.unplanned), session) == ([], [1], None)


# -- identity ---------------------------------------------------------------------------------


def known(payload, people, **changes) -> Session:
    session = Session(lane_of(payload, 1), "acme", "s", people, False, 500.0, 600.0)
    return session._replace(**changes)


def test_a_session_keeps_its_user_until_another_is_named(planner, make_actions):
    summary = SummaryPayload("acme", "s", "Did a.", 1, 2000.0)
    plan, session = planner().plan(1, waiting(summary), known(summary, People("ann", "c1")))
    assert metadata(plan, "user_id") == ["ann"]
    assert metadata(plan, "conversation_id") == ["c1"]
    assert session is not None
    assert (session.people, session.ambiguous) == (People("ann", "c1"), False)


def test_two_people_never_share_a_chunk_and_the_session_is_ambiguous(planner, make_actions):
    payloads = [
        make_actions("s", "a"),
        make_actions("s", "b", user="ann"),
        make_actions("s", "c", user="bob"),
        SummaryPayload("acme", "s", "Did c.", 1, 2000.0),
    ]
    plan, session = planner().plan(1, waiting(*payloads), None)
    assert texts(plan)[:2] == ["a\nb", "c"]
    assert metadata(plan, "user_id") == ["ann", "bob", "bob"]
    assert session is not None
    assert (session.people.user_id, session.ambiguous) == ("bob", True)


def test_a_user_named_only_on_an_action_is_known(planner):
    action = SlimAction("a", "a", "https://app.test/p", user_id="ann", conversation_id="c1")
    plan, session = planner().plan(1, waiting(ActionsPayload("acme", "s", actions=[action])), None)
    assert metadata(plan, "user_id") == ["ann"]
    assert session is not None
    assert session.people == People("ann", "c1")


def test_ambiguous_stays_and_a_change_after_a_restart_is_noticed(planner, make_actions):
    payload = make_actions("s", "a", user="bob")
    _, session = planner().plan(1, waiting(payload), known(payload, People("ann")))
    assert session is not None
    assert session.ambiguous
    _, session = planner().plan(1, waiting(payload), known(payload, NOBODY, ambiguous=True))
    assert session is not None
    assert session.ambiguous


def retried(payload, seq) -> Waiting:
    (item,) = waiting(payload, first=seq)
    return item._replace(retried=True)


def test_a_retried_letter_does_not_return_the_session_to_its_earlier_user(planner, make_actions):
    letter = make_actions("s", "a", user="ann")
    summary = SummaryPayload("acme", "s", "Did b.", 1, 2000.0)
    items = [retried(letter, 1), *waiting(summary, first=9)]
    plan, session = planner().plan(3, items, known(letter, People("bob", "c2")))
    assert metadata(plan, "user_id") == ["ann", "bob"]
    assert metadata(plan, "conversation_id") == [None, "c2"]
    assert session is not None
    assert (session.people, session.ambiguous) == (People("bob", "c2"), True)


def test_a_retried_letter_without_a_user_does_not_get_the_later_user(planner, make_actions):
    letter = make_actions("s", "a")
    later = make_actions("s", "b", user="bob")
    items = [*waiting(later, first=9), retried(letter, 1)]
    plan, session = planner().plan(3, items, known(letter, People("bob"), ambiguous=True))
    assert texts(plan) == ["a", "b"]
    assert metadata(plan, "user_id") == [None, "bob"]
    assert session is not None
    assert session.people == People("bob")


def test_a_retried_letter_gets_the_only_user_of_its_session(planner, make_actions):
    letter = make_actions("s", "a")
    items = [retried(letter, 1), *waiting(make_actions("s", "b"), first=9)]
    plan, _ = planner().plan(3, items, known(letter, People("ann")))
    assert texts(plan) == ["a", "b"]  # in separate chunks
    assert metadata(plan, "user_id") == ["ann", "ann"]


def test_a_session_tells_when_it_was_active(planner, make_actions):
    payloads = [make_actions("s", "a", "b", at=1000.0), make_actions("s", "c", at=900.0)]
    _, session = planner().plan(1, waiting(*payloads), None)
    assert session is not None
    assert (session.first, session.last) == (900.0, 1001.0)
    assert (session.product_id, session.session_id) == ("acme", "s")


def test_addresses_are_in_the_metadata_only_when_asked_for(planner):
    payload = ActionsPayload("acme", "s", "ann", "ann@acme.test", [SlimAction("a", "a")], 1, 10.0)
    for include, expected in ((False, None), (True, "ann@acme.test")):
        plan, _ = planner(include_email=include).plan(1, waiting(payload), None)
        assert metadata(plan, "email") == [expected]


# -- divided chunks ---------------------------------------------------------------------------


def test_a_divided_chunk_becomes_one_per_payload_and_the_others_stay(planner, make_actions):
    payloads = [make_actions("s", title) for title in "abcd"]
    items = waiting(*payloads)
    plan, _ = planner(max_actions=2).plan(1, items, None)
    first, second = plan.chunks
    divided = planner(max_actions=2).divide(plan, first, items[:2])
    assert texts(divided) == ["a", "b", "c\nd"]
    assert seqs(divided) == [(1,), (2,), (3, 4)]
    assert divided.chunks[-1] is second
    assert divided.chunks[0].chunk.id == first.chunk.id  # overwrites the partly stored chunk
    assert (divided.number, divided.lane) == (plan.number, plan.lane)
    assert texts(plan) == ["a\nb", "c\nd"]  # unchanged


def test_dividing_keeps_the_user(planner, make_actions):
    payloads = [make_actions("s", "a"), make_actions("s", "b", user="ann")]
    items = waiting(*payloads)
    plan, _ = planner().plan(1, items, None)
    divided = planner().divide(plan, plan.chunks[0], items)
    assert metadata(divided, "user_id") == ["ann", "ann"]


def test_what_cannot_be_planned_apart_is_added_to_what_could_not_before(
    planner, make_actions, titles
):
    payloads = [make_actions("s", title) for title in ("a", "b", "poison", "c")]
    items = waiting(*payloads)
    plan, _ = planner(failing_on("poison", titles, raise_error)).plan(1, items[2:3], None)
    rest, _ = planner().plan(1, [items[0], items[1], items[3]], None)
    rest.unplanned = dict(plan.unplanned)
    items[1] = items[1]._replace(body=None)
    divided = planner(failing_on("c", titles, raise_error)).divide(
        rest, rest.chunks[0], [items[0], items[1], items[3]]
    )
    assert texts(divided) == ["a"]
    assert sorted(divided.unplanned) == [2, 3, 4]


def test_tokens_are_counted_again(planner, make_actions):
    plan, _ = planner().plan(1, waiting(make_actions("s", "abc")), None)
    double = planner(count_tokens=lambda text: 2 * len(text))
    assert double.count([planned.chunk for planned in plan.chunks]) == [6]


def test_tokens_that_cannot_be_counted_again_are_estimated(planner, make_actions):
    """The embedder may have changed since."""

    def count_tokens(text):
        if text == "abc":
            raise KeyError(text)
        return 7

    plan, _ = planner(max_actions=1).plan(1, waiting(make_actions("s", "abc", "d")), None)
    chunks = [planned.chunk for planned in plan.chunks]
    assert planner(count_tokens=count_tokens).count(chunks) == [3, 7]


# -- anything ---------------------------------------------------------------------------------


@st.composite
def batches(draw):
    numbers = count()
    payloads = []
    for _ in range(draw(st.integers(1, 8))):
        user = draw(st.sampled_from([None, "ann", "bob"]))
        if draw(st.integers(0, 4)) == 0:
            payloads.append(SummaryPayload("acme", "s", f"{next(numbers)} summary", 1, 10.0))
            continue
        actions = []
        for _ in range(draw(st.integers(1, 5))):
            title = f"{next(numbers)}{draw(st.sampled_from(['', '', '', ' poison']))}"
            actions.append(SlimAction(title, title, "", 0, "click", 5.0, 5.0))
        payloads.append(ActionsPayload("acme", "s", user, None, actions, len(actions), 10.0))
    return payloads


@given(batches(), st.integers(1, 6))
def test_each_payload_is_in_its_chunks_or_unplanned_in_order_and_of_one_person(payloads, most):
    def lines(payload):
        if isinstance(payload, ActionsPayload):
            return [action.title for action in payload.actions]
        return [payload.summary]

    def render(given_payloads):
        text = "\n".join(line for payload in given_payloads for line in lines(payload))
        if "poison" in text:
            raise ValueError(text)
        return text

    planner = Planner(render, len, most, include_email=False)
    plan, _ = planner.plan(1, waiting(*payloads), None)
    good = {
        seq: lines(payload)
        for seq, payload in enumerate(payloads, 1)
        if not any("poison" in line for line in lines(payload))
    }
    assert plan.unplanned.keys() == set(range(1, len(payloads) + 1)) - good.keys()
    found = [line for planned in plan.chunks for line in planned.chunk.text.split("\n")]
    assert found == [line for own in good.values() for line in own]
    assert plan.seqs == list(range(1, len(payloads) + 1))
    assert len({planned.chunk.id for planned in plan.chunks}) == len(plan.chunks)
    for planned in plan.chunks:
        users = {getattr(payloads[seq - 1], "user_id", None) for seq in planned.seqs} - {None}
        assert len(users) <= 1
        if users:
            assert planned.chunk.metadata["user_id"] in users

"""Payloads of several people are divided."""

from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag.content.identity import parts_by_person, people_of
from autoplay_rag.payloads import ActionsPayload, ChatTurn, SlimAction

PEOPLE = st.sampled_from([None, None, "ann", "bob", "cat"])


def payload_of(person, people):
    actions = [SlimAction(str(n), user_id=one) for n, one in enumerate(people)]
    return ActionsPayload("acme", "s1", person, "a@b.test", actions, len(actions), 5.0, "thread")


@given(PEOPLE, st.lists(PEOPLE, max_size=8))
def test_no_action_is_lost_and_no_part_is_of_two_people(person, people):
    whole = payload_of(person, people)
    parts = parts_by_person(whole)
    assert [action for part in parts for action in part.actions] == whole.actions
    assert all(part.count == len(part.actions) for part in parts)
    for part in parts:
        named = {action.user_id for action in part.actions if action.user_id}
        assert len(named) <= 1
        if len(parts) > 1 and named:
            assert people_of(part).user_id in named
    if len({one for one in people if one}) < 2:
        assert parts == [whole]


def test_address_and_thread_stay_with_the_person_of_the_payload():
    ann, bob = parts_by_person(payload_of("ann", [None, "ann", "bob", None]))
    assert (ann.user_id, ann.email, ann.conversation_id) == ("ann", "a@b.test", "thread")
    assert (bob.user_id, bob.email, bob.conversation_id) == ("bob", None, None)
    assert [len(ann.actions), len(bob.actions)] == [2, 2]


def test_other_payloads_stay_whole():
    turn = ChatTurn("acme", "s1", "ann")
    assert parts_by_person(turn) == [turn]

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag.content.identity import People
from autoplay_rag.content.keys import chunk_id, lane_of, payload_key
from autoplay_rag.payloads import ActionsPayload, ChatTurn, SlimAction, SummaryPayload


def actions(**changes) -> ActionsPayload:
    action = SlimAction("t", "d", "u", 3, "click", 5.0, 6.0, "raw")
    fields = {
        "product_id": "p", "session_id": "s", "user_id": "u", "email": "e", "actions": [action],
        "count": 1, "forwarded_at": 9.0, "conversation_id": "c",
    }  # fmt: skip
    return ActionsPayload(**(fields | changes))


class TestWhatARetryChanges:
    def test_does_not_change_the_key(self):
        again = actions(
            user_id=None, email=None, conversation_id=None, count=9, forwarded_at=99.0,
            actions=[SlimAction("t", "d", "u", 0, "click", 5.0, 6.0, "raw", user_id="x")],
        )  # fmt: skip
        assert payload_key(again) == payload_key(actions())

    def test_forwarded_at_counts_without_a_session(self):
        one, other = actions(session_id=None), actions(session_id=None, forwarded_at=99.0)
        assert payload_key(one) != payload_key(other)

    def test_forwarded_at_counts_where_an_action_has_no_time(self):
        timeless = [SlimAction("t", timestamp_start=1.0), SlimAction("t")]
        one, other = actions(actions=timeless), actions(actions=timeless, forwarded_at=99.0)
        assert payload_key(one) != payload_key(other)

    def test_a_summary_is_its_text(self):
        one, other = (
            SummaryPayload("p", "s", "text", 3, 1.0),
            SummaryPayload("p", "s", "text", 4, 2.0),
        )
        assert payload_key(one) == payload_key(other)

    def test_the_same_question_asked_twice_is_two_turns(self):
        one, other = ChatTurn("p", "s", forwarded_at=1.0), ChatTurn("p", "s", forwarded_at=2.0)
        assert payload_key(one) != payload_key(other)


@given(
    st.sampled_from(
        [
            "title",
            "description",
            "canonical_url",
            "raw_url",
            "type",
            "timestamp_start",
            "timestamp_end",
        ]
    )
)
def test_everything_else_of_an_action_counts(name):
    changed = SlimAction("t", "d", "u", 3, "click", 5.0, 6.0, "raw")
    setattr(changed, name, 7.0 if name.startswith("timestamp") else "other")
    assert payload_key(actions(actions=[changed])) != payload_key(actions())


@given(st.text(), st.text(min_size=1), st.text(), st.text(min_size=1))
def test_neighbouring_texts_do_not_run_together(a, b, c, d):
    one = actions(product_id=a, session_id=b)
    other = actions(product_id=c, session_id=d)
    assert (payload_key(one) == payload_key(other)) == ((a, b) == (c, d))
    assert (lane_of(one, 1) == lane_of(other, 1)) == ((a, b) == (c, d))


def test_a_kind_is_part_of_the_key():
    assert payload_key(ActionsPayload("p", "s")) != payload_key(SummaryPayload("p", "s"))


def test_chunk_ids_tell_parts_and_first_payloads_apart():
    payload = actions()
    ids = {chunk_id(payload, key, part) for key in ("k1", "k2") for part in range(3)}
    assert len(ids) == len({UUID(hex=one) for one in ids}) == 6
    assert chunk_id(payload, "k1") == chunk_id(actions(user_id=None), "k1")


def test_lanes_of_payloads_without_session_are_their_own():
    assert lane_of(actions(session_id=None), 7) == lane_of(actions(session_id=""), 7) == -7
    assert lane_of(actions(), 7) == lane_of(actions(), 8) > 0
    assert lane_of(actions(), 7) < 2**63


def test_a_session_belongs_to_its_last_user():
    def by(user_id=None, conversation_id=None):
        return ActionsPayload("p", "s", user_id, conversation_id=conversation_id)

    summary = SummaryPayload("p", "s", "did things")
    found, seen = People(), []
    for payload in (summary, by(), by("ann", "c1"), summary, by(), by("bob"), summary):
        found = found.after(payload)
        seen.append(found)
    ann, bob = People("ann", "c1"), People("bob", None)
    assert seen == [People(), People(), ann, ann, ann, bob, bob]

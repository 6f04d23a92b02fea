import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag.content.chunks import Accepted, draft_chunks, is_empty, metadata_of
from autoplay_rag.content.identity import People, people_of
from autoplay_rag.payloads import ActionsPayload, ChatTurn, SlimAction, SummaryPayload


def batch(seq: int, count: int, session: str | None = "s", at: float = 100.0) -> Accepted:
    actions = [SlimAction(f"{seq}.{i}", timestamp_start=at + i) for i in range(count)]
    return Accepted(
        seq, f"key{seq}", ActionsPayload("p", session, actions=actions, forwarded_at=at)
    )


def drafted(*accepted: Accepted, most: int = 20) -> list[list[str]]:
    return [
        [a.title for payload in draft.payloads for a in payload.actions]
        for draft in draft_chunks(accepted, most)
    ]


def test_neighbours_share_a_chunk_up_to_the_limit():
    found = drafted(batch(1, 8), batch(2, 8), batch(3, 8))
    assert [len(chunk) for chunk in found] == [16, 8]


def test_a_payload_is_never_divided_unless_it_alone_is_too_much():
    assert [len(chunk) for chunk in drafted(batch(1, 3), batch(2, 45), batch(3, 1))] == [
        3,
        20,
        20,
        5,
        1,
    ]


def test_a_summary_stands_alone_and_parts_what_was_before_it_from_what_came_after():
    summary = Accepted(2, "key2", SummaryPayload("p", "s", "did things", 3, 1.0))
    drafts = list(draft_chunks([batch(1, 2), summary, batch(3, 2)], 20))
    assert [draft.payloads[0].kind for draft in drafts] == ["actions", "summary", "actions"]
    assert [[source.seq for source in draft.sources] for draft in drafts] == [[1], [2], [3]]


def test_sessions_and_payloads_without_one_never_share_a_chunk():
    assert (
        len(drafted(batch(1, 1, "a"), batch(2, 1, "b"), batch(3, 1, None), batch(4, 1, None))) == 4
    )


def test_two_people_who_had_one_session_after_another_never_share_a_chunk():
    def by(seq: int, user: str | None, in_action: bool = False) -> Accepted:
        who = {"user_id": user}
        action = SlimAction(str(seq), timestamp_start=1.0, **(who if in_action else {}))
        payload = ActionsPayload("p", "s", **({} if in_action else who), actions=[action])
        return Accepted(seq, f"key{seq}", payload, people_of(payload))

    people = [by(1, None), by(2, "ann"), by(3, None), by(4, "ann", in_action=True)]
    people += [by(5, "bob", in_action=True), by(6, None), by(7, "ann")]
    assert drafted(*people) == [["1", "2", "3", "4"], ["5", "6"], ["7"]]
    assert [metadata_of(draft.payloads)["user_id"] for draft in draft_chunks(people, 20)] == [
        "ann",
        "bob",
        "ann",
    ]


def test_an_empty_session_id_is_none():
    assert len(drafted(batch(1, 1, ""), batch(2, 1, ""))) == 2


def test_a_summary_gets_the_user_of_its_session():
    summary = SummaryPayload("p", "s", "did things", 3, 1.0)
    assert "user_id" not in metadata_of([summary])
    found = metadata_of([summary], people=People("ann", "c1"))
    assert (found["user_id"], found["conversation_id"]) == ("ann", "c1")
    own = ActionsPayload("p", "s", "bob", actions=[SlimAction("t")])
    assert metadata_of([own], people=People("ann", None))["user_id"] == "bob"


@given(st.lists(st.integers(0, 50), max_size=12), st.integers(1, 25))
def test_every_action_stands_once_in_order_and_chunks_keep_the_limit(counts, most):
    accepted = [batch(seq, count) for seq, count in enumerate(counts)]
    found = drafted(*accepted, most=most)
    assert [title for chunk in found for title in chunk] == [
        action.title for item in accepted for action in item.payload.actions
    ]
    assert all(len(chunk) <= most for chunk in found)
    ids = [draft.id for draft in draft_chunks(accepted, most)]
    assert len(set(ids)) == len(ids)


class TestMetadata:
    def test_is_flat_and_leaves_out_what_is_unknown(self):
        assert metadata_of([ActionsPayload("p", None)]) == {"product_id": "p", "kind": "actions"}

    def test_spans_the_chunk(self):
        first = batch(1, 2, at=100.0).payload
        second = batch(2, 3, at=200.0).payload
        found = metadata_of([first, second])
        assert (found["started_at"], found["ended_at"], found["forwarded_at"]) == (
            100.0,
            202.0,
            200.0,
        )
        assert found["action_count"] == 5

    def test_takes_the_first_known_identity_also_from_an_action(self):
        linked = ActionsPayload("p", "s", actions=[SlimAction(user_id="u1", email="a@b.c")])
        found = metadata_of([ActionsPayload("p", "s"), linked])
        assert found["user_id"] == "u1"
        assert "email" not in found
        assert metadata_of([linked], include_email=True)["email"] == "a@b.c"

    def test_falls_back_to_the_time_of_forwarding(self):
        found = metadata_of([SummaryPayload("p", "s", "text", 1, 50.0)])
        assert (found["started_at"], found["ended_at"]) == (50.0, 50.0)

    def test_urls_are_distinct_whole_and_bounded(self):
        long = [SlimAction(canonical_url=f"https://a.test/{i:0300}") for i in (1, 1, 2, 3, 4, 5)]
        urls = str(metadata_of([ActionsPayload("p", "s", actions=long)])["urls"])
        assert len(urls) <= 1000
        assert urls.split() == [f"https://a.test/{i:0300}" for i in (1, 2, 3)]

    def test_nul_is_replaced_since_databases_refuse_it(self):
        assert metadata_of([ActionsPayload("p\0", "s")])["product_id"] == "p\ufffd"


@pytest.mark.parametrize(
    ("payload", "empty"),
    [
        (ActionsPayload(), True),
        (ActionsPayload(actions=[SlimAction()]), False),
        (SummaryPayload(summary=" \n"), True),
        (SummaryPayload(summary="x"), False),
        (ChatTurn(), True),
        (ChatTurn(answer="x"), False),
    ],
)
def test_empty_is_what_has_nothing_to_find(payload, empty):
    assert is_empty(payload) is empty

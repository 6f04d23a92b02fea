"""From payloads to journal entries: the user's rules, email addresses, keys."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from autoplay_rag.content.keys import chunk_id, lane_of, payload_key
from autoplay_rag.content.redaction import redaction_rule
from autoplay_rag.ingest.intake import Intake, own
from autoplay_rag.journal.bodies import decoded, unpack
from autoplay_rag.payloads import ActionsPayload, ChatTurn, SlimAction, SummaryPayload


def kept(entry):
    """The payload that the journal keeps."""
    return decoded(unpack(entry.body))


def fail(_payload):
    raise RuntimeError("SECRET in the message")


def with_addresses() -> ActionsPayload:
    actions = [
        SlimAction("a", "a", "https://app.test/p", 0, "click", 5.0, 5.0, email="ann@acme.test"),
        SlimAction("b", "b", "https://app.test/p", 1, "click", 6.0, 6.0),
    ]
    return ActionsPayload("acme", "s", "ann", "ann@acme.test", actions, 2, 10.0)


# -- unchanged payloads -----------------------------------------------------------------------


def test_an_entry_identifies_its_payload_and_keeps_it(make_actions):
    payload = make_actions("s", "a")
    entry = Intake(None, None).entry(payload, 7)
    assert (entry.seq, entry.key, entry.lane) == (7, payload_key(payload), lane_of(payload, 7))
    assert (entry.outcome, entry.error, entry.first_chunk) == ("accepted", None, "")
    assert entry.payload is payload
    assert kept(entry) == payload
    assert entry.size == len(msgspec.json.encode(payload))


def test_a_payload_without_a_session_has_a_lane_of_its_own(make_actions):
    assert Intake(None, None).entry(make_actions(None, "a"), 7).lane == -7


def test_where_chunks_were_adopted_the_first_chunk_is_named(make_actions):
    payload = make_actions("s", "a")
    intake = Intake(None, lambda payload: make_actions("s", "***"))
    intake.names_first_chunks = True
    key = payload_key(payload)
    assert intake.entry(payload, 1).first_chunk == chunk_id(payload, key)
    failing = Intake(None, fail)
    failing.names_first_chunks = True
    assert failing.entry(payload, 1).first_chunk == chunk_id(payload, key)


# -- select -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        ActionsPayload("acme", "s"),
        SummaryPayload("acme", "s", " \n"),
        ChatTurn("acme", "s", question=" ", answer=""),
    ],
)
def test_what_is_empty_is_filtered_before_anybody_is_asked(payload):
    entry = Intake(fail, fail).entry(payload, 1)
    assert (entry.outcome, entry.payload, entry.body) == ("filtered", None, None)


def test_what_select_refuses_is_filtered_and_not_redacted(make_actions):
    entry = Intake(lambda payload: payload.session_id != "no", fail).entry(
        make_actions("no", "a"), 1
    )
    assert (entry.outcome, entry.payload, entry.body) == ("filtered", None, None)
    intake = Intake(lambda payload: payload.session_id != "no", None)
    assert intake.entry(make_actions("yes", "a"), 1).outcome == "accepted"


def test_a_select_that_raises_makes_a_dead_letter_with_the_payload(make_actions, caplog):
    entry = Intake(fail, None).entry(make_actions("s", "a"), 1)
    assert entry.outcome == "dead"
    assert entry.error == "select failed: RuntimeError: SECRET in the message"
    assert kept(entry) == make_actions("s", "a")
    assert "SECRET" not in caplog.text


def test_with_redact_the_message_of_select_is_not_kept(make_actions):
    entry = Intake(fail, lambda payload: make_actions("s", "***")).entry(make_actions("s", "a"), 1)
    assert entry.error == "select failed: RuntimeError"
    assert kept(entry).actions[0].title == "***"


# -- redact -----------------------------------------------------------------------------------


def test_the_kept_payload_is_redacted_and_the_key_is_of_the_original(make_actions):
    payload = make_actions("s", "PRIVATE")
    entry = Intake(None, lambda payload: make_actions("t", "***")).entry(payload, 1)
    assert entry.key == payload_key(payload)
    assert entry.lane == lane_of(payload, 1)
    assert kept(entry) == entry.payload == make_actions("t", "***")


@pytest.mark.parametrize(
    ("redact", "name"),
    [
        (fail, "RuntimeError"),
        (lambda payload: None, "TypeError"),
        (lambda payload: {"title": "a dictionary"}, "TypeError"),
        (lambda payload: ActionsPayload("acme", "s", actions=[SlimAction("\ud800")]), "Unicode"),
        (lambda payload: ActionsPayload("acme", "s", actions=[SlimAction(object())]), "TypeError"),
        (lambda payload: ActionsPayload("acme", "s", actions=None), "TypeError"),
    ],
)
def test_nothing_is_kept_of_a_payload_on_which_redact_fails(make_actions, redact, name, caplog):
    payload = make_actions("s", "PRIVATE")
    entry = Intake(None, redact).entry(payload, 3)
    assert (entry.outcome, entry.payload, entry.body, entry.size) == ("dead", None, None, 0)
    assert entry.error is not None
    assert entry.error.startswith(f"redact failed: {name}")
    assert (entry.seq, entry.key) == (3, payload_key(payload))
    assert "PRIVATE" not in caplog.text
    assert "SECRET" not in caplog.text


# -- email addresses --------------------------------------------------------------------------


def test_addresses_are_kept_only_when_asked_for():
    payload = with_addresses()
    for include in (False, True):
        entry = Intake(None, None, include_email=include).entry(payload, 1)
        expected = "ann@acme.test" if include else None
        for found in (entry.payload, kept(entry)):
            assert (found.email, found.actions[0].email) == (expected, expected)
            assert (found.user_id, [action.title for action in found.actions]) == (
                "ann",
                ["a", "b"],
            )
        assert entry.key == payload_key(payload)
    assert payload.actions[0].email == "ann@acme.test"  # other callbacks share the object


def test_an_address_on_the_payload_alone_is_left_out_too(make_actions):
    payload = msgspec.structs.replace(make_actions("s", "a"), email="ann@acme.test")
    assert kept(Intake(None, None).entry(payload, 1)).email is None


def test_redact_sees_addresses_and_cannot_bring_one_in():
    seen = []

    def redact(payload):
        seen.append(payload.email)
        return msgspec.structs.replace(payload, email="other@acme.test")

    entry = Intake(None, redact).entry(with_addresses(), 1)
    assert seen == ["ann@acme.test"]
    assert kept(entry).email is None


# -- invalid text -----------------------------------------------------------------------------


def test_lone_surrogates_are_replaced_and_not_lost():
    payload = ActionsPayload("acme", "s", actions=[SlimAction("half \ud800", "b", "", 0, "c", 1.0)])
    entry = Intake(None, None).entry(payload, 1)
    assert entry.outcome == "accepted"
    title = kept(entry).actions[0].title
    assert title.startswith("half ")
    title.encode()
    assert Intake(None, None).entry(payload, 2).key == entry.key  # a second delivery is a duplicate


# -- another client's classes -----------------------------------------------------------------


@dataclasses.dataclass
class Theirs:
    product_id: str
    session_id: str
    summary: str


def test_what_has_the_same_fields_is_taken():
    ours = SummaryPayload("acme", "s", "Did a.")
    assert own(ours, SummaryPayload) is ours
    assert own(Theirs("acme", "s", "Did a."), SummaryPayload) == ours
    assert (
        own({"product_id": "acme", "session_id": "s", "summary": "Did a."}, SummaryPayload) == ours
    )


@pytest.mark.parametrize("other", [5, None, "text", Theirs, ChatTurn("acme", "s", question="?")])
def test_anything_else_is_refused(other):
    with pytest.raises(TypeError, match="expected a SummaryPayload or an object with its fields"):
        own(other, SummaryPayload)


def test_what_the_built_in_redactor_removes_cannot_be_guessed_from_the_key(make_actions):
    pytest.importorskip("phonenumbers")
    rule = redaction_rule("pii")
    one, other = (
        Intake(None, rule).entry(make_actions("s", f"wrote to {name}@acme.test"), 1)
        for name in ("ann", "bob")
    )
    assert one.key == other.key
    assert one.key == Intake(None, rule).entry(one.payload, 1).key
    both = redaction_rule([lambda payload: payload, "pii"])
    assert Intake(None, both).entry(make_actions("s", "wrote to ann@acme.test"), 1).key == one.key
    before = Intake(None, lambda payload: make_actions("s", "***"))
    keys = {before.entry(make_actions("s", name), 1).key for name in ("ann", "bob")}
    assert len(keys) == 2

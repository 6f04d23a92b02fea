"""A payload as a message, and back."""

import pytest

from autoplay_rag import ActionsPayload, ChatTurn, SlimAction, SummaryPayload
from autoplay_rag.errors import DecodeError, UnknownPayloadError
from autoplay_rag.kafka.messages import message_of, payload_of

ACTION = SlimAction("Export", "User clicked Export", "https://app.test/r", 2, "click", 1.0, 2.0)


@pytest.mark.parametrize(
    "payload",
    [
        ActionsPayload("acme", "s1", "u1", "a@b.test", [ACTION], 1, 3.0, "c1"),
        SummaryPayload("acme", "s1", "Exported a report.", 3, 1.0),
        ChatTurn("acme", "s1", "u1", "c1", "How?", "So."),
    ],
)
def test_a_message_carries_its_payload(payload):
    message = message_of(payload)
    assert message.key == b"acme/s1"
    assert dict(message.headers)["type"] == payload.kind.encode()
    assert payload_of(message.value) == payload


def test_without_a_session_there_is_no_key():
    assert message_of(ActionsPayload("acme", None, "u1", None, [ACTION], 1, 3.0)).key is None


def test_a_lone_surrogate_does_not_lose_the_payload():
    message = message_of(SummaryPayload("acme", "s\ud800", "Broken \ud800 text.", 0, 1.0))
    assert payload_of(message.value).summary.startswith("Broken ")


@pytest.mark.parametrize("value", [None, b"", b"hello", b"[1]", b"\xff"])
def test_what_is_no_payload_is_refused(value):
    with pytest.raises(DecodeError):
        payload_of(value)


def test_an_unknown_type_is_named():
    with pytest.raises(UnknownPayloadError):
        payload_of(b'{"type": "video"}')

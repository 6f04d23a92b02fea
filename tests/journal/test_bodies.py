"""Payload bodies: small, unchanged after a round trip, and None if damaged."""

from __future__ import annotations

from hashlib import blake2b

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag.journal import bodies
from autoplay_rag.journal.bodies import decoded, pack, unpack
from autoplay_rag.payloads import ActionsPayload, ChatTurn, SlimAction, SummaryPayload

USUAL = ActionsPayload(
    "acme",
    "3f9f6c3e-4a6e-4a51-9a43-3d1c0f2b7a10",
    "user-4711",
    actions=[
        SlimAction(
            title,
            f'User clicked the "{title}" button',
            f"https://app.example.com/{title.lower()}/:id",
            i,
            "click",
            1712345600.0 + i,
            1712345601.0 + i,
            f"https://app.example.com/{title.lower()}/42",
        )
        for i, title in enumerate(("Billing", "Invoices", "Export"))
    ],
    count=3,
    forwarded_at=1712345610.0,
)


def body_of(payload):
    return msgspec.json.encode(payload)


@pytest.mark.parametrize(
    "payload",
    [
        USUAL,
        SummaryPayload("acme", "s1", "Exported a report.", 3, 5.0),
        ChatTurn("acme", "s1", question="How do I export \0 a report?", answer="\U0001f600"),
        SummaryPayload("", "", "x" * 8_000_000, 1, 5.0),
    ],
    ids=lambda payload: payload.kind,
)
def test_a_payload_is_the_same_again(payload):
    packed = pack(body_of(payload))
    assert unpack(packed) == body_of(payload)
    assert decoded(unpack(packed)) == payload


@given(st.binary(max_size=5000))
def test_any_bytes_are_the_same_again(data):
    assert unpack(pack(data)) == data


def test_a_usual_payload_takes_less_than_a_third():
    assert len(pack(body_of(USUAL))) < len(body_of(USUAL)) / 3


def test_the_dictionary_is_part_of_the_format():
    """Another dictionary cannot read existing files: it needs another `SCHEMA_VERSION`."""
    digest = blake2b(bodies._DICTIONARY, digest_size=16).hexdigest()
    assert digest == "284ba7ad164639127da17139a70b9130"
    assert decoded(
        unpack(bytes.fromhex("0123541f2726e78232188aab8a0d516ae580c4cc1450e822d5c8e821630aacf901"))
    ) == SummaryPayload("acme", "s1", "Paid.", 1, 5.0)


def test_where_nothing_was_kept_there_is_nothing():
    assert unpack(None) is None
    assert decoded(None) is None
    assert decoded(b"") is None


@pytest.mark.parametrize("kept", [0, 1, 10, -1])
def test_a_body_that_was_cut_off_is_damaged(kept):
    assert unpack(pack(body_of(USUAL))[:kept]) is None


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_flipped_byte_raises_nothing(at, flip):
    packed = bytearray(pack(body_of(USUAL)))
    packed[at % len(packed)] ^= flip
    # The content of a damaged payload is unknown; its type is not.
    assert isinstance(decoded(unpack(bytes(packed))), ActionsPayload | None)


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"type":"unknown"}', b"\xff\xfe"])
def test_what_is_not_a_payload_is_damaged(body):
    assert decoded(body) is None

"""Whatever a body holds: no crash, and one bad event costs itself alone."""

import contextlib
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag.content.keys import payload_key
from autoplay_rag.content.render import render
from autoplay_rag.errors import DecodeError
from autoplay_rag.sources import from_amplitude, from_posthog, from_segment

READ = {"posthog": from_posthog, "amplitude": from_amplitude, "segment": from_segment}
NAMES = st.sampled_from(
    [
        "event",
        "properties",
        "distinct_id",
        "timestamp",
        "uuid",
        "$session_id",
        "$device_id",
        "$current_url",
        "$elements",
        "$el_text",
        "$event_type",
        "elements_chain",
        "elements",
        "person",
        "offset",
        "sent_at",
        "now",
        "batch",
        "results",
        "title",
        "event_type",
        "event_properties",
        "user_properties",
        "user_id",
        "device_id",
        "session_id",
        "event_time",
        "time",
        "insert_id",
        "events",
        "type",
        "userId",
        "anonymousId",
        "context",
        "page",
        "traits",
        "messageId",
        "originalTimestamp",
        "sentAt",
        "receivedAt",
        "url",
        "name",
        "attributes",
        "tag_name",
        "text",
    ]
)
TEXTS = st.one_of(
    st.text(),
    st.sampled_from(
        [
            "$pageview",
            "$autocapture",
            "$exception",
            "[Amplitude] Element Clicked",
            "track",
            "page",
            "click",
            "submit",
            "2026-03-03T08:01:14.807Z",
            "9999-12-31T23:59:59-14:00",
            "1e400",
            '{"a": "b"}',
            "[[[",
            'a.b:text="\\',
            "https://[::1",
            "\ud800",
        ]
    ),
)
NUMBERS = st.one_of(st.integers(), st.floats(), st.integers(10**20, 10**30))
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=8),
    max_leaves=25,
)
GOOD = {
    "posthog": {"event": "good", "distinct_id": "u", "properties": {"$session_id": "s"}},
    "amplitude": {"event_type": "good", "user_id": "u", "device_id": "d", "session_id": 7},
    "segment": {"type": "track", "event": "good", "userId": "u", "context": {"sessionId": 7}},
}


@pytest.mark.parametrize("tool", READ)
@given(bad=st.lists(VALUES, max_size=4), after=st.lists(VALUES, max_size=2))
def test_the_good_event_among_any_others_is_read(tool, bad, after):
    body = json.dumps([*bad, GOOD[tool], *after]).encode()
    payloads = READ[tool](body, product_id="acme", now=1772524874.0)
    assert 'User triggered "good"' in [one.actions[0].description for one in payloads]
    again = READ[tool](body, product_id="acme", now=1772524874.0)
    assert list(map(payload_key, payloads)) == list(map(payload_key, again))
    for payload in payloads:
        msgspec.json.encode(payload)
        assert render([payload])
        description = payload.actions[0].description
        assert description.replace("\u200c", "").replace("\u200d", "").isprintable()


@pytest.mark.parametrize("tool", READ)
@given(body=st.binary() | st.text() | VALUES.filter(lambda value: isinstance(value, dict | list)))
def test_any_body_is_read_or_refused(tool, body):
    with contextlib.suppress(DecodeError):
        for payload in READ[tool](body):
            assert payload.actions

"""The events of Segment and RudderStack as payloads."""

import json

import pytest

from autoplay_rag.content.keys import payload_key
from autoplay_rag.sources import DeviceSessions, from_segment
from autoplay_rag.sources.segment import segment_events

MOMENT = 1772524874.807
AT = "2026-03-03T08:01:14.807Z"
PAGE = {"url": "https://app.acme.test/reports/8812", "title": "Weekly revenue"}


def call(kind="track", /, **fields):
    return {
        "type": kind,
        "anonymousId": "a1",
        "userId": "u1",
        "timestamp": AT,
        "context": {"page": PAGE, **fields.pop("context", {})},
        **({"event": "Report Exported"} if kind == "track" else {}),
        **fields,
    }


def said(body):
    return [action.description for one in from_segment(body) for action in one.actions]


def test_a_call_of_the_webhook():
    sent = call(
        messageId="m1",
        properties={"format": "CSV"},
        context={"traits": {"email": "ann@acme.test"}},
        receivedAt="2026-03-03T08:01:16.000Z",
    )
    (payload,) = from_segment(json.dumps(sent).encode(), product_id="acme")
    (action,) = payload.actions
    assert (payload.user_id, payload.email) == ("u1", "ann@acme.test")
    assert action.description == 'User triggered "Report Exported" (format: CSV)'
    assert action.canonical_url == "https://app.acme.test/reports/:id"
    assert (action.timestamp_start, payload.forwarded_at) == (MOMENT, MOMENT + 1.193)
    assert payload.session_id.startswith("cut_")


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (call("page"), 'visited the "Weekly revenue" page'),
        (call("page", name="Home", context={"page": {}}), 'visited the "Home" page'),
        (call("Page"), 'visited the "Weekly revenue" page'),
        (call("screen", name="Basket"), 'visited the "Basket" screen'),
        (call(event="Page Viewed"), 'visited the "Weekly revenue" page'),
        (call(event="Button Clicked", properties={"text": "Export"}), 'clicked the "Export" button'),
        (call(event="clicked_link", properties={"label": "Home"}), 'clicked the "Home" link'),
        (call(event="Button Clicked"), 'triggered "Button Clicked"'),
        (call(event="Form Submitted", properties={"form_name": "Sign in"}), 'submitted the "Sign in" form'),
        (call(event="Error Shown", properties={"message": "No rows"}), 'saw the message "No rows"'),
        (call(event="orderCompleted", properties={"total": 12.5, "paid": True, "id": 9}), 'triggered "order completed" (total: 12.5, paid: yes)'),
    ],
)  # fmt: skip
def test_calls_in_words(sent, words):
    assert said(sent) == [f"User {words}"]


def test_batches_and_lists_give_the_same_payloads():
    some = [call(messageId="1"), call("page", messageId="2")]
    forms = [some, {"batch": some, "sentAt": AT, "writeKey": "w"}]
    assert [said(form) for form in forms] == [[said(one)[0] for one in some]] * 2


@pytest.mark.parametrize(
    ("fields", "at"),
    [
        ({"timestamp": "2026-03-03T10:01:14.807+02:00"}, MOMENT),
        # The device's clock is an hour ahead when it sends, six seconds after the event.
        ({"timestamp": None, "originalTimestamp": "2026-03-03T09:01:14.807Z", "sentAt": "2026-03-03T09:01:20Z", "receivedAt": "2026-03-03T08:01:20Z"}, MOMENT),
        ({"timestamp": None, "originalTimestamp": AT}, MOMENT),
        ({"timestamp": None, "receivedAt": AT}, MOMENT),
        ({"timestamp": "2031-03-03T08:01:14Z", "receivedAt": AT}, MOMENT),
        ({"timestamp": []}, 0.0),
    ],
)  # fmt: skip
def test_when_it_was(fields, at):
    (payload,) = from_segment(call(**fields))
    assert payload.actions[0].timestamp_start == at


def test_what_is_no_action_is_skipped_and_what_cannot_be_read_costs_itself():
    found = segment_events(
        [
            call("identify"),
            call("group"),
            call("alias"),
            "x",
            call("video"),
            call(event=None),
            call(messageId="a"),
            call(messageId="a"),
            call(),
        ]
    )
    assert (len(found.events), found.skipped, found.bad, found.repeated) == (2, 3, 3, 1)


def test_sessions_of_rudderstack_are_its_own():
    one, two, other = from_segment(
        [
            call(context={"sessionId": 1772524000123}),
            call(context={"sessionId": 1772524000123}, userId=None),
            call(context={"sessionId": 1772524000123}, anonymousId="a2"),
        ]
    )
    assert one.session_id == two.session_id != other.session_id
    assert one.session_id.endswith("_1772524000123")


def test_a_session_of_the_plug_in_for_amplitude():
    (payload,) = from_segment(call(integrations={"Actions Amplitude": {"session_id": 17725240}}))
    assert payload.session_id.endswith("_17725240")


def test_signing_in_does_not_end_a_session():
    sessions = DeviceSessions()
    parts = [call(userId=None), call(timestamp="2026-03-03T08:20:00Z")]
    names = {from_segment(part, sessions=sessions)[0].session_id for part in parts}
    assert len(names) == 1


def test_a_retry_in_another_request_is_the_same_payload():
    some = [call(messageId=str(n), timestamp=f"2026-03-03T08:{10 * n}:00Z") for n in range(1, 6)]
    sessions = DeviceSessions()
    at_once = [payload_key(one) for one in from_segment(some, sessions=sessions)]
    again = [payload_key(from_segment(one, sessions=sessions)[0]) for one in some[::-1]]
    assert at_once == again[::-1]

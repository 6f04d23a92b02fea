"""PostHog's events as payloads."""

import json

import pytest

from autoplay_rag.content.keys import payload_key
from autoplay_rag.errors import DecodeError
from autoplay_rag.sources import DeviceSessions, from_posthog
from autoplay_rag.sources.elements import elements_of_chain
from autoplay_rag.sources.posthog import posthog_events

URL = "https://app.acme.test/reports/8812?tab=2"
AT = "2026-03-03T08:01:14.807Z"
MOMENT = 1772524874.807


def event(name="$pageview", /, **fields):
    properties = {"$current_url": URL, "$session_id": "s1", **fields.pop("properties", {})}
    return {
        "event": name,
        "distinct_id": "u1",
        "timestamp": AT,
        "properties": properties,
        **fields,
    }


def clicked(chain, how="click", **properties):
    return event(
        "$autocapture", elements_chain=chain, properties={"$event_type": how, **properties}
    )


def said(body, **options):
    return [action.description for one in from_posthog(body, **options) for action in one.actions]


def test_the_webhook_destination():
    body = {
        "event": {**event(properties={"title": "Weekly revenue"}), "url": "https://posthog/e/1"},
        "person": {"id": "p1", "properties": {"email": "ann@acme.test"}},
    }
    (payload,) = from_posthog(json.dumps(body).encode(), product_id="acme")
    assert payload.to_dict() == {
        "type": "actions",
        "product_id": "acme",
        "session_id": "s1",
        "user_id": "u1",
        "email": "ann@acme.test",
        "count": 1,
        "forwarded_at": MOMENT,
        "conversation_id": None,
        "actions": [
            {
                "title": "Weekly revenue",
                "description": 'User visited the "Weekly revenue" page',
                "canonical_url": "https://app.acme.test/reports/:id",
                "index": 0,
                "type": "pageview",
                "timestamp_start": MOMENT,
                "timestamp_end": MOMENT,
                "raw_url": URL,
                "session_id": "s1",
                "user_id": "u1",
                "email": "ann@acme.test",
                "conversation_id": None,
            }
        ],
    }


@pytest.mark.parametrize(
    "wrap",
    [
        lambda some: {"api_key": "phc_x", "batch": some},
        lambda some: some,
        lambda some: {"next": None, "results": some},
        lambda some: [{"event": one, "person": {}} for one in some],
        lambda some: "\n".join(map(json.dumps, some)).encode() + b"\n",
        lambda some: [{**one, "properties": json.dumps(one["properties"])} for one in some],
        lambda some: {
            "columns": ["*", "event", "person"],
            "results": [[one, one["event"], {"display_name": "Ann"}] for one in some],
        },
    ],
    ids=["batch", "list", "api", "webhooks", "lines", "export", "query"],
)
def test_every_form_of_a_body_gives_the_same_payloads(wrap):
    some = [event(properties={"title": "Reports"}), clicked('button:text="Export"')]
    assert said(wrap(some)) == [
        'User visited the "Reports" page',
        'User clicked the "Export" button',
    ]


@pytest.mark.parametrize(
    ("chain", "how", "words"),
    [
        ('button.btn:nth-child="1"text="Export"', "click", 'clicked the "Export" button'),
        ('span:text="Export";button.btn:attr__type="submit"', "click", 'clicked the "Export" button'),
        ('button:attr__aria-label="Close"text="→"', "click", 'clicked the "Close" button'),
        ('button:attr__id="b"text="Sign \\"now\\" \\ later;a:b=\\"c\\"";body:', "click", 'clicked the "Sign "now" \\ later;a:b="c"" button'),
        ('svg.icon;button:attr__aria-label="Full screen"', "click", 'clicked the "Full screen" button'),
        ('a.hover:underline:attr__href="/r"text="All reports"', "click", 'clicked the "All reports" link'),
        ('div:attr__role="tab"text="People"', "click", 'clicked the "People" tab'),
        ('div.card:text="Weekly"', "click", 'clicked the "Weekly"'),
        ('button:text="Save \\"all\\"; now"', "click", 'clicked the "Save "all"; now" button'),
        ('button:attr__role="switch"text="SSO"', "click", 'switched the "SSO" toggle'),
        ('input:attr__name="work_email"attr__type="email"', "change", 'typed into the "work_email" field'),
        ('select:attr__aria-label="Plan"text="FreePro"', "change", 'selected an option in the "Plan" dropdown'),
        ('input:attr__type="checkbox"attr__name="agree"', "change", 'clicked the "agree" checkbox'),
        ('button:text="Go";form:attr__aria-label="Sign in"', "submit", 'submitted the "Sign in" form'),
        ('input:attr__type="submit"attr__value="Send"', "click", 'clicked the "Send" button'),
        ('input:attr__type="text"attr__value="typed"attr__name="q"', "change", 'typed into the "q" field'),
        ("form.ui:", "submit", "submitted an unlabeled form"),
        ("button:", "click", "clicked an unlabeled button"),
        ("", "click", "clicked an unlabeled element"),
        (';;;::="', "click", "clicked an unlabeled element"),
    ],
)  # fmt: skip
def test_autocapture_in_words(chain, how, words):
    assert said(clicked(chain, how)) == [f"User {words}"]


def test_elements_as_objects_and_the_text_of_the_event():
    elements = [
        {"tag_name": "i", "attr__class": ["icon"]},
        {"tag_name": "button", "$el_text": "Export", "attr__type": "button"},
    ]
    api = [
        {"tag_name": "span", "text": "Export"},
        {"tag_name": "a", "attributes": {"attr__id": "x"}},
    ]
    assert said(
        [
            clicked("", **{"$elements": elements}),
            {**clicked(""), "elements": api},
            clicked("", **{"$el_text": "Export"}),
        ]
    ) == [
        'User clicked the "Export" button',
        'User clicked the "Export" link',
        'User clicked the "Export"',
    ]


def test_other_events_in_words():
    assert said(
        [
            event("$rageclick", elements_chain='button:text="Pay"'),
            event("$dead_click", elements_chain='button:text="Pay"'),
            event("$screen", properties={"$screen_name": "Checkout"}),
            event("$exception", properties={"$exception_list": [{"type": "E", "value": "no x"}]}),
            event("report_exported", properties={"format": "CSV", "user_email": "a@b.test"}),
            event(properties={"title": ""}),
        ]
    ) == [
        'User clicked the "Pay" button again and again',
        'User clicked the "Pay" button, and nothing happened',
        'User visited the "Checkout" screen',
        'User saw the error "no x"',
        'User triggered "report exported" (format: CSV)',
        'User visited the "Reports" page',
    ]


def test_what_is_no_action_is_skipped_and_what_cannot_be_read_costs_itself():
    found = posthog_events(
        [
            event("$identify"),
            event("$pageleave"),
            event("$feature_flag_called"),
            7,
            {"event": 1},
            {},
            event(uuid="a"),
            event(uuid="a"),
            event(uuid="b"),
        ]
    )
    assert (len(found.events), found.skipped, found.bad, found.repeated) == (2, 3, 3, 1)


@pytest.mark.parametrize(
    ("fields", "properties", "user", "device"),
    [
        ({}, {}, "u1", ""),
        ({}, {"$device_id": "d1"}, "u1", "d1"),
        ({"distinct_id": "d1"}, {"$device_id": "d1"}, "", "d1"),
        ({"distinct_id": "d2"}, {"$device_id": "d1", "$is_identified": False}, "", "d1"),
        ({"distinct_id": "x"}, {"$process_person_profile": False}, "", "x"),
        ({"distinct_id": "x"}, {"$user_id": "u7"}, "u7", ""),
        ({"distinct_id": 17}, {}, "17", ""),
        ({"distinct_id": None}, {"distinct_id": "u3"}, "u3", ""),
        ({"distinct_id": {"$ne": 1}}, {}, "", ""),
        ({"distinct_id": "undefined"}, {}, "", ""),
    ],
)
def test_who_it_is(fields, properties, user, device):
    (found,) = posthog_events(event(properties=properties, **fields)).events
    assert (found.user_id, found.device) == (user, device)


@pytest.mark.parametrize(
    ("fields", "envelope", "at"),
    [
        ({"timestamp": "2026-03-03T10:01:14.807+02:00"}, {}, MOMENT),
        ({"timestamp": "2026-03-03 08:01:14.807"}, {}, MOMENT),
        ({"timestamp": MOMENT * 1000}, {}, MOMENT),
        ({"timestamp": str(int(MOMENT))}, {}, 1772524874.0),
        ({}, {"sent_at": "2026-03-03T08:01:20Z"}, MOMENT),  # no time of the server: as it is
        # The device's clock is an hour behind.
        ({"timestamp": "2026-03-03T07:01:14.807Z", "sent_at": "2026-03-03T07:01:24.807Z", "now": "2026-03-03T08:01:24.807Z"}, {}, MOMENT),
        ({"timestamp": None, "offset": 5193}, {"sent_at": "2026-03-03T08:01:20Z"}, MOMENT),
        ({"timestamp": None}, {}, 0.0),
        ({"timestamp": "1970-01-01T00:00:09Z"}, {}, 0.0),
        ({"timestamp": "soon", "uuid": "019cb2a9-1c57-7cc1-8e0a-5a7c1d1e2f30"}, {}, 1772523953.239),
        ({"timestamp": "2099-01-01T00:00:00Z"}, {}, 0.0),  # after the receipt
    ],
)  # fmt: skip
def test_when_it_was(fields, envelope, at):
    body = {**envelope, "batch": [event(**fields)]}
    (payload,) = from_posthog(body, now=MOMENT + 60)
    assert payload.actions[0].timestamp_start == at


def test_a_retry_in_another_request_is_the_same_payload():
    some = [event(uuid=str(n), timestamp=f"2026-03-03T08:0{n}:00Z") for n in range(9)]
    at_once = {payload_key(one) for one in from_posthog({"batch": some, "sent_at": AT})}
    again = {payload_key(one) for part in some for one in from_posthog({"event": part})}
    assert at_once == again
    assert len(again) == 9


def test_sessions_are_cut_where_there_are_none():
    some = [
        event(
            "opened", timestamp=f"2026-03-03T{hour}:{minute}:00Z", properties={"$session_id": None}
        )
        for hour, minute in (("08", "00"), ("08", "29"), ("09", "10"), ("08", "41"))
    ]
    names = [one.session_id for one in from_posthog(some, product_id="acme")]
    assert len(set(names)) == 1, "08:41 joins them"
    sessions = DeviceSessions()
    one_by_one = [
        from_posthog(part, product_id="acme", sessions=sessions)[0].session_id for part in some
    ]
    assert one_by_one[0] == one_by_one[1] == one_by_one[3] == names[0]
    assert one_by_one[2] != names[0]


@pytest.mark.parametrize("body", [b"", b"no", b"7", b'"text"', b"null", b"[" * 9999, b'{"a": '])
def test_a_body_that_is_no_json_object_or_array_is_refused(body):
    with pytest.raises(DecodeError, match="body"):
        from_posthog(body)


@pytest.mark.parametrize("chain", ['a:b="v"' + "x" * 19_900, "a:b=" + "x" * 19_900, 'a:b="' * 4000])
def test_reading_a_chain_takes_linear_time(chain):
    """A visitor of a website can send any chain: with quadratic time, this takes minutes."""
    assert len(posthog_events([clicked(chain)] * 200).events) == 200


def test_a_chain_is_bounded():
    chain = ";".join(['div:text="x"'] * 10_000)
    assert len(elements_of_chain(chain)) == 8


def test_a_broken_line_costs_itself_alone():
    lines = [json.dumps(event(uuid="a")), '{"event": ', json.dumps(event(uuid="b"))]
    found = posthog_events("\n".join(lines))
    assert (len(found.events), found.bad) == (2, 1)


def test_labels_are_one_line_of_what_is_printed():
    chain = 'button:text="  Save\n\u202eall\u00ad\u0000  \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 "'
    assert said(clicked(chain)) == [
        'User clicked the "Save all \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645" button'
    ]

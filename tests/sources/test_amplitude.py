"""Amplitude's events as payloads."""

import json

import pytest

from autoplay_rag.content.keys import payload_key
from autoplay_rag.sources import from_amplitude
from autoplay_rag.sources.amplitude import amplitude_events

MOMENT = 1772524874.807
URL = "https://app.acme.test/team/u_044"


def event(name="[Amplitude] Page Viewed", /, **fields):
    properties = {"[Amplitude] Page URL": URL, **fields.pop("properties", {})}
    return {
        "event_type": name,
        "user_id": "u1",
        "device_id": "d1",
        "session_id": 1772524000000,
        "event_time": "2026-03-03 08:01:14.807000",
        "event_properties": properties,
        **fields,
    }


def own(**properties):
    return {f"[Amplitude] {name.replace('_', ' ')}": value for name, value in properties.items()}


def said(body):
    return [action.description for one in from_amplitude(body) for action in one.actions]


def test_one_event_of_the_export():
    exported = event(
        **{"$insert_id": "i1", "server_received_time": "2026-03-03 08:01:16.000000"},
        user_properties={"email": "ann@acme.test"},
        properties=own(Page_Title="Ann"),
    )
    (payload,) = from_amplitude(json.dumps(exported).encode(), product_id="acme")
    (action,) = payload.actions
    assert payload.session_id.startswith("amp_")
    assert payload.session_id.endswith("_1772524000000")
    assert (payload.product_id, payload.user_id, payload.email) == ("acme", "u1", "ann@acme.test")
    assert payload.forwarded_at == MOMENT + 1.193
    assert action.timestamp_start == MOMENT
    assert (action.type, action.title) == ("pageview", "Ann")
    assert action.canonical_url == "https://app.acme.test/team/:id"


@pytest.mark.parametrize(
    "wrap", [lambda some: {"api_key": "k", "events": some}, lambda some: some], ids=["api", "list"]
)
def test_every_form_of_a_body_gives_the_same_payloads(wrap):
    some = [event(), event("Checkout", properties={"plan": "pro"})]
    assert said(wrap(some)) == [
        'User visited the "Team" page',
        'User triggered "Checkout" (plan: pro)',
    ]


@pytest.mark.parametrize(
    ("name", "properties", "words"),
    [
        ("Element Clicked", own(Element_Tag="button", Element_Text="Export"), 'clicked the "Export" button'),
        ("Element Clicked", own(Element_Tag="A", Element_Aria_Label="Home"), 'clicked the "Home" link'),
        ("Element Clicked", own(Element_Tag="div", Element_Text="People", Element_Attributes={"role": "tab"}), 'clicked the "People" tab'),
        ("Element Changed", own(Element_Tag="input", Element_Text="secret", Element_Attributes={"name": "q"}), 'typed into the "q" field'),
        ("Element Changed", own(Element_Tag="select", Element_Aria_Label="Plan"), 'selected an option in the "Plan" dropdown'),
        ("Form Submitted", own(Form_ID="login"), 'submitted the "login" form'),
        ("Form Started", {"[Amplitude] Form Name": "Sign up"}, 'started to fill in the "Sign up" form'),
        ("Element Clicked", own(Element_Tag="button", Element_Text="→", Element_Aria_Label="Close"), 'clicked the "Close" button'),
        ("Element Clicked", own(Element_Tag="input", Element_ID="agree", Element_Hierarchy=[{"tag": "input", "attrs": {"type": "checkbox"}}, {"tag": "form", "attrs": {"name": "f"}}]), 'clicked the "agree" checkbox'),
        ("Element Changed", own(Element_Tag="input", Element_ID="cv", Element_Hierarchy=[{"tag": "input", "attrs": {"type": "file"}}]), 'chose a file in the "cv" file field'),
        ("Rage Click", own(Element_Tag="button", Element_Text="Pay"), 'clicked the "Pay" button again and again'),
        ("Dead Click", own(Element_Tag="button", Element_Text="Pay"), 'clicked the "Pay" button, and nothing happened'),
        ("Screen Viewed", own(Screen_Name="Basket"), 'visited the "Basket" screen'),
        ("File Downloaded", {"file_extension": "pdf"}, 'triggered "File Downloaded" (file extension: pdf)'),
    ],
)  # fmt: skip
def test_autocapture_in_words(name, properties, words):
    assert said(event(f"[Amplitude] {name}", properties=properties)) == [f"User {words}"]


@pytest.mark.parametrize(
    ("name", "properties", "words"),
    [
        ("Viewed /wcr Page", {"name": "/wcr", "path": "/wcr", "title": "Dashboard", "url": "https://a.test/wcr"}, 'visited the "Dashboard" page'),
        ("Viewed /login Page", {"name": "/login", "path": "/login", "url": "https://a.test/login"}, 'visited the "Login" page'),
        ("Loaded a Page", {"path": "/", "title": "Start"}, 'visited the "Start" page'),
        ("Viewed Cart Screen", {"name": "Cart"}, 'visited the "Cart" screen'),
        ("Viewed the Error Page", {"code": 7}, 'triggered "Viewed the Error Page" (code: 7)'),
    ],
)  # fmt: skip
def test_calls_that_segment_passed_on(name, properties, words):
    assert said([{**event(name), "event_properties": properties}]) == [f"User {words}"]


@pytest.mark.parametrize(
    ("fields", "at"),
    [
        ({"event_time": "2026-03-03T08:01:14.807Z"}, MOMENT),
        ({"event_time": None, "time": int(MOMENT * 1000)}, MOMENT),
        # The device's clock is a day ahead.
        ({"event_time": None, "client_event_time": "2026-03-04 08:01:14.807", "client_upload_time": "2026-03-04 08:01:20", "server_received_time": "2026-03-03 08:01:20"}, MOMENT),
        ({"event_time": None, "client_event_time": "2026-03-03 08:01:14.807"}, MOMENT),
        # Later than Amplitude received it: the receipt counts.
        ({"event_time": "2031-03-03 08:01:14", "server_received_time": "2026-03-03 08:01:14.807"}, MOMENT),
        ({"event_time": "", "server_upload_time": "2026-03-03 08:01:14.807"}, MOMENT),
        ({"event_time": None}, 0.0),
    ],
)  # fmt: skip
def test_when_it_was(fields, at):
    (payload,) = from_amplitude(event(**fields))
    assert payload.actions[0].timestamp_start == at


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ({"event_type": "page_view", "event_properties": {"page": "/dashboard"}}, 'visited the "Dashboard" page'),
        ({"event_type": "USER_OPENED_APP"}, 'triggered "user opened app"'),
        ({"event_type": "app.reportOpened", "event_properties": '{"0": "x", "kind": "weekly"}'}, 'triggered "app report opened" (kind: weekly)'),
    ],
)  # fmt: skip
def test_events_of_ones_own_in_words(sent, words):
    assert said(sent) == [f"User {words}"]


def test_what_is_no_action_is_skipped_and_what_cannot_be_read_costs_itself():
    found = amplitude_events(
        [
            event("session_start"),
            event("$identify"),
            {"user_id": "u", "user_properties": {}},
            None,
            {"event_type": 3},
            event(insert_id="a"),
            event(insert_id="a"),
            event(),
        ]
    )
    assert (len(found.events), found.skipped, found.bad, found.repeated) == (2, 3, 2, 1)


def test_events_outside_of_sessions_are_cut():
    outside = [event("a", session_id=-1), event("b", session_id=None), event("c")]
    names = [one.session_id for one in from_amplitude(outside)]
    assert names[0] == names[1]
    assert names[0].startswith("cut_")
    assert names[2].startswith("amp_")


def test_a_device_that_signs_in_keeps_its_session():
    anonymous, known = from_amplitude([event(user_id=None), event()])
    assert anonymous.session_id == known.session_id
    assert (anonymous.user_id, known.user_id) == (None, "u1")
    other = from_amplitude(event(device_id="d2"))[0]
    assert other.session_id != known.session_id, "two devices may start in the same millisecond"


def test_the_export_of_what_the_webhook_sent_is_the_same_payload():
    sent = event()
    exported = {**sent, "uuid": "x", "processed_time": "2026-03-04 00:00:00", "amplitude_id": 1}
    assert payload_key(from_amplitude(sent)[0]) == payload_key(from_amplitude([exported])[0])

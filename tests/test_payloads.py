import copy
import dataclasses
import json
import math
import pickle
import pprint

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import autoplay_rag.payloads
from autoplay_rag.decoding import decode
from autoplay_rag.errors import AutoplayError, DecodeError, UnknownPayloadError
from autoplay_rag.live import LiveSessions
from autoplay_rag.payloads import ActionsPayload, ChatTurn, SlimAction, SummaryPayload

text = st.text(st.characters(exclude_categories=["Cs"]))
number = st.floats(allow_nan=False, allow_infinity=False)
whole = st.integers(-(2**63), 2**63 - 1)
maybe = st.none() | text

actions = st.builds(
    SlimAction,
    title=text,
    description=text,
    canonical_url=text,
    index=whole,
    type=text,
    timestamp_start=number,
    timestamp_end=number,
    raw_url=text,
    session_id=maybe,
    user_id=maybe,
    email=maybe,
    conversation_id=maybe,
)
batches = st.builds(
    ActionsPayload,
    product_id=text,
    session_id=maybe,
    user_id=maybe,
    email=maybe,
    actions=st.lists(actions, max_size=4),
    forwarded_at=number,
    conversation_id=maybe,
).map(lambda payload: msgspec.structs.replace(payload, count=len(payload.actions)))
summaries = st.builds(
    SummaryPayload,
    product_id=text,
    session_id=maybe,
    summary=text,
    replaces=whole,
    forwarded_at=number,
)
turns = st.builds(
    ChatTurn,
    product_id=text,
    session_id=maybe,
    user_id=maybe,
    conversation_id=maybe,
    question=text,
    answer=text,
    tools=st.lists(text, max_size=3),
    forwarded_at=number,
)
payloads = batches | summaries | turns

# JSON of any shape, including known names with values of the wrong type.
leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
names = st.sampled_from(
    ["type", "session_id", "actions", "count", "forwarded_at", "summary", "replaces", "title"]
)
value = st.recursive(
    leaf,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(names | st.text(), inner, max_size=4)
    ),
    max_leaves=20,
)


def repairs(data):
    """Decode a payload; return it and the repairs that were made."""
    given_up = []
    return decode(data, on_repair=given_up.append), given_up


@given(payloads)
def test_what_is_written_is_read_again(payload):
    written = json.dumps(payload.to_dict())
    assert repairs(written) == (payload, [])
    assert repairs(written.encode()) == (payload, [])
    assert type(payload).from_dict(payload.to_dict()) == payload
    assert payload.to_dict()["type"] == payload.kind


def test_decode_is_found_beside_the_types_too():
    assert autoplay_rag.payloads.decode is decode
    assert "decode" in dir(autoplay_rag.payloads)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = autoplay_rag.payloads.nothing


@given(payloads)
def test_the_tolerant_way_reads_what_the_strict_one_does(payload):
    # A wrong type in an unrelated field makes the strict decoder fail.
    spoilt = payload.to_dict() | {"forwarded_at": "soon"}
    found, given_up = repairs(json.dumps(spoilt))
    assert found == msgspec.structs.replace(payload, forwarded_at=0.0)
    assert given_up == ["forwarded_at: a number was expected, not a string"]


@given(value)
def test_any_json_is_a_payload_or_a_decode_error(found):
    try:
        payload = decode(json.dumps(found))
    except DecodeError:
        return
    # Every payload can be written and then read by the strict decoder.
    assert repairs(msgspec.json.encode(payload)) == (payload, [])
    payload.to_text().encode()


@given(
    st.dictionaries(names | st.text(), value, max_size=6),
    st.sampled_from(["actions", "summary", "chat"]),
)
def test_an_object_of_a_known_type_is_never_refused(fields, kind):
    payload = decode(json.dumps(fields | {"type": kind}))
    assert payload.kind == kind
    assert repairs(msgspec.json.encode(payload)) == (payload, [])


@given(st.binary() | st.text())
def test_other_bytes_are_a_decode_error(data):
    with pytest.raises(DecodeError) as caught:
        decode(data)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, AutoplayError)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[1]", b"null", b"NaN", b"\xff", b'"actions"', b"[" * 10**5]
)
def test_no_json_object_is_a_decode_error(data):
    with pytest.raises(DecodeError) as caught:
        decode(data)
    assert not isinstance(caught.value, UnknownPayloadError)


@pytest.mark.parametrize(
    ("data", "type_"),
    [
        ('{"type": "usertour_trigger", "x": 1}', "usertour_trigger"),
        ('{"type": 7}', "number"),
        ("{}", ""),
    ],
)
def test_an_unknown_type_is_named(data, type_):
    with pytest.raises(UnknownPayloadError) as caught:
        decode(data)
    assert caught.value.type == type_


def test_missing_and_null_become_the_documented_defaults():
    nulls = dict.fromkeys(SlimAction.__struct_fields__)
    for action in ({}, nulls):
        (found,) = decode(json.dumps({"type": "actions", "actions": [action]})).actions
        assert found == SlimAction()
        assert (found.title, found.index, found.timestamp_start) == ("", 0, 0.0)
        assert found.session_id is found.user_id is found.email is found.conversation_id is None
    assert decode('{"type": "actions", "actions": null}') == ActionsPayload()
    assert decode('{"type": "summary", "summary": null}') == SummaryPayload()


def test_a_null_is_no_repair():
    assert repairs('{"type": "actions", "product_id": null, "actions": [{"title": null}]}')[1] == []


def test_unknown_fields_are_left_out_without_complaint():
    payload, given_up = repairs('{"type": "actions", "new": 1, "actions": [{"newer": 2}]}')
    assert payload == ActionsPayload(actions=[SlimAction()], count=1)
    assert given_up == []


@pytest.mark.parametrize("count", [0, 7, -1, "3", None, 2.5])
def test_a_wrong_count_is_corrected(count):
    data = json.dumps({"type": "actions", "actions": [{}, {}], "count": count})
    assert decode(data).count == 2


def test_a_wrong_type_costs_itself_or_its_action():
    payload, given_up = repairs(
        json.dumps(
            {
                "type": "actions",
                "session_id": "s1",
                "user_id": [7],
                "actions": [
                    {"title": 5, "type": "click", "index": "0"},
                    "no action",
                    {"title": "b"},
                ],
            }
        )
    )
    assert payload.session_id == "s1"
    assert payload.user_id is None
    assert payload.actions == [SlimAction(type="click"), SlimAction("b")]
    assert payload.count == 2
    assert sorted(line.partition(":")[0] for line in given_up) == [
        "actions[0].index",
        "actions[0].title",
        "actions[1]",
        "user_id",
    ]


@pytest.mark.parametrize("spoilt", [{}, {"forwarded_at": "soon"}])
@pytest.mark.parametrize("kind", ["actions", "summary", "chat"])
def test_an_empty_identity_is_none(kind, spoilt):
    names = ["session_id", "user_id", "email", "conversation_id"]
    found = dict.fromkeys(names, "") | {"type": kind} | spoilt
    cls = type(decode(json.dumps({"type": kind})))
    for payload in (decode(json.dumps(found)), cls.from_dict(found)):
        assert [getattr(payload, name, None) for name in names] == [None] * 4
    # Each one separately: the others keep their values.
    for name in set(names) & set(cls.__struct_fields__):
        payload = decode(json.dumps({"type": kind} | dict.fromkeys(names, "x") | {name: ""}))
        assert getattr(payload, name) is None
        others = set(names) & set(cls.__struct_fields__) - {name}
        assert {getattr(payload, other) for other in others} <= {"x"}


@given(payloads | actions)
def test_the_functions_for_dataclasses_take_them(payload):
    cls = type(payload)
    assert dataclasses.is_dataclass(payload)
    assert dataclasses.is_dataclass(cls)
    names = [field.name for field in dataclasses.fields(payload)]
    assert tuple(names) == cls.__struct_fields__
    found = dataclasses.asdict(payload)
    assert list(found) == names
    assert cls.from_dict(found) == payload
    assert cls(*dataclasses.astuple(payload)) == payload or isinstance(payload, ActionsPayload)
    changed = dataclasses.replace(payload, session_id="other")
    assert type(changed) is cls
    assert changed == msgspec.structs.replace(payload, session_id="other")


def test_as_dataclasses_they_stay_what_they_were():
    payload = ActionsPayload("acme", "s1", actions=[SlimAction("Home")], count=1)
    assert pickle.loads(pickle.dumps(payload)) == copy.deepcopy(payload) == payload
    assert repr(payload).startswith("ActionsPayload(product_id='acme'")
    assert ActionsPayload.__doc__.startswith("A batch of actions")
    assert decode(msgspec.json.encode(payload)) == payload
    assert msgspec.to_builtins(payload) == payload.to_dict()
    assert msgspec.convert(payload.to_dict(), ActionsPayload) == payload
    pprint.pformat(payload)
    match payload:
        case ActionsPayload(product, session):
            assert (product, session) == ("acme", "s1")


def test_merge_passes_over_an_empty_identity():
    first = ActionsPayload(session_id="s1")
    first.user_id = ""
    merged = ActionsPayload.merge([first, ActionsPayload(session_id="s1", user_id="u1")])
    assert merged.user_id == "u1"


def test_a_wrong_count_is_corrected_when_a_payload_is_made():
    assert ActionsPayload("acme", "s1", None, None, [SlimAction("Home")], 0, 1.0).count == 1
    assert ActionsPayload(count=3).count == 0


NAMED = ["product_id", "session_id", "user_id", "conversation_id"]


def test_an_id_that_is_a_number_is_read_as_text_and_reported():
    numbers = dict.fromkeys(NAMED, 42)
    payload, told = repairs(json.dumps({"type": "actions", "actions": [numbers], **numbers}))
    assert [getattr(payload, name) for name in NAMED] == ["42"] * 4
    assert payload.actions[0].user_id == payload.actions[0].session_id == "42"
    assert len(told) == 7
    assert "session_id: a number was read as a string" in told
    assert not any("42" in line for line in told)
    assert ActionsPayload.from_dict(numbers).user_id == "42"
    assert decode('{"type": "summary", "session_id": 0}').session_id == "0"
    sessions = LiveSessions()
    sessions.add(payload)
    assert len(sessions) == 1


@pytest.mark.parametrize("value", ["true", "4.5", "[42]", "9" * 5000])
def test_a_number_that_is_not_whole_is_not_an_id(value):
    payload, told = repairs(f'{{"type": "actions", "user_id": {value}, "email": 7}}')
    assert (payload.user_id, payload.email) == (None, None)
    assert len(told) == 2


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("1e3", 1000),
        ("7.0", 7),
        ("7.5", 0),
        ("true", 0),
        ("NaN", 0),
        ("Infinity", 0),
        ("1e400", 0),
        (str(2**63 - 1), 2**63 - 1),
        (str(2**63), 0),
        (str(-(2**63)), -(2**63)),
        ("9" * 5000, 0),
        ("-" + "9" * 5000, 0),
    ],
)
def test_whole_numbers(value, found):
    assert decode(f'{{"type": "summary", "replaces": {value}}}').replaces == found


def test_a_whole_number_near_the_limit_stays_exact_in_the_tolerant_way():
    data = '{"type": "summary", "summary": 7, "replaces": 9223372036854775296}'
    assert decode(data).replaces == 9223372036854775296


@pytest.mark.parametrize(
    ("value", "found"), [("1", 1.0), ("NaN", 0.0), ("-Infinity", 0.0), ("1e400", 0.0)]
)
def test_times_are_finite(value, found):
    forwarded_at = decode(f'{{"type": "summary", "forwarded_at": {value}}}').forwarded_at
    assert forwarded_at == found
    assert math.isfinite(forwarded_at)


def test_a_lone_surrogate_is_replaced_and_reported():
    payload, given_up = repairs(
        '{"type": "summary", "summary": "a\\ud800b", "session_id": "\\udfff"}'
    )
    assert payload.summary.encode() == "a\ufffdb".encode()
    assert len(given_up) == 2
    assert decode('{"type": "summary", "summary": "\\ud83d\\ude00"}').summary == "\U0001f600"


def test_the_report_of_a_repair_never_has_the_value():
    for data in (
        '{"type": "summary", "summary": ["secret"], "replaces": "secret"}',
        '{"type": "actions", "actions": ["secret", {"title": {"secret": 1}}]}',
    ):
        assert "secret" not in "".join(repairs(data)[1])


def test_of_duplicate_keys_the_last_counts():
    assert decode('{"type": "summary", "summary": "a", "summary": "b"}').summary == "b"


def test_from_dict_takes_mappings_and_says_so():
    with pytest.raises(TypeError, match="mapping, not list"):
        ActionsPayload.from_dict([])
    nested = ActionsPayload.from_dict({"actions": [SlimAction("kept"), {"title": "read"}, 3]})
    assert [action.title for action in nested.actions] == ["kept", "read"]
    assert nested.count == 2


@given(st.dictionaries(st.text(), value))
def test_from_dict_never_fails_for_what_an_object_holds(found):
    for cls in (SlimAction, ActionsPayload, SummaryPayload, ChatTurn):
        assert isinstance(cls.from_dict(found), cls)


# Text forms: users' prompts and stores depend on the exact text.


def test_the_text_of_an_action():
    action = SlimAction("Export", "User clicked Export", "https://a.test/r/:id", 3, "click")
    assert action.to_text() == "[3] click: User clicked Export — https://a.test/r/:id"


def test_the_text_of_a_batch():
    batch = ActionsPayload(session_id="ps_1", actions=[SlimAction(index=0), SlimAction(index=1)])
    assert batch.to_text() == "Session ps_1 — 2 actions\n[0] :  — \n[1] :  — "
    assert ActionsPayload().to_text() == "Session unknown — 0 actions"


def test_the_text_of_a_summary_is_the_summary():
    assert SummaryPayload(summary="The user exported.").to_text() == "The user exported."


# Merging


@given(st.lists(batches, min_size=1, max_size=4))
def test_merge(parts):
    before = [msgspec.json.encode(part) for part in parts]
    merged = ActionsPayload.merge(parts)
    assert [msgspec.json.encode(part) for part in parts] == before
    assert [action.index for action in merged.actions] == list(range(merged.count))
    assert merged.count == sum(part.count for part in parts)
    titles = [action.title for part in parts for action in part.actions]
    assert [action.title for action in merged.actions] == titles
    assert merged.forwarded_at == max(part.forwarded_at for part in parts)
    for name in ("session_id", "user_id", "email", "conversation_id"):
        given_ = [getattr(part, name) for part in parts if getattr(part, name) is not None]
        assert getattr(merged, name) == (given_[0] if given_ else None)


def test_merging_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        ActionsPayload.merge([])


# Notebooks


def test_html_escapes_what_strangers_typed():
    attack = "<script>alert('x')</script>"
    shown = [
        ActionsPayload(
            session_id=attack,
            user_id=attack,
            actions=[SlimAction(attack, attack, attack, 0, attack)],
            forwarded_at=1.0,
        ),
        SummaryPayload(summary=attack, product_id=attack),
        ChatTurn(question=attack, answer=attack, tools=[attack]),
        SlimAction(attack, raw_url=attack),
    ]
    for payload in shown:
        html = payload._repr_html_()
        assert "<script" not in html
        assert "&lt;script&gt;" in html
        assert html.count("<table>") == html.count("</table>") >= 1


def test_html_keeps_line_breaks_and_puts_ids_last():
    payload = ActionsPayload(
        "acme", "s1", "u1", "u@acme.test", [SlimAction("a", "one\ntwo", "https://a.test/r")], 1, 1.0
    )
    html = payload._repr_html_()
    assert "one<br>two" in html
    order = [html.index(text) for text in ("one", "forwarded_at", "acme", "s1", "u1")]
    assert order == sorted(order)
    for text in ("one\r\ntwo", "one\ntwo\n", "one\u2028two"):
        assert "one<br>two" in SummaryPayload(summary=text)._repr_html_()


def test_html_breaks_long_words_but_no_time_and_no_id():
    html = SummaryPayload("acme", "ps_0c39939941ab", "word" * 50, 0, 1772524889.0)._repr_html_()
    cells = html.split("<td style=")
    styles = {text: style for style, _, text in (cell.partition(">") for cell in cells[1:])}
    assert "anywhere" in styles[f"{'word' * 50}</td></tr><tr>"]
    for short in ("ps_0c39939941ab</td></tr>", "2026-03-03 08:01:29 UTC</td></tr><tr>"):
        found = [style for text, style in styles.items() if text.startswith(short)]
        assert found
        assert all("nowrap" in style and "anywhere" not in style for style in found)


@given(payloads)
def test_any_payload_can_be_shown(payload):
    assert payload._repr_html_().startswith("<table>")


@pytest.mark.parametrize(
    ("given_time", "seconds"),
    [
        ("2024-04-05T19:34:38.900Z", 1712345678.9),
        ("2024-04-05T19:34:38.900+00:00", 1712345678.9),
        ("2024-04-05T21:34:38.9+02:00", 1712345678.9),
        ("2024-04-05T19:34:38", 1712345678.0),
        ("2024-04-05 19:34:38Z", 1712345678.0),
        ("20240405T193438Z", 1712345678.0),
        (" 2024-04-05 ", 1712275200.0),
        ("1712345678.9", 1712345678.9),
        ("1712345678", 1712345678.0),
        ("-5", -5.0),
    ],
)
def test_times_that_are_text_are_read_and_reported(given_time, seconds):
    body = {
        "type": "actions",
        "actions": [{"title": "x", "timestamp_start": given_time, "timestamp_end": given_time}],
        "forwarded_at": given_time,
    }
    found, repaired = repairs(json.dumps(body))
    assert [action.timestamp_start for action in found.actions] == pytest.approx([seconds])
    assert found.forwarded_at == found.actions[0].timestamp_end == pytest.approx(seconds)
    assert len(repaired) == 3
    assert given_time not in str(repaired)
    assert ActionsPayload.from_dict(body) == found


@pytest.mark.parametrize(
    "given_time",
    [
        "",
        "soon",
        "NaN",
        "inf",
        "1e400",
        "12:30",
        "9" * 400,
        "2024-13-01",
        "0000-00-00",
        "1_000",
        "٣",
    ],
)
def test_text_that_is_not_a_time_is_dropped(given_time):
    found, repaired = repairs(json.dumps({"type": "summary", "forwarded_at": given_time}))
    assert found.forwarded_at == 0.0
    assert repaired == ["forwarded_at: a number was expected, not a string"]


def test_only_times_are_read_from_text():
    _, repaired = repairs(json.dumps({"type": "summary", "replaces": "2024-04-05"}))
    assert repaired == ["replaces: a number was expected, not a string"]

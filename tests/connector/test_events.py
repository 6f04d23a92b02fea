import tomllib
from pathlib import Path

import httpx_sse
import pytest
from httpx_sse import ServerSentEvent
from httpx_sse._decoders import SSEDecoder
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement

from autoplay_rag.connector.events import EventParser
from autoplay_rag.errors import ConnectorError


def parser(last_event_id="", limit=1000, on_oversize=lambda: None):
    return EventParser(last_event_id, max_event_bytes=limit, on_oversize=on_oversize)


def said(events):
    """Name, data and id of events."""
    return [
        ("message", event.decode("utf-8", "replace"), None)
        if isinstance(event, bytes)
        else (event.event, event.data, event.id)
        for event in events
    ]


def test_a_read_that_is_one_event_of_one_line_takes_the_short_way():
    made = parser()
    made.feed(b": hello\n\n")
    assert made.feed(b"data: {}\n\n") == (b"{}",)


@pytest.mark.parametrize(
    "read",
    [
        b"data:{}\n\n",
        b"data: {}\r\n\r\n",
        b"data: {}\ndata: {}\n\n",
        b"data: {}\n\ndata: {}\n\n",
        b"event: message\ndata: {}\n\n",
    ],
)
def test_all_else_goes_the_general_way(read):
    made = parser()
    made.feed(b": hello\n\n")
    events = made.feed(read)
    assert all(isinstance(event, ServerSentEvent) for event in events)
    assert {event.data for event in events} <= {"{}", "{}\n{}"}


@given(st.binary().filter(lambda data: not set(data) & {10, 13}), st.integers(1, 9))
def test_both_ways_say_the_same(data, cut):
    short, general = parser(), parser()
    for made in (short, general):
        made.feed(b": hello\n\n")
    whole = b"data: " + data + b"\n\n"
    cut = min(cut, len(whole) - 1)
    at_once = said(short.feed(whole))
    in_parts = said([*general.feed(whole[:cut]), *general.feed(whole[cut:])])
    assert [event[1] for event in at_once] == [event[1] for event in in_parts]


def test_the_limit_holds_on_the_short_way_too():
    skipped = []
    made = parser(limit=20, on_oversize=lambda: skipped.append(1))
    made.feed(b": hello\n\n")
    assert list(made.feed(b"data: " + b"x" * 20 + b"\n\n")) == []
    assert skipped == [1]
    assert made.feed(b"data: x\n\n") == (b"x",)


def test_ids_stay_until_they_change():
    made = parser("before")
    assert said(made.feed(b"data: 1\n\ndata: 2\n\n")) == [
        ("message", "1", "before"),
        ("message", "2", "before"),
    ]
    made.feed(b"id: a\n\n")
    assert made.last_event_id == "a"
    assert made.feed(b"data: 3\n\n") == (b"3",)
    assert made.last_event_id == "a"
    made.feed(b"id\n\n")
    assert made.last_event_id == ""


def test_names_and_retry_are_told():
    (event,) = parser().feed(b"event: heartbeat\nretry: 500\ndata:\n\n")
    assert (event.event, event.data, event.retry) == ("heartbeat", "", 500)


@pytest.fixture
def by_the_specification(monkeypatch):
    """httpx-sse as it should be: a block without data is no event, though its id counts."""
    decode = SSEDecoder.decode

    def checked(decoder, line):
        if not line and not decoder._data:
            decoder._event = ""
            return None
        return decode(decoder, line)

    monkeypatch.setattr(SSEDecoder, "decode", checked)


@pytest.mark.usefixtures("by_the_specification")
def test_no_event_is_lost_where_blocks_without_data_are_no_events():
    made = parser("before")
    assert said(made.feed(b": hello\ndata: 1\n\nevent: no data\n\n")) == [
        ("message", "1", "before")
    ]
    assert said(made.feed(b"id: a\n\ndata: 2\n\ndata: 3\n\n")) == [
        ("message", "2", "a"),
        ("message", "3", "a"),
    ]
    assert made.feed(b"id: b\n\n") == []
    assert made.last_event_id == "b"
    assert said(made.feed(b"event: named\ndata: 4\n\n")) == [("named", "4", "b")]


@pytest.mark.parametrize("kept", [slice(1, None), slice(None, -1)], ids=["before", "behind"])
def test_an_event_that_stands_in_the_place_of_ours_is_not_lost_in_silence(monkeypatch, kept):
    iter_sse = httpx_sse.EventSource.iter_sse
    monkeypatch.setattr(
        httpx_sse.EventSource, "iter_sse", lambda source: list(iter_sse(source))[kept]
    )
    with pytest.raises(ConnectorError, match="httpx-sse"):
        parser("before").feed(b"data: 1\n\ndata: 2\n\n")


@pytest.mark.parametrize("inside", ["\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x85"])
def test_only_line_ends_end_a_line(inside):
    read = f"id: 1\ndata: a{inside}b\n\n".encode()
    assert said(parser().feed(read)) == [("message", f"a{inside}b", "1")]


def test_no_release_of_httpx_sse_that_ends_lines_elsewhere_is_allowed():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    (needed,) = [
        Requirement(line)
        for line in project["project"]["dependencies"]
        if line.startswith("httpx-sse")
    ]
    assert [v for v in ("0.4.0", "0.4.1", "0.4.2", "0.5.0") if v in needed.specifier] == ["0.4.2"]

import tracemalloc
from itertools import pairwise

import pytest
from httpx_sse import EventSource, ServerSentEvent
from hypothesis import given, settings
from hypothesis import strategies as st

from autoplay_rag.connector.sse import EventParser


def parser(last_event_id="", limit=1000, on_oversize=lambda: None):
    return EventParser(last_event_id, max_event_bytes=limit, on_oversize=on_oversize)


def said(events):
    """Return name, data and id of each event."""
    return [
        ("message", event.decode("utf-8", "replace"), None)
        if isinstance(event, bytes)
        else (event.event, event.data, event.id)
        for event in events
    ]


def read(reads, limit=1000):
    """Return the data of the events in these reads, and how many events were skipped."""
    skipped = []
    made = parser(limit=limit, on_oversize=lambda: skipped.append(1))
    return [data for part in reads for _, data, _ in said(made.feed(part))], len(skipped)


def bytewise(text):
    return [text[i : i + 1] for i in range(len(text))]


# The form of an event


@pytest.mark.parametrize(
    "text", [b"data: {}\n\n", b"data:{}\n\n", b"data: {}\r\n\r\n", b": c\ndata: {}\n\n"]
)
def test_an_event_of_one_line_of_data_is_given_as_its_data(text):
    made = parser()
    for _ in range(2):
        assert list(made.feed(text + b"x: y\n\n")) == [b"{}"]
        assert list(made.feed(text)) == [b"{}"]
    assert [event for part in bytewise(text) for event in made.feed(part)] == [b"{}"]


@pytest.mark.parametrize(
    "text",
    [
        b"data: {}\ndata: {}\n\n",
        b"event: message\ndata: {}\n\n",
        b"id: 1\ndata: {}\n\n",
        b"retry: 1\ndata: {}\n\n",
        b"id: 1\n\n",
        b"event: named\n\n",
        b"retry: 1\n\n",
    ],
)
def test_every_other_event_is_given_whole(text):
    (event,) = parser().feed(text)
    assert isinstance(event, ServerSentEvent)
    assert event.data in {"{}", "{}\n{}", ""}


@pytest.mark.parametrize("text", [b": c\n\n", b"\n\n\n", b"other: x\n\n", b"data: {}\n"])
def test_a_block_without_a_field_is_not_an_event(text):
    assert list(parser().feed(text)) == []


@given(st.binary().filter(lambda data: not set(data) & {10, 13}), st.integers(1, 9))
def test_one_read_and_two_give_the_same(data, cut):
    whole = b"data: " + data + b"\n\n"
    cut = min(cut, len(whole) - 1)
    at_once, in_parts = parser(), parser()
    for made in (at_once, in_parts):
        made.feed(b": hello\n\n")
    assert list(at_once.feed(whole)) == [*in_parts.feed(whole[:cut]), *in_parts.feed(whole[cut:])]


def test_an_event_ends_with_its_last_byte_whatever_the_line_ends():
    for text in (b"data: 1\n\n", b"data: 1\r\r", b"data: 1\r\n\r"):
        made = parser()
        given = [list(made.feed(part)) for part in bytewise(text)]
        assert given == [[]] * (len(text) - 1) + [[b"1"]]


def test_a_line_feed_behind_an_event_belongs_to_it():
    made = parser()
    assert list(made.feed(b"data: 1\r\n\r")) == [b"1"]
    assert list(made.feed(b"\ndata: 2\n\n")) == [b"2"]
    assert list(made.feed(b"data: 3\r\r")) == [b"3"]
    assert list(made.feed(b"data: 4\n\n")) == [b"4"]


@pytest.mark.parametrize("cut", range(4))
def test_one_byte_order_mark_is_dropped(cut):
    text = b"\xef\xbb\xbfdata: 1\n\n"
    assert read([text[:cut], text[cut:]]) == (["1"], 0)
    assert read([b"\xef\xbb\xbf" + text]) == ([], 0)


@pytest.mark.parametrize("inside", ["\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x85"])
def test_only_line_ends_end_a_line(inside):
    text = f"id: 1\ndata: a{inside}b\n\n".encode()
    assert said(parser().feed(text)) == [("message", f"a{inside}b", "1")]


# Names, ids, retry


def test_ids_stay_until_they_change():
    made = parser("before")
    assert said(made.feed(b"event: e\ndata: 1\n\ndata: 2\ndata: 2\n\n")) == [
        ("e", "1", "before"),
        ("message", "2\n2", "before"),
    ]
    (event,) = made.feed(b"id: a\n\n")
    assert (event.id, made.last_event_id) == ("a", "a")
    assert made.feed(b"data: 3\n\n") == [b"3"]
    assert made.last_event_id == "a"
    made.feed(b"id: b\n")
    assert made.last_event_id == "a"  # the new event is not complete
    made.feed(b"\n")
    assert made.last_event_id == "b"
    made.feed(b"id\n\n")
    assert made.last_event_id == ""


def test_the_id_of_a_skipped_event_does_not_count():
    made = parser("before", limit=20)
    assert list(made.feed(b"id: a\ndata: " + b"x" * 20 + b"\nid: b\n\n")) == []
    assert said(made.feed(b"event: e\ndata: 1\n\n")) == [("e", "1", "before")]


def test_names_and_retry_are_reported():
    (event,) = parser().feed(b"event: heartbeat\nretry: 500\ndata:\n\n")
    assert (event.event, event.data, event.retry) == ("heartbeat", "", 500)


@pytest.mark.parametrize(
    "line",
    [
        "retry: 1_000",
        "retry: +5",
        "retry:  5",
        "retry: 5 ",
        "retry: ٣",
        "retry:",
        "retry",
        "retry: x",
        "retryx: 5",
        "data: retry: 5",
        "retry: " + "9" * 5000,
    ],
)
def test_only_a_retry_of_digits_counts(line):
    (event,) = parser(limit=10_000).feed(f"event: e\n{line}\ndata: 1\n\n".encode())
    assert event.retry is None
    assert event.data.endswith("1")


@pytest.mark.parametrize("line", ["retry: 1000", "retry:1000", "retry:01000"])
def test_a_retry_counts_without_data_too(line):
    (event,) = parser().feed(f"{line}\n\n".encode())
    assert event.retry == 1000


# Bounds


@pytest.mark.parametrize("reads_of", [1, 7, 64, 10_000])
def test_an_oversize_event_loses_only_itself(reads_of):
    text = b"data: 1\n\n" + b"data: " + b"x" * 2000 + b"\ndata: y\n\n" + b"data: 2\n\n"
    reads = [text[i : i + reads_of] for i in range(0, len(text), reads_of)]
    assert read(reads, limit=100) == (["1", "2"], 1)


def test_an_event_of_just_the_limit_passes():
    event = b"data: " + b"x" * 92 + b"\n\n"
    assert len(event) == 100
    for reads in ([event], [b": c\n\n", event], [event[:50], event[50:]], bytewise(event)):
        assert read(reads, limit=100) == (["x" * 92], 0)
        assert read([*reads, b"data: 1\n\n"], limit=99) == (["1"], 1)


def test_many_short_lines_are_bounded_too():
    assert read([b"data: x\n"] * 100 + [b"\n", b"data: 1\n\n"], limit=100) == (["1"], 1)
    assert read([b"other: x\n"] * 100 + [b"\n", b"data: 1\n\n"], limit=100) == (["1"], 1)


@pytest.mark.parametrize("start", [b"", b":", b"data: ", b"data: x\n:"])
def test_an_endless_line_takes_no_memory(start):
    made = parser(limit=10_000)
    made.feed(start)
    piece = b"x" * 4096
    tracemalloc.start()
    try:
        for _ in range(5000):
            made.feed(piece)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_comments_never_make_an_event_too_large():
    comments = [b": still here\n"] * 1000
    assert read([*comments, b"data: 1\n\n"], limit=100) == (["1"], 0)
    assert read([b"data: 1\n", *comments, b"\n"], limit=100) == (["1"], 0)


# Compared with httpx-sse, and with itself

lines = st.sampled_from(
    [
        b"data: a",
        b"data",
        b"data: \xc3\xa4",
        b"data: \xff",
        b"",
        b"",
        b": c",
        b"id: 1",
        b"id",
        b"id: a\0b",
        b"event: e",
        b"other: x",
        b"retry: x",
        b"retry: 9",
        b"data: " + b"x" * 60,
        b":" + b"x" * 60,
    ]
)
ends = st.sampled_from([b"\n", b"\r", b"\r\n"])


class _Answer:
    """The part of a response that `EventSource` reads, with its text in memory."""

    def __init__(self, text):
        self.headers = {"content-type": "text/event-stream"}
        self._text = text

    def iter_text(self):
        return iter((self._text,))


@settings(max_examples=400)
@given(st.lists(st.tuples(lines, ends), max_size=20))
def test_it_reads_what_httpx_sse_reads(written):
    text = b"".join(line + end for line, end in written) + b"\n"
    by_httpx = EventSource(_Answer(text.decode("utf-8", "replace"))).iter_sse()
    # It yields an event for every blank line after the first id.
    expected = [(e.event, e.data, e.retry) for e in by_httpx if e.data or e.retry]
    found = [
        ("message", event.decode("utf-8", "replace"), None)
        if isinstance(event, bytes)
        else (event.event, event.data, event.retry)
        for event in parser().feed(text)
    ]
    assert [event for event in found if event[1] or event[2]] == expected


@settings(max_examples=400)
@given(
    st.lists(st.tuples(lines, ends), max_size=20),
    st.booleans(),
    st.lists(st.integers(0, 400), max_size=12),
    st.sampled_from([40, 100, 1000]),
)
def test_where_the_reads_are_cut_makes_no_difference(written, bom, cuts, limit):
    text = b"\xef\xbb\xbf" * bom + b"".join(line + end for line, end in written)
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    reads = [text[a:b] for a, b in pairwise(edges)]
    assert read(reads, limit) == read(bytewise(text), limit) == read([text], limit)

import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoplay_rag.connector.framing import EventGuard


def fed(reads, limit=1000):
    """What comes out of a guard, and how many events it skipped."""
    skipped = []
    guard = EventGuard(limit, on_oversize=lambda: skipped.append(1))
    return b"".join(guard.feed(read) for read in reads), len(skipped)


def test_it_tells_whether_anything_is_open():
    guard = EventGuard(1000, on_oversize=lambda: None)
    assert not guard.clean  # a byte order mark may come
    for read, clean in [
        (b"data: 1\n\n", True),
        (b"data: 2\n", False),
        (b"\n", True),
        (b"data: 3\r\r", False),  # a line feed may come
        (b"data: 4\n\n", True),
        (b"x" * 1001, False),
        (b"\n\n", True),
    ]:
        guard.feed(read)
        assert guard.clean is clean


def test_an_event_passes_with_its_last_byte_whatever_the_line_ends():
    for end in (b"\n", b"\r", b"\r\n"):
        guard = EventGuard(1000, on_oversize=lambda: None)
        event = b"data: 1" + end + b"\r" + (b"\n" if end == b"\r\n" else b"")
        passed = [guard.feed(event[i : i + 1]) for i in range(len(event))]
        blank = passed.index(b"data: 1\n\n")
        assert event[: blank + 1].rstrip(b"\n").endswith(b"\r") or end == b"\n"


def test_an_unfinished_event_is_held_back():
    assert fed([b"data: 1\n\nid: 7\ndata: 2\n"])[0] == b"data: 1\n\n"


@pytest.mark.parametrize("cut", range(4))
def test_one_byte_order_mark_is_dropped(cut):
    text = b"\xef\xbb\xbfdata: 1\n\n"
    assert fed([text[:cut], text[cut:]]) == (b"data: 1\n\n", 0)
    assert fed([b"\xef\xbb\xbf" + text]) == (text, 0)


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
    ],
)
def test_a_bogus_retry_is_dropped_wherever_it_stands(line):
    bad = line.encode() + b"\n"
    assert fed([bad + b"data: 1\n\n"])[0] == b"data: 1\n\n"
    assert fed([b"data: 1\n" + bad + b"\n"])[0] == b"data: 1\n\n"
    assert fed([b"data: 1\n\n" + bad, b"data: 2\n\n"])[0] == b"data: 1\n\ndata: 2\n\n"


@pytest.mark.parametrize(
    "line", [b"retry: 1000\n", b"retry:1000\n", b"data: retry: 1_0\n", b"retryx: 1_0\n"]
)
def test_other_lines_stay(line):
    assert fed([line + b"\n"])[0] == line + b"\n"


@pytest.mark.parametrize("reads_of", [1, 7, 64, 10_000])
def test_an_oversize_event_costs_itself_alone(reads_of):
    text = b"data: 1\n\n" + b"data: " + b"x" * 2000 + b"\ndata: y\n\n" + b"data: 2\n\n"
    reads = [text[i : i + reads_of] for i in range(0, len(text), reads_of)]
    assert fed(reads, limit=100) == (b"data: 1\n\ndata: 2\n\n", 1)


def test_an_event_of_just_the_limit_passes():
    event = b"data: " + b"x" * 92 + b"\n\n"
    assert len(event) == 100
    assert fed([event], limit=100) == (event, 0)
    assert fed([event], limit=99) == (b"", 1)
    assert fed([event[:50], event[50:]], limit=99) == (b"", 1)


def test_an_endless_line_takes_no_memory():
    guard = EventGuard(10_000, on_oversize=lambda: None)
    piece = b"x" * 4096
    tracemalloc.start()
    try:
        for _ in range(5000):
            guard.feed(piece)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_comments_alone_never_make_an_event_too_large():
    passed, skipped = fed([b": still here\n"] * 1000 + [b"data: 1\n\n"], limit=100)
    assert (passed, skipped) == (b"data: 1\n\n", 0)


lines = st.sampled_from(
    [
        b"data: a",
        b"data",
        b"data: \xc3\xa4",
        b"",
        b"",
        b": c",
        b"id: 1",
        b"event: e",
        b"retry: 1_0",
        b"retry: 9",
        b"data: " + b"x" * 60,
        b":" + b"x" * 60,
    ]
)
ends = st.sampled_from([b"\n", b"\r", b"\r\n"])


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
    bytewise = [text[i : i + 1] for i in range(len(text))]

    def events(result):
        passed, skipped = result
        blocks = [block.strip(b"\n") for block in passed.split(b"\n\n")]
        # What stands for nothing may come or go: blank lines, blocks of comments.
        kept = [
            kept
            for block in blocks
            if (kept := [line for line in block.split(b"\n") if line and not line.startswith(b":")])
        ]
        return kept, skipped

    assert events(fed(reads, limit)) == events(fed(bytewise, limit))

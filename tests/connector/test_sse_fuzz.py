"""Random event streams, cut at random bytes: the parser agrees with a second one, written here.

The second one reads a whole stream at once, as https://html.spec.whatwg.org describes it. The two
share no code and take different approaches.
"""

from __future__ import annotations

import random
import re

import pytest

from autoplay_rag.connector.sse import EventParser

FRAGMENTS = [
    *(b"data", b"data:", b"data: ", b"data:  ", b" data: ", b"Data: ", b"da", b"dat\0a: ", b"data\0:"),
    *(b"event", b"event:", b"event: a", b"event: heartbeat", b"event: \xc3\xa9"),
    *(b"id", b"id:", b"id: 7", b"id: \xff", b"id: a\0b", b"id:\xe2\x80\xa8"),
    *(b"retry", b"retry: 5", b"retry:007", b"retry: 1_0", b"retry: -1", b"retry: 1.5", b"retry: \xd9\xa3"),
    *(b":", b": comment", b":data: x", b"other: x", b"other", b"x"),
    *(b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n", b"\n\r", b"\n\r\n"),
    *(b"\xef\xbb\xbf", b"\xef\xbb", b"\xef", b"\xbb\xbf", b"\0", b"\xe2\x80\xa6", b"\xe2\x80", b"\x85", b"\x0c"),
    *(b'{"type":"summary"}', b"{}", b" ", b"1", b"::"),
]  # fmt: skip
"""Fragments with a meaning in the format, similar fragments, and bytes that are not UTF-8."""

WHOLE = [b"data: 1\n\n", b"data: 2\r\n\r\n", b"data: 3\r\r", b"event: heartbeat\ndata:\n\n", b": hi\n\n"]  # fmt: skip


def random_stream(rng: random.Random) -> bytes:
    pieces = rng.choices(FRAGMENTS, k=rng.randrange(40))
    for _ in range(rng.randrange(4)):
        pieces.insert(rng.randrange(len(pieces) + 1), rng.choice(WHOLE))
    return b"".join(pieces)


def cut(stream: bytes, rng: random.Random) -> list[bytes]:
    """Cut the stream into reads of one byte, or at random places; some reads are empty."""
    if rng.random() < 0.2:
        return [stream[i : i + 1] for i in range(len(stream))]
    edges = sorted(rng.choices(range(len(stream) + 1), k=rng.randrange(12)))
    return [stream[a:b] for a, b in zip([0, *edges], [*edges, len(stream)], strict=True)]


def parsed(reads: list[bytes], last_id: str) -> tuple[list[tuple], str]:
    """Parse these reads with the package: name, data, id and retry of each event."""
    parser = EventParser(last_id, max_event_bytes=10**6, on_oversize=pytest.fail)
    events = []
    for read in reads:
        for event in parser.feed(read):
            if isinstance(event, bytes):  # its id is that of the previous event
                events.append(("", event.decode("utf-8", "replace"), last_id, None))
            else:
                name, last_id = "" if event.event == "message" else event.event, event.id
                events.append((name, event.data, last_id, event.retry))
    assert parser.last_event_id == last_id
    return events, last_id


def expected(stream: bytes, last_id: str) -> tuple[list[tuple], str]:
    """Parse as the standard says, except that events without data are included."""
    text = stream.decode("utf-8", "replace").removeprefix("\ufeff")
    *lines, _unfinished = re.split("\r\n|\r|\n", text)
    events = []
    block: list[tuple[str, str]] = []
    for line in lines:
        if line:
            field, colon, value = line.partition(":")
            if field or not colon:
                block.append((field, value[1:] if value[:1] == " " else value))
            continue
        data = [value for field, value in block if field == "data"]
        names = [value for field, value in block if field == "event"]
        ids = [value for field, value in block if field == "id" and "\0" not in value]
        retries = [v for field, v in block if field == "retry" and re.fullmatch("[0-9]+", v)]
        if ids:
            last_id = ids[-1]
        if data or names or ids or retries:
            retry = int(retries[-1]) if retries else None
            events.append((names[-1] if names else "", "\n".join(data), last_id, retry))
        block = []
    return events, last_id


def compare(seed: int) -> int:
    """Compare one random stream; return the number of its events."""
    rng = random.Random(seed)
    stream, last_id = random_stream(rng), rng.choice(["", "41"])
    wanted = expected(stream, last_id)
    reads = cut(stream, rng)
    assert parsed(reads, last_id) == wanted, f"seed {seed}: {reads}"
    return len(wanted[0])


def test_streams_cut_anywhere_give_the_same_events():
    assert sum(map(compare, range(1_000))) > 1_000, "there was something to compare"


@pytest.mark.slow
def test_thirty_thousand_more():
    assert sum(map(compare, range(1_000, 31_000))) > 30_000


def test_the_comparison_sees_a_difference(monkeypatch):
    monkeypatch.setattr(EventParser, "_without_bom", lambda self, chunk: chunk)
    with pytest.raises(AssertionError, match="seed"):
        sum(map(compare, range(1_000)))

"""The event stream format, case by case.

The cases are those of the web platform's conformance tests (eventsource/format-*), with our own
bytes: what is sent, and the data of the events that a reader must see. Events with empty data are
left out: they carry no payload.
"""

import random
from itertools import pairwise

import pytest

from autoplay_rag.connector import stream
from autoplay_rag.connector.client import AsyncConnectorClient
from autoplay_rag.payloads import SummaryPayload

BOM = "\ufeff"

CASES = {
    "mark at the start": (f"{BOM}data:1\n\n{BOM}data:2\n\ndata:3\n\n", ["1", "3"]),
    "two marks at the start": (f"{BOM}{BOM}data:1\n\ndata:2\n\ndata:3\n\n", ["2", "3"]),
    "comments": (
        f"data:1\r:\0\n:\r\ndata:2\n:{'x' * 2050}\rdata:3\n:data:no\r:{'x' * 2050}\ndata:4\n\n",
        ["1\n2\n3\n4"],
    ),
    "unfinished last event": ("retry:1000\ndata:one\n\nid:test\ndata:two", ["one"]),
    "unfinished after a whole line": ("data:one\n\ndata:two\n", ["one"]),
    "several data lines": ("data:\n\ndata\ndata\n\ndata:test\n\n", ["\n", "test"]),
    "event names": ("event:a\ndata:x\n\ndata:y\n\n", ["x", "y"]),
    "empty event name": ("event: \ndata:data\n\n", ["data"]),
    "field names to the letter": (
        "data:\0\ndata:  2\rData:1\ndata\0:2\ndata:1\r\0data:4\nda-ta:3\rdata_5\ndata:3\rdata:\r\n data:32\ndata:4\n\n",
        ["\0\n 2\n1\n3\n\n4"],
    ),
    "bogus retry": ("retry:3000\nretry:1000x\ndata:x\n\n", ["x"]),
    "empty retry": ("retry\ndata:test\n\n", ["test"]),
    "unknown fields": (
        "data:test\n data\ndata\nfoobar:xxx\njustsometext\n:thisisacommentyay\ndata:test\n\n",
        ["test\n\ntest"],
    ),
    "one leading space": ("data:\ttest\rdata: \ndata:test\n\n", ["\ttest\n\ntest"]),
    "kinds of line ends": ("data:test\r\ndata\ndata:test\r\n\r", ["test\n\ntest"]),
    "carriage returns alone": ("data:1\rdata:2\r\rdata:3\r\r", ["1\n2", "3"]),
    "null character": ("data:\0\n\n\n\n", ["\0"]),
    "beyond ascii": ("data:ok…\n\n", ["ok…"]),
    "id alone": ("id:1\n\ndata:x\n\n", ["x"]),
    "id with null": ("id:a\0b\ndata:x\n\n", ["x"]),
    "a colon in the data": ("data:a:b\n\ndata::\n\n", ["a:b", ":"]),
    "nothing but blank lines": ("\n\n\r\r\n\r\n", []),
}


def read_as(text):
    """Yield the text in one read, in reads of one byte, and in random reads."""
    whole = text.encode()
    yield [whole]
    yield [whole[i : i + 1] for i in range(len(whole))]
    rng = random.Random(len(whole))
    for _ in range(5):
        edges = sorted({0, len(whole), *(rng.randrange(len(whole)) for _ in range(4))})
        yield [whole[a:b] for a, b in pairwise(edges)]


def one_connection(http):
    """Make a client that stops when its first connection ends."""

    def stop():
        client.stop()

    client = AsyncConnectorClient("http://a.test/stream/x", http_client=http, on_disconnect=stop)
    return client


@pytest.fixture
def data_of(scripted, monkeypatch):
    """Run a client over one connection; return the data of the events that it would decode."""

    def decode(data, **_):
        text = data if isinstance(data, str) else data.decode("utf-8", "replace")
        return SummaryPayload(summary=text)

    monkeypatch.setattr(stream, "decode", decode)

    async def run(reads):
        http = scripted(reads, stay=False)
        client = one_connection(http)
        return [payload.summary async for payload in client.stream()]

    return run


@pytest.mark.parametrize("case", CASES)
async def test_format(data_of, case):
    text, expected = CASES[case]
    for reads in read_as(text):
        assert await data_of(reads) == expected


async def test_every_place_to_cut_in_two(data_of):
    text = f"{BOM}id: 1\r\ndata: é…\r\n\r\ndata: 2\r\rretry: 1_0\ndata: 3\n\n".encode()
    for cut in range(len(text) + 1):
        assert await data_of([text[:cut], text[cut:]]) == ["é…", "2", "3"]


async def test_invalid_utf_8_affects_only_its_event(data_of):
    reads = [b"data: \xff\xc3\n\n", b"data: ok\n\n"]
    assert await data_of(reads) == ["\ufffd\ufffd", "ok"]


@pytest.mark.parametrize(
    ("ids", "last"),
    [
        ("id: a\ndata: 1\n\n", "a"),
        ("id: a\n\nid\n\n", ""),
        ("id: a\n\nid: b\0\n\n", "a"),
        ("id:…\n\n", "…"),
        ("id: a\n\nid: b\n", "a"),
    ],
)
async def test_the_last_id(scripted, ids, last):
    http = scripted([ids.encode()], stay=False)
    client = one_connection(http)
    async for _ in client.stream():
        pass
    assert client._stream.last_event_id == last

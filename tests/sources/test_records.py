"""JSON values of a file, one by one."""

import io
import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag.connector.sse import MAX_EVENT_BYTES
from autoplay_rag.sources import records
from autoplay_rag.sources.records import read_records

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.lists(st.dictionaries(st.text(), VALUES, max_size=4), max_size=6)


def read(content, errors=None):
    return [
        json.loads(one)
        for one in read_records(io.BytesIO(content), (errors if errors is not None else []).append)
    ]


@pytest.mark.parametrize("piece", [1, 2, 7, 1 << 20])
@given(objects=OBJECTS, ascii=st.booleans(), indent=st.sampled_from([None, 2]))
def test_an_array_or_lines_are_read_value_by_value(piece, objects, ascii, indent):
    before, records._PIECE = records._PIECE, piece
    try:
        array = json.dumps(objects, ensure_ascii=ascii, indent=indent).encode()
        assert read(array) == objects
        some = [one for one in objects if one]  # an empty one is on one line
        lines = "\n".join(json.dumps(one, ensure_ascii=ascii, indent=indent) for one in some)
        assert read(lines.encode()) == some
    finally:
        records._PIECE = before


def test_a_broken_line_costs_itself_alone():
    good = [b'{"a": 1}', b'{"a": 2}', b'{"a": 3}']
    for at in range(4):
        some = [*good[:at], b'{"b": "', *good[at:]]
        found = list(read_records(io.BytesIO(b"\r\n".join(some)), pytest.fail))
        assert [one for one in found if one in good] == good
        assert len(found) == 4


def test_an_object_over_many_lines_is_one_value():
    page = json.dumps({"results": [{"a": 1}, {"b": "}"}]}, indent=4)
    assert read(page.encode()) == [json.loads(page)]


@pytest.mark.parametrize("content", [b"", b"\n \n", b"[]", b"[1, 2]", b"[", b"  "])
def test_nothing_is_read_from_nothing(content):
    assert read(content) == []


def test_what_is_too_long_or_has_no_end_is_reported():
    long = b'{"a": "' + b"x" * MAX_EVENT_BYTES + b'"}'
    for content, place in (
        (b'{"b": 1}\n' + long + b'\n{"b": 2}', "line 2: longer"),
        (b'[{"b": 1},' + long + b',{"b": 2}]', "value 2: longer"),
    ):
        errors = []
        assert read(content, errors) == [{"b": 1}, {"b": 2}]
        assert len(errors) == 1
        assert errors[0].startswith(place)
    errors = []
    assert read(b'[{"b": 1},{"b": ', errors) == [{"b": 1}]
    assert "no end" in errors[0]


class Endless(io.RawIOBase):
    """An array of many elements on one line, made as it is read."""

    def __init__(self, count):
        self.left = count

    def readline(self, limit, /):
        if self.left == 0:
            return b""
        self.left -= 1
        return (b'{"a": "' + b"x" * 1000 + b'"},') * 100


def test_memory_does_not_depend_on_the_file():
    tracemalloc.start()
    try:
        source = Endless(60)
        found = sum(1 for _ in records._scanned([b"["], source, pytest.fail))
        assert found == 6_000
        assert tracemalloc.get_traced_memory()[1] < 2_000_000, "6 MB were read"
    finally:
        tracemalloc.stop()

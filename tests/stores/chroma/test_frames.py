from __future__ import annotations

from io import BytesIO

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag.stores import StoreIdentity
from autoplay_rag.stores.chroma.frames import (
    Chunks,
    Clear,
    Compact,
    Copy,
    Count,
    Delete,
    Done,
    Drop,
    Erase,
    Exchange,
    Failed,
    Found,
    Get,
    Identity,
    Kept,
    Open,
    Query,
    Reply,
    Request,
    SaveIdentity,
    Scan,
    Step,
    UpdateMetadata,
    Upsert,
)
from autoplay_rag.stores.workers.pipe import encode, read, write

REQUESTS = msgspec.msgpack.Decoder(Request)
REPLIES = msgspec.msgpack.Decoder(Reply)


class Trickle:
    """A pipe that reads and writes a few bytes at a time, as given by `sizes`."""

    def __init__(self, sizes: list[int]) -> None:
        self.data = BytesIO()
        self.sizes = sizes
        self.turn = 0

    def _size(self, most: int) -> int:
        self.turn += 1
        return min(most, self.sizes[self.turn % len(self.sizes)])

    def write(self, data: memoryview) -> int:
        return self.data.write(data[: self._size(len(data))])

    def read(self, size: int) -> bytes:
        return self.data.read(self._size(size))


VALUES = (
    st.text(max_size=5) | st.booleans() | st.floats(allow_nan=False) | st.integers(-9, 2**63 - 1)
)


@given(
    st.dictionaries(st.text(max_size=5), VALUES),
    st.binary(),
    st.lists(st.integers(1, 9), min_size=1),
)
def test_whatever_the_pipe_cuts_frames_arrive_whole(metadata, vectors, sizes):
    sent = [
        Upsert(collection="c", model=None, timeout=1.0, ids=["a"], texts=["t"],
               metadatas=[metadata], vectors=vectors, dimension=3, sync_threshold=900),
        Query(collection="c", model="m", timeout=0.5, vector=vectors, k=2,
                  conditions=[("k", "==", 1)], where={"k": {"$eq": 1}}),
    ]  # fmt: skip
    pipe = Trickle(sizes)
    for message in sent:
        write(pipe, encode(message))
    pipe.data.seek(0)
    assert [read(pipe, REQUESTS), read(pipe, REQUESTS)] == sent
    with pytest.raises(EOFError):
        read(pipe, REQUESTS)


@given(
    st.dictionaries(st.text(max_size=5), VALUES),
    st.text(max_size=5),
    st.none() | st.integers(1, 2**62),
)
def test_every_request_and_reply_comes_back_as_it_was(metadata, text, after):
    to = {"collection": "c", "model": None, "timeout": 1.0}
    identity = StoreIdentity(text, "journal", 2**40)
    requests = [
        Open(sync_threshold=1000, **to),
        Delete(**to, ids=[text]),
        Count(**to),
        Get(**to, ids=[text, "b"]),
        Scan(**to, after=after or 0, limit=500),
        UpdateMetadata(**to, ids=[text], metadatas=[{**metadata, "gone": None}]),
        Drop(**to),
        Clear(**to),
        Compact(**to, may_end=after is None),
        Erase(**to),
        Exchange(**to, other=text),
        Identity(**to),
        Copy(**to, target=text),
        SaveIdentity(**to, identity=identity),
    ]
    replies = [
        Done(3),
        Chunks([(text, "text", metadata)], after),
        Kept(identity),
        Kept(None),
        Kept(identity, own=True),
        Step(more=True),
        Step(more=False, rewritten=True),
        Failed("mismatch", text),
    ]
    for messages, decoder in ((requests, REQUESTS), (replies, REPLIES)):
        assert [read(BytesIO(encode(message)), decoder) for message in messages] == messages


@given(st.integers(0, 40))
def test_a_frame_cut_short_is_an_end(kept):
    frame = encode(Found([("a", "text", 0.5, {"k": True})]))
    with pytest.raises(EOFError):
        read(BytesIO(frame[: min(kept, len(frame) - 1)]), REPLIES)


def test_a_lone_surrogate_cannot_be_sent():
    with pytest.raises(UnicodeEncodeError):
        encode(Found([("a", "\ud800", 0.5, {})]))


def test_an_unexpected_message_is_not_a_reply():
    with pytest.raises(msgspec.DecodeError):
        read(BytesIO(encode(Done())), REQUESTS)

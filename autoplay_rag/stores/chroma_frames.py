"""What `ChromaStore` and its worker process say to each other, and how it looks on a pipe.

A frame is a length (four bytes, little-endian) and a MessagePack body. The worker speaks first,
once: `Done` when it is ready, or `Failed`. From then on each request gets one reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import msgspec

__all__ = [
    "Count",
    "Delete",
    "Done",
    "Failed",
    "Found",
    "FoundChunk",
    "Open",
    "Query",
    "Reply",
    "Request",
    "Upsert",
    "encode",
    "read",
    "write",
]


class _Request(msgspec.Struct, tag=True, kw_only=True):
    """Each names its collection and model, so that a worker started anew needs no history.

    After `timeout` seconds the worker counts as stuck.
    """

    collection: str
    model: str | None
    timeout: float


class Open(_Request, tag=True, kw_only=True):
    """Make the collection if there is none, and check whose vectors it holds."""


class Upsert(_Request, tag=True, kw_only=True):
    """Columns of a batch; `vectors` are float32 values in the machine's byte order."""

    ids: list[str]
    texts: list[str]
    metadatas: list[dict[str, Any]]
    vectors: bytes
    dimension: int


class Delete(_Request, tag=True, kw_only=True):
    """Delete what is there of these ids."""

    ids: Sequence[str]


class Query(_Request, tag=True, kw_only=True):
    """The `k` nearest; `where` is in Chroma's own form."""

    vector: bytes
    k: int
    where: dict[str, Any] | None


class Count(_Request, tag=True, kw_only=True):
    """How many chunks there are."""


Request: TypeAlias = Open | Upsert | Delete | Query | Count


FoundChunk: TypeAlias = tuple[str, str, float, dict[str, Any]]
"""Id, text, score, metadata."""


class Done(msgspec.Struct, tag=True):
    """It is done. `count` answers `Count`."""

    count: int = 0


class Found(msgspec.Struct, tag=True):
    """The hits, best first."""

    hits: list[FoundChunk]


class Failed(msgspec.Struct, tag=True):
    """It could not be done; `kind` says which error of the package it becomes."""

    kind: Literal["locked", "mismatch", "missing", "rejected", "unavailable"]
    message: str


Reply: TypeAlias = Done | Found | Failed

_LENGTH = 4
_encoder = msgspec.msgpack.Encoder()
T = TypeVar("T")


class RawPipe(Protocol):
    """An unbuffered end of a pipe: it may read or write less than it was asked to."""

    def read(self, size: int, /) -> bytes | None: ...
    def write(self, data: memoryview, /) -> int | None: ...


def encode(message: Request | Reply) -> bytes:
    """A whole frame.

    Raises:
        UnicodeEncodeError: If a string in it holds a lone surrogate.

    Example:
        >>> list(encode(Done(count=3))[:4])
        [18, 0, 0, 0]
    """
    frame = bytearray(_LENGTH)
    _encoder.encode_into(message, frame, _LENGTH)
    frame[:_LENGTH] = (len(frame) - _LENGTH).to_bytes(_LENGTH, "little")
    return bytes(frame)


def write(pipe: RawPipe, frame: bytes) -> None:
    """Write a frame whole.

    Raises:
        OSError: If the other end is gone.
    """
    rest = memoryview(frame)
    while rest:
        rest = rest[pipe.write(rest) or 0 :]


def read(pipe: RawPipe, decoder: msgspec.msgpack.Decoder[T]) -> T:
    """Read a frame whole.

    Raises:
        EOFError: If the other end is gone.
        msgspec.DecodeError: If what came is no such message.
    """
    length = int.from_bytes(_read_exactly(pipe, _LENGTH), "little")
    return decoder.decode(_read_exactly(pipe, length))


def _read_exactly(pipe: RawPipe, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = pipe.read(size - len(parts))
        if not part:
            raise EOFError("the pipe was closed")
        parts += part
    return bytes(parts)

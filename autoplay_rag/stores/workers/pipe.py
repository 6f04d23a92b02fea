"""Messages between a store and its worker process, as bytes on a pipe.

A frame is a length (four bytes, little-endian) and a MessagePack body. The worker sends the first
frame, when it is ready or has failed to start. After that, each request gets one reply.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

import msgspec

__all__ = ["RawPipe", "Timed", "encode", "read", "write"]

_LENGTH = 4
_MOST_READ = 1 << 20
"""The most bytes to read in one call. Another program may write any length, so memory is not
allocated for the whole length in advance."""
_encoder = msgspec.msgpack.Encoder()
T = TypeVar("T")


class Timed(msgspec.Struct, kw_only=True):
    """The base of requests. After `timeout` seconds without a reply the worker is killed."""

    timeout: float


class RawPipe(Protocol):
    """An unbuffered end of a pipe. A call may read or write fewer bytes than requested."""

    def read(self, size: int, /) -> bytes | None: ...  # noqa: D102 - as the standard library's
    def write(self, data: memoryview, /) -> int | None: ...  # noqa: D102


def encode(message: msgspec.Struct) -> bytes:
    """Encode a message as one frame.

    Raises:
        UnicodeEncodeError: If a string in it has a lone surrogate.

    Example:
        >>> class Done(msgspec.Struct, tag=True):
        ...     count: int = 0
        >>> list(encode(Done(count=3))[:4])
        [18, 0, 0, 0]
    """
    frame = bytearray(_LENGTH)
    _encoder.encode_into(message, frame, _LENGTH)
    frame[:_LENGTH] = (len(frame) - _LENGTH).to_bytes(_LENGTH, "little")
    return bytes(frame)


def write(pipe: RawPipe, frame: bytes) -> None:
    """Write one whole frame.

    Raises:
        OSError: If the other end is closed.
    """
    rest = memoryview(frame)
    while rest:
        rest = rest[pipe.write(rest) or 0 :]


def read(pipe: RawPipe, decoder: msgspec.msgpack.Decoder[T]) -> T:
    """Read one whole frame.

    Raises:
        EOFError: If the other end is closed.
        msgspec.DecodeError: If the frame is not a message of the decoder's type.
    """
    length = int.from_bytes(_read_exactly(pipe, _LENGTH), "little")
    return decoder.decode(_read_exactly(pipe, length))


def _read_exactly(pipe: RawPipe, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = pipe.read(min(size - len(parts), _MOST_READ))
        if not part:
            raise EOFError("the pipe was closed")
        parts += part
    return bytes(parts)

"""What is replayed: a file, or payloads in memory, as lines."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Protocol

from autoplay_rag.connector.recording import LOT, encode_line, next_lot, read_recording_lines
from autoplay_rag.decoding import decode
from autoplay_rag.errors import DecodeError, RecordingError
from autoplay_rag.payloads import Payload

__all__ = ["FileSource", "MemorySource", "Source", "as_line", "first_product", "open_source"]

_log = logging.getLogger(__name__)


class Source(Protocol):
    """Lines that can be read any number of times, by several readers at once."""

    def lines(self) -> Iterator[bytes]:
        """All lines from the beginning."""

    async def take(self, lines: Iterator[bytes]) -> list[bytes]:
        """The next of `lines`, at most 128; none when they are over.

        Raises:
            OSError: If they cannot be read.
        """


class MemorySource(Source):
    """Payloads given as they are."""

    def __init__(self, recording: Iterable[Payload | bytes]) -> None:
        self._lines = [as_line(item) for item in recording]

    def lines(self) -> Iterator[bytes]:
        """As in `Source`."""
        return iter(self._lines)

    async def take(self, lines: Iterator[bytes]) -> list[bytes]:
        """As in `Source`."""
        # A socket may take everything at once; the rest of the loop has its turn too.
        await asyncio.sleep(0)
        return list(islice(lines, LOT))


class FileSource(Source):
    """A file of JSON Lines, read anew by each reader and never held in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def lines(self) -> Iterator[bytes]:
        """As in `Source`."""
        return read_recording_lines(self._path, on_error=_warn)

    async def take(self, lines: Iterator[bytes]) -> list[bytes]:
        """As in `Source`."""
        return await next_lot(lines)


def open_source(recording: str | os.PathLike[str] | Iterable[Payload | bytes]) -> Source:
    """The source that fits what was given."""
    if isinstance(recording, str | os.PathLike):
        return FileSource(Path(recording))
    return MemorySource(recording)


def as_line(item: Payload | bytes) -> bytes:
    """A payload encoded, bytes as they are."""
    return item if isinstance(item, bytes) else encode_line(item)


async def first_product(source: Source) -> str | None:
    """The product of the first payload that names one, if the first lot holds such a payload."""
    return next(filter(None, map(_product_id, await source.take(source.lines()))), None)


def _product_id(line: bytes) -> str | None:
    try:
        return decode(line).product_id or None
    except DecodeError:
        return None


def _warn(error: RecordingError) -> None:
    _log.warning("skipped a line of the recording: %s", error)

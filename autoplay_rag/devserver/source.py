"""The sources to replay: a file, or payloads in memory, as lines."""

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
        """Yield all lines from the beginning."""

    async def take(self, lines: Iterator[bytes]) -> list[bytes]:
        """Return the next of `lines`, at most 128; an empty list at the end.

        Raises:
            OSError: If they cannot be read.
        """


class MemorySource(Source):
    """Payloads in memory."""

    def __init__(self, recording: Iterable[Payload | bytes]) -> None:
        self._lines = [as_line(item) for item in recording]

    def lines(self) -> Iterator[bytes]:
        """As in `Source`."""
        return iter(self._lines)

    async def take(self, lines: Iterator[bytes]) -> list[bytes]:
        """As in `Source`."""
        # A socket may accept everything at once: let other tasks of the loop run.
        await asyncio.sleep(0)
        return list(islice(lines, LOT))


class FileSource(Source):
    """A file of JSON Lines. Each reader reads it from disk; it is never held in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def lines(self) -> Iterator[bytes]:
        """As in `Source`."""
        return read_recording_lines(self._path, on_error=_warn)

    async def take(self, lines: Iterator[bytes]) -> list[bytes]:
        """As in `Source`."""
        return await next_lot(lines)


def open_source(recording: str | os.PathLike[str] | Iterable[Payload | bytes]) -> Source:
    """Return a file source for a path, otherwise a memory source."""
    if isinstance(recording, str | os.PathLike):
        return FileSource(Path(recording))
    return MemorySource(recording)


def as_line(item: Payload | bytes) -> bytes:
    """Encode a payload. Bytes are returned unchanged."""
    return item if isinstance(item, bytes) else encode_line(item)


async def first_product(source: Source) -> str | None:
    """Return the first product named in the first batch of lines; None if there is none."""
    return next(filter(None, map(_product_id, await source.take(source.lines()))), None)


def _product_id(line: bytes) -> str | None:
    try:
        return decode(line).product_id or None
    except DecodeError:
        return None


def _warn(error: RecordingError) -> None:
    _log.warning("skipped a line of the recording: %s", error)

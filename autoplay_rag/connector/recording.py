"""Recordings of streams as JSON Lines: one event's JSON per line, in the order forwarded.

Reading and writing hold one line at a time, so memory use depends only on the longest event.
Reading decodes as the live client does, so replayed and live payloads take the same code path.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Literal, Self, TypeAlias, TypeVar

import msgspec

from autoplay_rag.connector.encodings import Lines, is_plain, open_lines
from autoplay_rag.connector.sse import MAX_EVENT_BYTES
from autoplay_rag.decoding import decode
from autoplay_rag.errors import DecodeError, RecordingError, UnknownPayloadError
from autoplay_rag.payloads import Payload

__all__ = [
    "LOT",
    "RecordingWriter",
    "encode_line",
    "next_lot",
    "read_recording",
    "read_recording_lines",
]

T = TypeVar("T")

LOT: Final = 128
"""How many items are read at once: few switches between threads, little memory."""

OnError: TypeAlias = Callable[[RecordingError], None]
"""Called with the error of each line that was skipped."""


def read_recording(
    path: str | os.PathLike[str], *, on_error: OnError | None = None
) -> Iterator[Payload]:
    """Read a recording's payloads, line by line.

    Blank lines are skipped. Events of a type this version does not know are skipped too, as by
    the live client; `on_error` is called for these.

    Args:
        path: A JSON Lines file in UTF-8, UTF-16 or UTF-32, also compressed with gzip, bzip2 or xz.
        on_error: Called for each line that cannot be read, which is then skipped. Without it
            the first such line raises.

    Yields:
        The payloads, in the file's order.

    Raises:
        RecordingError: For a line that cannot be read; the message has file and line number,
            never the line itself. Also, even with `on_error`, if the file is in another format,
            such as a zip archive.
        OSError: If the file cannot be read.

    Example:
        >>> import tempfile
        >>> from autoplay_rag.payloads import SummaryPayload
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with RecordingWriter(f"{folder}/visits.jsonl") as recording:
        ...         recording.write(SummaryPayload(session_id="s1", summary="Exported a report."))
        ...     [payload.session_id for payload in read_recording(f"{folder}/visits.jsonl")]
        ['s1']
    """
    for number, line in _numbered_lines(path, on_error):
        try:
            yield decode(line)
        except UnknownPayloadError as error:
            if on_error is not None:
                on_error(_error(path, number, error))
        except DecodeError as error:
            _report(_error(path, number, error), on_error)


def read_recording_lines(
    path: str | os.PathLike[str], *, on_error: OnError | None = None
) -> Iterator[bytes]:
    """Read a recording's lines undecoded, to replay them byte for byte.

    Args:
        path: As for `read_recording`; the lines are yielded in UTF-8.
        on_error: Called for each line that is too long, which is then skipped. Without it the
            first such line raises.

    Yields:
        Each line that is not blank, without its line end.

    Raises:
        RecordingError: For a line longer than 8 MiB, or if the file is in another format.
        OSError: If the file cannot be read.
    """
    for _, line in _numbered_lines(path, on_error):
        yield line


async def next_lot(recording: Iterator[T]) -> list[T]:
    """Read the next items in a thread, for code on an event loop.

    Args:
        recording: The iterator from `read_recording` or `read_recording_lines`.

    Returns:
        The next items, at most `LOT`; empty at the end.
    """
    return await asyncio.to_thread(lambda: list(islice(recording, LOT)))


def encode_line(payload: Payload) -> bytes:
    """A payload as one line of a recording, without the line end.

    Example:
        >>> from autoplay_rag.payloads import SummaryPayload
        >>> encode_line(SummaryPayload("acme", "s1", "Exported.", 1, 2.0))
        b'{"type":"summary","product_id":"acme","session_id":"s1","summary":"Exported.","replaces":1,"forwarded_at":2.0}'
    """
    return msgspec.json.encode(payload)


class RecordingWriter:
    """Writes a recording, one payload at a time.

    Each line is passed to the operating system at once. If the process is killed, the file is
    complete up to the last line written.

    Args:
        path: The file; created if it does not exist.
        append: Append to the file instead of replacing it. If its last line has no line end, one
            is added first.

    Attributes:
        count: How many payloads this writer has written.

    Raises:
        RecordingError: If `append` is given and the file is compressed or not in UTF-8.
        OSError: If the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, append: bool = False) -> None:
        if append and Path(path).is_file() and not is_plain(path):
            raise RecordingError(
                f"{os.fspath(path)}: cannot append to a file that is compressed or not in UTF-8; "
                "write another file"
            )
        mode: Literal["ab", "wb"] = "ab" if append else "wb"
        unended = append and _ends_within_a_line(Path(path))
        self._file: BinaryIO = Path(path).open(mode)  # noqa: SIM115 - close() closes it
        self.count = 0
        if unended:
            self._file.write(b"\n")

    def write(self, payload: Payload) -> None:
        """Write one payload as one line."""
        self._file.write(encode_line(payload) + b"\n")
        self._file.flush()
        self.count += 1

    def close(self) -> None:
        """Close the file. May be called more than once."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _ends_within_a_line(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return False
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def _numbered_lines(
    path: str | os.PathLike[str], on_error: OnError | None
) -> Iterator[tuple[int, bytes]]:
    with open_lines(path) as file:
        number = 0
        # Bounded, so that a file without line ends stays cheap.
        while line := file.readline(MAX_EVENT_BYTES):
            number += 1
            if len(line) >= MAX_EVENT_BYTES and not line.endswith(b"\n"):
                _skip_rest_of_line(file)
                reason = f"longer than {MAX_EVENT_BYTES} bytes, which no event is"
                _report(_error(path, number, reason), on_error)
                continue
            if line := line.strip():
                yield number, line


def _skip_rest_of_line(file: Lines) -> None:
    while (rest := file.readline(MAX_EVENT_BYTES)) and not rest.endswith(b"\n"):
        pass


def _error(path: str | os.PathLike[str], number: int, reason: object) -> RecordingError:
    return RecordingError(f"{os.fspath(path)}, line {number}: {reason}")


def _report(error: RecordingError, on_error: OnError | None) -> None:
    if on_error is None:
        raise error from None
    on_error(error)

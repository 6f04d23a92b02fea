"""Opens a JSON Lines file in any common encoding, as lines in UTF-8.

PowerShell 5 writes UTF-16 for `>`, and recordings are often shared compressed. The first bytes of
a file show its format. Only one line is held in memory.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from autoplay_rag._describe import describe
from autoplay_rag.errors import RecordingError

__all__ = ["Lines", "is_plain", "lines_of", "open_lines"]

_HEAD_BYTES: Final = 64
_BOM: Final = b"\xef\xbb\xbf"

_COMPRESSED: Final[dict[bytes, tuple[str, Callable[[Any], Any]]]] = {
    b"\x1f\x8b": ("gzip", gzip.open),
    b"BZh": ("bzip2", bz2.open),
    b"\xfd7zXZ\0": ("xz", lzma.open),
}
_REFUSED: Final = {
    b"PK\x03\x04": "a zip archive or an Office document",
    b"\x28\xb5\x2f\xfd": "compressed with Zstandard",
    b"\x04\x22\x4d\x18": "compressed with LZ4",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    b"PAR1": "a Parquet file",
    b"SQLite format 3\0": "an SQLite database, such as a journal",
    b"%PDF": "a PDF",
}
# UTF-32 before UTF-16, because its little-endian mark begins with the one of UTF-16.
_BOMS: Final = {
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
# Without a byte order mark, the zeros around an opening brace show the encoding.
_BRACES: Final = {
    b"{\0\0\0": "utf-32-le",
    b"\0\0\0{": "utf-32-be",
    b"{\0": "utf-16-le",
    b"\0{": "utf-16-be",
}
_Utf8Decoder: Final = codecs.getincrementaldecoder("utf-8")
_BROKEN: Final = (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error)


class Lines(Protocol):
    """The file that `open_lines` yields."""

    def readline(self, limit: int, /) -> bytes:
        """The next line, or `limit` characters of it; empty at the end."""


@contextmanager
def open_lines(path: str | os.PathLike[str]) -> Iterator[Lines]:
    """Open a file to read its lines in UTF-8, without a byte order mark.

    Supported are UTF-8, UTF-16 and UTF-32, each also compressed with gzip, bzip2 or xz.

    Args:
        path: The file.

    Raises:
        RecordingError: If the file is in another format that is not text; the message names it.
            Also while reading, if compressed data is damaged or cut off.
        OSError: If the file cannot be read.
    """
    with Path(path).open("rb") as raw, lines_of(raw, os.fspath(path)) as lines:
        yield lines


@contextmanager
def lines_of(raw: io.BufferedReader, name: str) -> Iterator[Lines]:
    """As `open_lines`, for an open file or a pipe.

    Args:
        raw: The file.
        name: Its name, for errors.

    Raises:
        RecordingError: As `open_lines`.
    """
    try:
        kind, decompress = _found(_COMPRESSED, _head(raw)) or ("", None)
        file = io.BufferedReader(decompress(raw)) if decompress else raw
        _refuse_what_is_no_text(file, name, kind)
        yield _text(file)
    except _BROKEN as error:
        raise RecordingError(f"{name}: damaged or cut-off data ({describe(error)})") from None


def is_plain(path: str | os.PathLike[str]) -> bool:
    """Whether UTF-8 lines can be appended to a file: it is UTF-8 text and not compressed."""
    with Path(path).open("rb") as file:
        head = file.read(_HEAD_BYTES)
    return _found(_COMPRESSED, head) is None and _encoding(head) is None and not _binary(head)


def _refuse_what_is_no_text(file: io.BufferedReader, name: str, kind: str) -> None:
    head = _head(file)
    what = _found(_REFUSED, head)
    if what is None and kind and _found(_COMPRESSED, head):
        what = "compressed once more"
    if what is None and _encoding(head) is None and _binary(head):
        what = "not text"
    if what is not None:
        this = f"what is inside this {kind} file" if kind else "this file"
        raise RecordingError(f"{name}: {this} is {what}; a recording is a file of JSON Lines")


def _text(file: io.BufferedReader) -> Lines:
    head = _head(file)
    encoding = _encoding(head)
    if encoding is not None:
        # newline="\n": JSON may contain other Unicode line ends, and a CR is white space.
        return _Reencoded(io.TextIOWrapper(file, encoding, errors="replace", newline="\n"))
    if head.startswith(_BOM):
        file.read(len(_BOM))
    return file


class _Reencoded:
    """Lines of another encoding, in UTF-8."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text

    def readline(self, limit: int, /) -> bytes:
        """As in `Lines`."""
        return self._text.readline(limit).encode("utf-8", "replace")


def _encoding(head: bytes) -> str | None:
    found: str | None = _found(_BOMS, head) or _found(_BRACES, head.lstrip(b"\r\n\t "))
    return found


def _binary(head: bytes) -> bool:
    """Whether it contains control characters, or is neither UTF-8 nor an 8-bit encoding."""
    if any(byte < 0x20 and byte not in b"\t\n\r\f\x1b" for byte in head):  # noqa: PLR2004 - ASCII controls
        return True
    try:
        _Utf8Decoder().decode(head)  # the head may end within a character
    except UnicodeDecodeError:
        try:
            head.decode("cp1252")  # a line that is not UTF-8 is reported when it is read
        except UnicodeDecodeError:
            return True
    return False


def _head(file: io.BufferedReader) -> bytes:
    """The first bytes, peeked and not read, because a pipe cannot seek back."""
    return file.peek(_HEAD_BYTES)[:_HEAD_BYTES]


def _found(table: dict[bytes, Any], head: bytes) -> Any:
    """The value of the first key that `head` begins with."""
    return next((value for key, value in table.items() if head.startswith(key)), None)

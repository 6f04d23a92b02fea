"""Reads JSON values from a file one by one: lines of JSON, a JSON array, or JSON over many lines.

Memory depends only on the longest value, not on the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from autoplay_rag.connector.encodings import Lines
from autoplay_rag.connector.sse import MAX_EVENT_BYTES

__all__ = ["read_records"]

_PIECE: Final = 1 << 20
_MARKS: Final = re.compile(rb'["{}\[\]]')
_STRING_END: Final = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*(")?', re.DOTALL)
_OPENING: Final = frozenset((b"{", b"["))
_CLOSING: Final = frozenset((b"}", b"]"))
_raw: Callable[[bytes], msgspec.Raw] = msgspec.json.Decoder(msgspec.Raw).decode


def read_records(lines: Lines, on_error: Callable[[str], None]) -> Iterator[bytes]:
    r"""Read the values of a file.

    In a file of lines, a line that is not JSON costs itself alone. In an array, the elements are the
    values.

    Args:
        lines: The file, from its beginning.
        on_error: Called with the place and the reason for each value that cannot be read. It is
            skipped.

    Yields:
        The JSON of each value. A line of JSON is only known to be JSON if the caller decodes it.

    Example:
        >>> import io
        >>> list(read_records(io.BytesIO(b'{"a": 1}\n{"a": 2}\n'), print))
        [b'{"a": 1}', b'{"a": 2}']
        >>> list(read_records(io.BytesIO(b'[{"a": 1}, {"a":\n[2, "]"]}]'), print))
        [b'{"a": 1}', b'{"a":\n[2, "]"]}']
    """
    first = _first_line(lines)
    second = b""
    if first[:1] == b"{" and not _is_json(first):
        # JSON over many lines, or a file of lines of which the first is broken.
        second = lines.readline(MAX_EVENT_BYTES)
    begun = [line for line in (first, second) if line]
    if first[:1] == b"[" or (first[:1] == b"{" and not any(map(_is_json, begun))):
        yield from _scanned(begun, lines, on_error)
    else:
        yield from _by_line(begun, lines, on_error)


def _first_line(lines: Lines) -> bytes:
    while line := lines.readline(MAX_EVENT_BYTES):
        if stripped := line.lstrip():
            return stripped
    return b""


def _is_json(line: bytes) -> bool:
    try:
        _raw(line)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return False
    return True


def _by_line(begun: list[bytes], lines: Lines, on_error: Callable[[str], None]) -> Iterator[bytes]:
    number = 0
    while line := begun.pop(0) if begun else lines.readline(MAX_EVENT_BYTES):
        number += 1
        if len(line) >= MAX_EVENT_BYTES and not line.endswith(b"\n"):
            while (rest := lines.readline(MAX_EVENT_BYTES)) and not rest.endswith(b"\n"):
                pass
            on_error(f"line {number}: longer than {MAX_EVENT_BYTES} bytes")
        elif line := line.strip():
            yield line


class _Scanner:
    """Finds the end of each value by counting brackets outside of strings."""

    def __init__(self) -> None:
        self.depth = 0
        self._base: int | None = None
        self._in_string = False
        self._escaped = False

    def ends(self, piece: bytes) -> Iterator[tuple[int, int]]:
        """Yield start and end of the parts of values in a piece; -1 for an end that is not in it."""
        at = 0
        start = 0 if self._base is not None and self.depth > self._base else -1
        while at < len(piece):
            if self._in_string:
                at = self._through_string(piece, at)
                continue
            found = _MARKS.search(piece, at)
            if found is None:
                break
            at = found.end()
            if self._opens(found[0]):
                start = found.start()
            elif self._closes(found[0]) and start >= 0:
                yield start, at
                start = -1
        if start >= 0:
            yield start, -1

    def _opens(self, mark: bytes) -> bool:
        """Take a mark in; whether a value begins with it."""
        if mark == b'"':
            self._in_string = True
        if mark not in _OPENING:
            return False
        if self._base is None:
            # The elements of the outermost array are the values, or the object is.
            self._base = 1 if mark == b"[" else 0
        self.depth += 1
        return self.depth == self._base + 1

    def _closes(self, mark: bytes) -> bool:
        """Take a mark in; whether a value ends with it."""
        if mark not in _CLOSING or self._base is None or not self.depth:
            return False
        self.depth -= 1
        return self.depth == self._base

    def _through_string(self, piece: bytes, at: int) -> int:
        if self._escaped:
            self._escaped = False
            at += 1
        found = _STRING_END.match(piece, at)
        assert found is not None
        if found[1]:
            self._in_string = False
            return found.end()
        # The string goes on in the next piece, perhaps after a backslash.
        self._escaped = found.end() < len(piece)
        return len(piece)


def _scanned(begun: list[bytes], lines: Lines, on_error: Callable[[str], None]) -> Iterator[bytes]:
    scanner = _Scanner()
    value = bytearray()
    number = 1
    is_long = False
    while piece := begun.pop(0) if begun else lines.readline(_PIECE):
        for start, end in scanner.ends(piece):
            part = piece[start : end if end >= 0 else None]
            is_long = is_long or len(value) + len(part) > MAX_EVENT_BYTES
            if is_long:
                value.clear()
            else:
                value += part
            if end >= 0:
                if is_long:
                    on_error(f"value {number}: longer than {MAX_EVENT_BYTES} bytes")
                else:
                    yield bytes(value)
                value.clear()
                is_long = False
                number += 1
    if value or is_long:
        on_error(f"value {number}: has no end, so nothing after its beginning was read")

"""A guard in front of the event parser: bytes in, bytes out, no I/O.

httpx-sse turns lines into events. What it leaves open when the other side is broken or hostile
is settled here, before it sees a byte:

- an event larger than the limit is skipped to its end and counted, and neither it nor an endless
  line is kept in memory;
- one byte order mark at the start is dropped (it would cost the first event);
- CR and CRLF become LF, also where they are split between two reads, so that an event is
  complete with its last byte and not with the first of the next;
- a `retry:` that is not all ASCII digits is dropped (`int` would accept `1_000`);
- only whole events are passed on, so that no multi-byte character is ever split and an event
  that was cut off does not appear.

The event stream format: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

__all__ = ["MAX_EVENT_BYTES", "EventGuard"]

MAX_EVENT_BYTES: Final = 8_388_608
"""The largest event taken by default, whichever way it comes: by stream, by webhook, from a file."""

_BOM: Final = b"\xef\xbb\xbf"
_BAD_RETRY: Final = re.compile(rb"^retry(?!: ?[0-9]+$)(?::.*)?\n", re.MULTILINE)


class EventGuard:
    """Passes on the whole, well-sized events among the bytes fed to it.

    Args:
        max_event_bytes: The most bytes of one event, line ends included.
        on_oversize: Called for each event that is skipped for its size.

    Attributes:
        clean: Whether the next byte begins an event, and nothing before it is open.

    Example:
        >>> guard = EventGuard(1000, on_oversize=lambda: None)
        >>> guard.feed(b"data: 1" + bytes([13, 10]))
        b''
        >>> guard.feed(bytes([13])) == b"data: 1" + bytes([10, 10])
        True
    """

    def __init__(self, max_event_bytes: int, on_oversize: Callable[[], None]) -> None:
        self._on_oversize = on_oversize
        self._limit = max_event_bytes
        self._held = bytearray()  # the start of an event whose end has not come
        self.clean = False
        self._at_start = True
        self._after_cr = False
        self._skipping = False
        self._line_open = False  # while skipping: whether the last byte was not a line end

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes of the stream.

        Returns:
            The events that are now complete, with LF line ends.
        """
        if self._at_start:
            chunk = self._without_bom(chunk)
        if self._after_cr or b"\r" in chunk:
            chunk = self._with_lf(chunk)
        whole = self._assemble(chunk)
        self.clean = not (self._held or self._skipping or self._after_cr or self._at_start)
        return _without_bad_retry(whole)

    def _without_bom(self, chunk: bytes) -> bytes:
        start = bytes(self._held) + chunk
        self._held.clear()
        if len(start) < len(_BOM) and _BOM.startswith(start):
            self._held += start
            return b""
        self._at_start = False
        return start.removeprefix(_BOM)

    def _with_lf(self, chunk: bytes) -> bytes:
        if not chunk:
            return chunk
        if self._after_cr and chunk.startswith(b"\n"):
            chunk, self._after_cr = chunk[1:], False
            if not chunk:
                return chunk
        self._after_cr = chunk.endswith(b"\r")
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _assemble(self, chunk: bytes) -> bytes:
        """Whole events from what is held and `chunk`; the rest is held."""
        if len(self._held) + len(chunk) > self._limit or self._skipping:
            return self._assemble_bounded(chunk)
        if not self._held:
            chunk = chunk.lstrip(b"\n")  # blank lines between events
        end = chunk.rfind(b"\n\n") + 2
        if end == 1:  # not found, but the blank line may have been split
            end = int(chunk.startswith(b"\n") and self._held.endswith(b"\n"))
        whole = b""
        if end:
            whole = bytes(self._held) + chunk[:end] if self._held else chunk[:end]
            self._held.clear()
        self._hold(chunk[end:])
        return whole

    def _assemble_bounded(self, chunk: bytes) -> bytes:
        """As `_assemble`, event by event, because one of them may be too large."""
        whole = bytearray()
        start = 0
        while start < len(chunk):
            end = self._end_of_event(chunk, start)
            piece = chunk[start : end or len(chunk)]
            if self._skipping:
                self._skipping = not end
            else:
                self._hold(piece)
                if len(self._held) > self._limit:
                    self._on_oversize()
                    self._held.clear()
                    self._skipping = not end
                elif end:
                    whole += self._held
                    self._held.clear()
            self._line_open = not piece.endswith(b"\n")
            start = end or len(chunk)
        return bytes(whole)

    def _end_of_event(self, chunk: bytes, start: int) -> int:
        """The index after the event's blank line; 0 if it is not in `chunk`."""
        inside = not self._line_open if self._skipping else self._held.endswith(b"\n")
        empty = not self._skipping and not self._held
        if chunk.startswith(b"\n", start) and (inside or empty):
            return start + 1
        found = chunk.find(b"\n\n", start)
        return found + 2 if found >= 0 else 0

    def _hold(self, piece: bytes) -> None:
        self._held += piece
        # Comments keep a connection alive: they must not add up while no event comes.
        while self._held.startswith(b":"):
            end = self._held.find(b"\n") + 1
            if not end:
                del self._held[1:]  # that it is a comment is all that matters of this line
                return
            del self._held[:end]


def _without_bad_retry(events: bytes) -> bytes:
    if b"\nretry" in events or events.startswith(b"retry"):
        return _BAD_RETRY.sub(b"", events)
    return events

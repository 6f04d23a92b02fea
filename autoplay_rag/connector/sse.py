"""Parses bytes into server-sent events, as the WHATWG specifies. No I/O.

https://html.spec.whatwg.org/multipage/server-sent-events.html

Further rules, for broken or hostile senders:

- An event larger than the limit is skipped to its end and counted. Neither it nor an endless line
  is kept in memory.
- A CR ends its line at once, even if its LF arrives only with the next read. So an event is
  complete with its last byte.
- An event that was cut off is discarded, with its id.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, TypeAlias

from httpx_sse import ServerSentEvent

__all__ = ["MAX_EVENT_BYTES", "Event", "EventParser"]

MAX_EVENT_BYTES: Final = 8_388_608
"""The largest event accepted by default, by stream, by webhook and from a file."""

Event: TypeAlias = bytes | ServerSentEvent
"""An event with one line of data and no other field is given as that data, undecoded. Nearly every
event of a connector is one, and a `ServerSentEvent` would cost as much as decoding the payload."""

_BOM: Final = b"\xef\xbb\xbf"
_COLON: Final = 0x3A
_DATA: Final = b"data: "


class EventParser:
    """Turns the bytes of one connection into events.

    Args:
        last_event_id: The id the connection resumes after. An id stays valid across connections.
        max_event_bytes: The most bytes of one event, including line ends, without comments.
        on_oversize: Called for each event that is skipped for its size.

    Attributes:
        last_event_id: The id of the last complete event with an id, including events without data.

    Example:
        >>> parser = EventParser("", max_event_bytes=1000, on_oversize=lambda: None)
        >>> parser.feed(b"id: 7" + bytes([10]) + b"da"), parser.feed(b"ta: 1" + bytes([10, 10]))
        ([], [ServerSentEvent(event='message', data='1', id='7')])
        >>> parser.feed(b"data: 2" + bytes([10, 10]))
        [b'2']
    """

    def __init__(
        self, last_event_id: str, *, max_event_bytes: int, on_oversize: Callable[[], None]
    ) -> None:
        self.last_event_id = last_event_id
        self._limit = max_event_bytes
        self._on_oversize = on_oversize
        self._at_start = True
        self._after_cr = False
        self._line = bytearray()  # the incomplete line
        self._skipping = False  # whether the rest of a too large event is being skipped
        # The incomplete event: the size of its lines, and its fields.
        self._size = 0
        self._data: list[bytes] = []
        self._name: bytes | None = None
        self._id: str | None = None
        self._retry: int | None = None

    def feed(self, chunk: bytes) -> list[Event]:
        """Take the next bytes of the connection.

        Returns:
            The events that are now complete. Unlike a browser's, they include events without
            data, which may hold an id or a `retry`.
        """
        if self._at_start:
            chunk = self._without_bom(chunk)
        if self._after_cr or b"\r" in chunk:
            chunk = self._with_lf(chunk)
        events: list[Event] = []
        if b"\n" in chunk:
            if self._line:
                chunk = b"".join((self._line, chunk))
                self._line.clear()
            if not (self._size or self._skipping):
                chunk = self._take_plain(chunk, events)
            if b"\n" in chunk:
                *lines, chunk = chunk.split(b"\n")
                self._take_lines(lines, events)
        if chunk:
            self._hold(chunk)
        return events

    def _take_plain(self, chunk: bytes, events: list[Event]) -> bytes:
        """Take events of one line of data from the start of a read, and return the rest of it.

        Nearly all events are such. To search for one byte is the fastest that Python has:
        splitting takes three times as long.
        """
        begin = 0
        while (end := chunk.find(b"\n", begin)) >= 0:
            if not (
                chunk.startswith(_DATA, begin)
                and chunk.startswith(b"\n", end + 1)
                and end + 2 - begin <= self._limit
            ):
                break
            events.append(chunk[begin + len(_DATA) : end])
            begin = end + 2
        return chunk[begin:]

    def _take_lines(self, lines: Sequence[bytes], events: list[Event]) -> None:
        for line in lines:
            if line:
                self._take_line(line)
            elif (event := self._end_event()) is not None:
                events.append(event)

    def _without_bom(self, chunk: bytes) -> bytes:
        start = bytes(self._line) + chunk
        self._line.clear()
        if len(start) < len(_BOM) and _BOM.startswith(start):
            self._line += start
            return b""
        self._at_start = False
        return start.removeprefix(_BOM)

    def _with_lf(self, chunk: bytes) -> bytes:
        if not chunk:
            return chunk
        if self._after_cr:
            chunk = chunk.removeprefix(b"\n")
        self._after_cr = chunk.endswith(b"\r")
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _hold(self, rest: bytes) -> None:
        """Keep the start of a line. Of a line that will be ignored, one byte is enough."""
        self._line += rest
        if self._skipping or self._line[0] == _COLON:
            del self._line[1:]
        elif self._size + len(self._line) > self._limit:
            self._skip()
            del self._line[1:]

    def _take_line(self, line: bytes) -> None:
        if self._skipping or line[0] == _COLON:
            return
        self._size += len(line) + 1
        if self._size > self._limit:
            self._skip()
            return
        if line.startswith(_DATA):
            self._data.append(line[len(_DATA) :])
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._name = value
        elif name == b"id":
            if b"\0" not in value:
                self._id = value.decode("utf-8", "replace")
        elif name == b"retry" and value.isdigit():
            with suppress(ValueError):  # Python refuses to read thousands of digits
                self._retry = int(value)

    def _end_event(self) -> Event | None:
        """The event that a blank line ends; None if it has no field, or is skipped."""
        if not self._size:  # no field, only comments, or the end of a skipped event
            self._skipping = False
            return None
        if self._size + 1 > self._limit:
            self._skip()
            self._skipping = False
            return None
        if self._name is None and self._id is None and self._retry is None:
            if len(self._data) == 1:
                self._size = 0
                return self._data.pop()
            if not self._data:  # only fields with unknown names
                self._size = 0
                return None
        event = self._message()
        self._begin_event()
        return event

    def _message(self) -> ServerSentEvent:
        if self._id is not None:
            self.last_event_id = self._id
        return ServerSentEvent(
            event=(self._name or b"").decode("utf-8", "replace"),
            data=b"\n".join(self._data).decode("utf-8", "replace"),
            id=self.last_event_id,
            retry=self._retry,
        )

    def _skip(self) -> None:
        self._on_oversize()
        self._begin_event()
        self._skipping = True

    def _begin_event(self) -> None:
        self._size = 0
        self._data = []
        self._name = self._id = self._retry = None

"""Bytes to events: httpx-sse behind the guard. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeAlias

import httpx
from httpx_sse import EventSource, ServerSentEvent

from autoplay_rag.connector.framing import EventGuard
from autoplay_rag.errors import ConnectorError

__all__ = ["Event", "EventParser"]

Event: TypeAlias = bytes | ServerSentEvent
"""A read that is one whole event of one line of data gives that data: nearly every read of a
connector's stream is one, and the general way costs as much as decoding the payload."""

# By the format a block without data is no event. This is no JSON: no connector's event is like it.
_PROBE_DATA: Final = "probe"
_PROBE: Final = f"data: {_PROBE_DATA}\n\n"


class EventParser:
    """Turns what is read from one connection into events.

    Args:
        last_event_id: The id the connection resumes after; an id outlives its connection.
        max_event_bytes: See `EventGuard`; so for `on_oversize`.

    Attributes:
        last_event_id: The last id so far, that of blocks without data included.

    Example:
        >>> parser = EventParser("", max_event_bytes=1000, on_oversize=lambda: None)
        >>> parser.feed(b"id: 7" + bytes([10]) + b"da"), parser.feed(b"ta: 1" + bytes([10, 10]))
        ((), [ServerSentEvent(event='message', data='1', id='7')])
        >>> parser.feed(b"data: 2" + bytes([10, 10]))
        (b'2',)
    """

    def __init__(
        self, last_event_id: str, *, max_event_bytes: int, on_oversize: Callable[[], None]
    ) -> None:
        self.last_event_id = last_event_id
        self._limit = max_event_bytes
        self._guard = EventGuard(max_event_bytes, on_oversize)
        self._text = _Text()
        self._source = EventSource(self._text)

    def feed(self, chunk: bytes) -> Sequence[Event]:
        """Take the next bytes of the connection.

        Returns:
            The events that are now complete. A block without data, an id alone say, may come as
            an event with empty data.

        Raises:
            ConnectorError: If httpx-sse does not give back what it was given.
        """
        if (
            chunk.startswith(b"data: ")
            and chunk.find(b"\n") == len(chunk) - 2
            and chunk.endswith(b"\n")
            and b"\r" not in chunk
            and len(chunk) <= self._limit
            and self._guard.clean
        ):
            return (chunk[6:-2],)
        whole = self._guard.feed(chunk)
        return self._parse(whole) if whole else ()

    def _parse(self, whole: bytes) -> Sequence[ServerSentEvent]:
        # The parser begins with no id and tells one only with an event: so the last one is given
        # to it in an event before, and asked for in an event behind.
        seed = f"id: {self.last_event_id}\n{_PROBE}" if self.last_event_id else ""
        # Whole events only: what is no UTF-8 in one of them stays in it.
        self._text.now = seed + whole.decode("utf-8", "replace") + _PROBE
        *events, probe = self._source.iter_sse()
        # What is no probe is an event of the connector's, which must not be lost in silence.
        if probe.data != _PROBE_DATA or (seed and (not events or events[0].data != _PROBE_DATA)):
            raise ConnectorError("httpx-sse did not give back the events put around what was read")
        self.last_event_id = probe.id
        return events[1:] if seed else events


class _Text(httpx.Response):
    """What `EventSource` reads from: text that is there already, UTF-8 whatever was declared."""

    now = ""

    def __init__(self) -> None:
        super().__init__(200, headers={"Content-Type": "text/event-stream"})

    def iter_text(self, chunk_size: int | None = None) -> Iterator[str]:  # noqa: ARG002 - httpx's signature
        return iter((self.now,))

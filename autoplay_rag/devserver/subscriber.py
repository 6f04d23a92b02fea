"""One subscriber's stream: the recording at a given pace, pushed events and heartbeats."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import suppress

from autoplay_rag.devserver.pace import Pace
from autoplay_rag.devserver.source import Source

__all__ = ["HEARTBEAT", "Subscriber", "frame"]

HEARTBEAT = b"event: heartbeat\ndata:\n\n"
WAITING_LIMIT = 256
"""The most pushed events pending for one subscriber, as in the real connector."""
_PIECE_BYTES = 65_536


def frame(line: bytes) -> bytes:
    """Return an event in its wire format."""
    # A bare carriage return would end the line. JSON contains it only between values.
    return b"data: " + line.replace(b"\r", b" ") + b"\n\n"


class Subscriber:
    """The content of one response.

    Args:
        source: The recording to replay.
        pace: The pace of the replay.
        heartbeat: Seconds between heartbeats; None sends none.
        loop: Start again at the end of the recording.
    """

    def __init__(self, source: Source, pace: Pace, *, heartbeat: float | None, loop: bool) -> None:
        self._source = source
        self._lines = source.lines()
        self._pace = pace
        self._heartbeat = heartbeat
        self._loop = loop
        self._pushed: deque[bytes] = deque()
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._ended = False

    async def push(self, line: bytes) -> bool:
        """Queue one event. Waits while the queue is full.

        Returns:
            Whether the event was queued; False if the subscriber has left.
        """
        while len(self._pushed) >= WAITING_LIMIT and not self._ended:
            self._room.clear()
            await self._room.wait()
        if self._ended:
            return False
        self._pushed.append(line)
        self._news.set()
        return True

    def end(self) -> None:
        """End the stream at the next event. May be called more than once."""
        self._ended = True
        self._news.set()
        self._room.set()

    async def stream(self) -> AsyncGenerator[bytes]:
        """Yield the response's body in blocks of whole events, until `end`."""
        clock = asyncio.get_running_loop().time
        started = clock()
        next_beat = started + self._heartbeat if self._heartbeat else float("inf")
        lot: deque[bytes] = deque()
        sent, over = 0, False
        while not self._ended:
            if clock() >= next_beat:
                next_beat = clock() + (self._heartbeat or 0)
                yield HEARTBEAT
            if self._pushed:
                yield _piece(self._pushed, len(self._pushed))[0]
                self._room.set()
            if not lot and not over:
                lot.extend(await self._take())
                over = not lot
            allowed = min(len(lot), self._pace.allowed(clock() - started, sent))
            if allowed:
                piece, count = _piece(lot, allowed)
                sent += count
                yield piece
            elif over:
                await self._wait(next_beat - clock())
            else:
                due_in = self._pace.due_in(clock() - started, sent)
                await self._wait(min(next_beat - clock(), due_in))

    async def _take(self) -> list[bytes]:
        """Return the next recorded lines; an empty list if no more will follow."""
        lot = await self._source.take(self._lines)
        if not lot and self._loop:
            self._lines = self._source.lines()
            lot = await self._source.take(self._lines)
        return lot

    async def _wait(self, seconds: float) -> None:
        """Wait until an event is pushed, or the next recorded event or heartbeat is due."""
        if self._pushed or self._ended:
            return
        self._news.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(None if seconds == float("inf") else seconds):
                await self._news.wait()


def _piece(lines: deque[bytes], allowed: float) -> tuple[bytes, int]:
    """Take at most `allowed` lines, until a write of 64 KiB is full."""
    frames: list[bytes] = []
    size = 0
    while len(frames) < allowed and size < _PIECE_BYTES:
        frames.append(frame(lines.popleft()))
        size += len(frames[-1])
    return b"".join(frames), len(frames)

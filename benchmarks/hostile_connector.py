"""A connector that injects faults, in its own process.

    python -m benchmarks.hostile_connector RATE SESSIONS SEED

It prints its address and serves until it is terminated.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import suppress

from benchmarks.soak import POISONED
from benchmarks.streams import events

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
GARBAGE = (
    b"data: {broken\n\n",
    b'data: {"type": "not invented yet"}\n\n',
    b"data: [1, 2]\n\n",
    b": a comment\n\n",
    b"event: heartbeat\ndata:\n\n",
    b'data: {"type": "actions", "actions": 5, "session_id": {"a": NaN}}\n\n',
    b"data: " + b"[" * 100_000 + b"\n\n",
)
TICK = 0.02
CUT_SECONDS = 5.0
"""Mean lifetime of a connection."""
REPEATED = 50
"""Events repeated to each new connection."""


class HostileConnector:
    """One stream for the current connection. Unread events are lost, as with the real connector."""

    def __init__(self, rate: float, sessions: int, seed: int) -> None:
        self._rate = rate
        self._often = 1 / rate / CUT_SECONDS
        self._chance = random.Random(seed)
        self._events = self._blocks(sessions)
        self._last: deque[bytes] = deque(maxlen=REPEATED)
        self._writer: asyncio.StreamWriter | None = None

    def _blocks(self, sessions: int) -> Iterator[bytes]:
        chance = self._chance
        for event in events(2**62, sessions):
            event["session_id"] = f"session-{chance.randrange(sessions):06}"
            if chance.random() < 0.0002:
                event["actions"][0]["description"] = POISONED
            yield b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"

    async def serve(self) -> None:
        """Serve until cancelled."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        print(f"http://127.0.0.1:{port}/stream/bench", flush=True)
        loop = asyncio.get_running_loop()
        due = loop.time()
        owed = 0.0
        while True:
            due += TICK
            owed += self._rate * TICK
            count, owed = int(owed), owed % 1
            for _ in range(count):
                await self._send(next(self._events))
            await asyncio.sleep(max(0.0, due - loop.time()))

    async def _connected(self, reader, writer) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            if self._chance.random() < 0.2:
                writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
                writer.close()
                return
            writer.write(HEAD + b"".join(self._last))
            if self._writer is not None:
                self._writer.transport.abort()
            self._writer = writer

    async def _send(self, block: bytes) -> None:
        self._last.append(block)
        writer, luck = self._writer, self._chance.random()
        if writer is None or writer.is_closing():
            return
        if luck < self._often:
            self._cut(writer, block)
            return
        if luck < 2 * self._often:
            await asyncio.sleep(self._chance.uniform(0.1, 2.0))  # a stall, then a burst
        if luck > 0.998:
            writer.write(self._chance.choice(GARBAGE))
        if luck > 0.993:
            writer.write(block)
        writer.write(block)

    def _cut(self, writer: asyncio.StreamWriter, block: bytes) -> None:
        """Close in the middle of an event, with FIN or RST."""
        writer.write(block[: self._chance.randrange(len(block))])
        if self._chance.random() < 0.5:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        else:
            writer.close()
        self._writer = None


if __name__ == "__main__":
    rate, sessions, seed = sys.argv[1:]
    with suppress(KeyboardInterrupt):
        asyncio.run(HostileConnector(float(rate), int(sessions), int(seed)).serve())

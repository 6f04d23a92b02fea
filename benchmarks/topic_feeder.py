"""Sends events to a topic through a relay, which keeps each until the journal has it."""

from __future__ import annotations

import asyncio
import heapq
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from autoplay_rag.kafka.address import TopicAddress
from autoplay_rag.kafka.admin import TopicAdmin
from autoplay_rag.kafka.messages import payload_of as payload_in
from autoplay_rag.kafka.settings import ClientSettings
from autoplay_rag.relay import Relay
from benchmarks.replica import payload_of
from benchmarks.replicas import Server

_TICK_SECONDS = 0.01
_POLL_SECONDS = 5.0


class Feeder:
    """A relay and a topic, which is created at the start.

    Args:
        server: The database with the offsets of the topic's readers.
        schema: The schema of their journal.
        address: The topic and the group that reads it.
        partitions: How many partitions the topic gets.

    Attributes:
        address: As above.
        most_kept: The most events that the relay kept at once.
    """

    def __init__(self, server: Server, schema: str, address: TopicAddress, partitions: int) -> None:
        self.address = address
        self.most_kept = 0
        self._partitions = partitions
        self._settings = ClientSettings({}, {})
        self._folder = tempfile.TemporaryDirectory(prefix="autoplay-relay-")
        self._relay = Relay(
            address,
            outbox=Path(self._folder.name) / "outbox.db",
            settings=self._settings,
            partitions=partitions,
            postgres=server.dsn,
            schema=schema,
        )

    async def __aenter__(self) -> Self:
        await TopicAdmin(self.address, self._settings).create(self._partitions)
        await self._relay.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._relay.aclose()
        self._folder.cleanup()

    @property
    def delivered(self) -> int:
        """How many messages the broker has taken, and the journal too."""
        return self._relay.counts.delivered

    async def run(self, sessions: int, count: int, interval: float) -> None:
        """Send `count` events of each session, and wait until the journal has all of them."""
        began = time.monotonic()
        events = _schedule(sessions, count, interval)
        upcoming = next(events, None)
        while upcoming is not None or self._kept:
            due = []
            while upcoming is not None and began + upcoming[0] <= time.monotonic():
                due.append(payload_of(upcoming[1], upcoming[2]))
                upcoming = next(events, None)
            await asyncio.gather(*map(self._relay.on_actions, due))
            self.most_kept = max(self.most_kept, self._kept)
            await asyncio.sleep(_TICK_SECONDS)

    @property
    def _kept(self) -> int:
        counts = self._relay.counts
        if counts.overflow or counts.dead:
            raise RuntimeError(f"the relay has lost payloads: {counts}")
        return counts.waiting + counts.unread

    def parts(self, sessions: int) -> dict[str, int]:
        """Return the partition of each session, as the topic has it. Blocks."""
        found: dict[str, int] = {}
        consumer = Consumer({"bootstrap.servers": self.address.bootstrap, "group.id": "parts"})
        try:
            consumer.assign(
                [
                    TopicPartition(self.address.topic, part, OFFSET_BEGINNING)
                    for part in range(self._partitions)
                ]
            )
            while len(found) < sessions:
                messages = consumer.consume(1_000, _POLL_SECONDS)
                if not messages:
                    raise RuntimeError(f"the topic has {len(found)} of {sessions} sessions")
                for message in messages:
                    if message.error() is not None:  # a topic made anew may have fewer partitions
                        continue
                    found[str(payload_in(message.value()).session_id)] = message.partition()
        finally:
            consumer.close()
        return found


def _schedule(sessions: int, count: int, interval: float) -> Iterator[tuple[float, str, int]]:
    """Yield the events of all sessions in the order of their times."""

    def of(number: int) -> Iterator[tuple[float, str, int]]:
        start = random.Random(number).uniform(0, interval)
        return ((start + one * interval, f"s{number}", one) for one in range(count))

    return heapq.merge(*map(of, range(sessions)))

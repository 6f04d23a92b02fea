"""Sends events to a topic, and keeps each until the journal has it.

This is what a relay does, in short: after a broker lost its topic, everything that the journal does
not have is sent again, in its order.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import psycopg
from confluent_kafka import KafkaError, KafkaException, Producer

from autoplay_rag.errors import BrokerError
from autoplay_rag.kafka.address import TopicAddress
from autoplay_rag.kafka.admin import TopicAdmin
from autoplay_rag.kafka.messages import message_of
from autoplay_rag.kafka.settings import ClientSettings
from benchmarks.replica import payload_of
from benchmarks.replicas import Server

_LOOK_SECONDS = 0.5
_TICK_SECONDS = 0.01


@dataclass(slots=True)
class _Sent:
    """An event, and where the broker has put it."""

    session: str
    number: int
    topic_id: str = ""
    part: int = -1
    offset: int = -1


@dataclass
class Feeder:
    """Sends the events of all sessions at fixed times.

    Args:
        server: The database with the offsets.
        schema: The schema of the journal.
        address: The topic and the group that reads it.
        partitions: How many partitions the topic gets.

    Attributes:
        parts: The partition of each session.
        sends: How many messages were sent.
        most_kept: The most events that were kept at once.
    """

    server: Server
    schema: str
    address: TopicAddress
    partitions: int
    parts: dict[str, int] = field(default_factory=dict)
    sends: int = 0
    most_kept: int = 0

    def __post_init__(self) -> None:
        self._admin = TopicAdmin(self.address, ClientSettings({}, {}), timeout=2.0)
        self._topic_id = ""
        self._kept: list[_Sent] = []
        self._broken = False
        self._producer: Producer

    async def begin(self) -> None:
        """Create the topic."""
        await self._admin.create(self.partitions)
        found = await self._admin.describe()
        assert found is not None
        self._topic_id = found.id
        self._make_producer()

    async def run(self, sessions: int, count: int, interval: float) -> None:
        """Send `count` events of each session, and wait until the journal has all of them."""
        look_at = 0.0
        began = time.monotonic()
        events = _schedule(sessions, count, interval)
        upcoming = next(events, None)
        while upcoming is not None or self._kept:
            now = time.monotonic()
            while upcoming is not None and began + upcoming[0] <= now:
                event = _Sent(upcoming[1], upcoming[2])
                self._kept.append(event)
                self._send(event)
                upcoming = next(events, None)
            self.most_kept = max(self.most_kept, len(self._kept))
            try:
                self._producer.poll(0)
            except KafkaException:  # one that lost its topic never recovers
                self._broken = True
            if now >= look_at:
                look_at = now + _LOOK_SECONDS
                await self._look()
            await asyncio.sleep(_TICK_SECONDS)

    async def _look(self) -> None:
        """Send everything again after a loss, and forget what the journal has."""
        try:
            topic = await self._admin.describe()
            if topic is None:
                await self._admin.create(self.partitions)
                topic = await self._admin.describe()
        except BrokerError:
            return
        if topic is None:
            return
        if topic.id != self._topic_id or self._broken:
            self._topic_id, self._broken = topic.id, False
            self._make_producer()
            for event in self._kept:
                event.topic_id, event.offset = "", -1
                self._send(event)
        try:
            rows = await asyncio.to_thread(
                self.server.run,
                f"SELECT part, topic_id, next_offset FROM {self.schema}.topic_offset "
                "WHERE topic = %s AND group_name = %s",
                self.address.topic,
                self.address.group,
            )
        except psycopg.Error:
            return
        taken_in = {(part, topic_id): offset for part, topic_id, offset in rows}
        self._kept = [
            event
            for event in self._kept
            if not 0 <= event.offset < taken_in.get((event.part, event.topic_id), -1)
        ]

    def _make_producer(self) -> None:
        """Each topic gets a producer of its own: one whose topic is lost never recovers."""
        self._producer = Producer(
            {
                "bootstrap.servers": self.address.bootstrap,
                "enable.idempotence": True,
                "enable.gapless.guarantee": True,
                "message.timeout.ms": 10_000,
                "linger.ms": 5,
                "log_level": 0,
                "partitioner": "murmur2_random",
            }
        )

    def _send(self, event: _Sent) -> None:
        if self._broken:
            return
        message = message_of(payload_of(event.session, event.number))
        report = partial(self._delivered, event, self._producer, self._topic_id)
        self.sends += 1
        try:
            self._producer.produce(
                self.address.topic, message.value, message.key,
                headers=list(message.headers), on_delivery=report,
            )  # fmt: skip
        except (BufferError, KafkaException):
            self._broken = True

    def _delivered(
        self,
        event: _Sent,
        producer: Producer,
        topic_id: str,
        error: KafkaError | None,
        sent: object,
    ) -> None:
        if producer is not self._producer:
            return
        if error is not None:
            self._broken = True
            return
        event.topic_id = topic_id
        event.part, event.offset = sent.partition(), sent.offset()  # type: ignore[attr-defined]
        self.parts[event.session] = event.part


def _schedule(sessions: int, count: int, interval: float) -> Iterator[tuple[float, str, int]]:
    """Yield the events of all sessions in the order of their times."""

    def of(number: int) -> Iterator[tuple[float, str, int]]:
        start = random.Random(number).uniform(0, interval)
        return ((start + one * interval, f"s{number}", one) for one in range(count))

    return heapq.merge(*map(of, range(sessions)))

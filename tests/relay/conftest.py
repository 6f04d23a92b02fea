"""Relays to the broker of the tests, and what arrives in their topics."""

import asyncio
import time
from contextlib import suppress

import pytest
from pull_server import server  # noqa: F401 - a fixture

from autoplay_rag.kafka.address import TopicAddress
from autoplay_rag.kafka.messages import payload_of
from autoplay_rag.kafka.settings import ClientSettings
from autoplay_rag.relay import Relay

QUICK = {"message.timeout.ms": "2000", "reconnect.backoff.max.ms": "500"}
"""Settings with which a failure is noticed within two seconds."""


class Reader:
    """Reads a topic from its start, also when it is made anew."""

    def __init__(self, bootstrap, topic):
        self._settings = {
            "bootstrap.servers": bootstrap,
            "group.id": "reader",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "log_level": 0,
        }
        self._topic = topic

    def read(self, until, seconds=60):
        """Return the messages, once `until(messages)` is true."""
        from confluent_kafka import Consumer, TopicPartition

        consumer = Consumer(self._settings)
        found = []
        end = time.monotonic() + seconds
        try:
            consumer.assign([TopicPartition(self._topic, part, 0) for part in range(6)])
            while not until(found):
                assert time.monotonic() < end, f"only {len(found)} messages came"
                found += [one for one in consumer.consume(500, 0.1) if one.error() is None]
        finally:
            consumer.close()
        return found

    async def messages(self, until, seconds=60):
        """As `read`, beside the event loop."""
        return await asyncio.to_thread(self.read, until, seconds)

    async def payloads(self, count):
        """Return the payloads once so many different ones are there, in the order of each session.

        Those that are there more than once are left out, as a pipeline does.
        """
        found = await self.messages(lambda some: len({one.value() for one in some}) >= count)
        return [payload_of(value) for value in dict.fromkeys(one.value() for one in found)]


@pytest.fixture
def reader(broker, topic):
    return Reader(broker.bootstrap, topic)


@pytest.fixture
def make_relay(broker, topic, tmp_path):
    """Make relays to the test's topic, with an outbox of their own."""

    def make(name="relay.db", *, settings=None, group="", **options):
        return Relay(
            TopicAddress(broker.bootstrap, topic, group),
            outbox=tmp_path / name,
            settings=ClientSettings({**QUICK, **(settings or {})}, {}),
            **options,
        )

    return make


@pytest.fixture
def restarted(broker):
    """Have the broker running again at the end of a test that stops it."""
    yield broker
    with suppress(OSError):
        broker.kill()
    broker.start()

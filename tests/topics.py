"""Topics with messages, for tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from autoplay_rag.kafka.messages import message_of
from autoplay_rag.payloads import Payload


def create(broker, topic: str, partitions: int = 1, **config: Any) -> None:
    """Create a topic; `retention_ms=1000` is its setting `retention.ms`."""
    client = AdminClient({"bootstrap.servers": broker.bootstrap, "log_level": 0})
    given = {name.replace("_", "."): str(value) for name, value in config.items()}
    made = client.create_topics([NewTopic(topic, partitions, config=given)])
    made[topic].result(20)


def send(
    broker, topic: str, things: Iterable[Payload | bytes], partition: int | None = None
) -> None:
    """Send payloads, or the values of messages, and wait until the broker has them."""
    producer = Producer({"bootstrap.servers": broker.bootstrap, "linger.ms": 0, "log_level": 0})
    where = {} if partition is None else {"partition": partition}
    for one in things:
        if isinstance(one, bytes):
            producer.produce(topic, one, **where)
        else:
            message = message_of(one)
            producer.produce(topic, message.value, message.key, headers=[*message.headers], **where)
    assert producer.flush(20) == 0

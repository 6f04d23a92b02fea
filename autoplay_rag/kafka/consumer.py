"""The member of a consumer group: confluent-kafka's, and what this package needs of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException, TopicPartition
from confluent_kafka.aio import AIOConsumer

from autoplay_rag.cluster.topic_rows import UNREAD, Held
from autoplay_rag.kafka.address import TopicAddress
from autoplay_rag.kafka.settings import ClientSettings, explained

__all__ = [
    "Consumer",
    "MakeConsumer",
    "OnTrouble",
    "close",
    "make_consumer",
    "read_some",
    "reason_of",
]

OnTrouble = Callable[[str], None]
"""Called with the reason when the broker does not answer."""

_DEFAULTS: Final = {
    "session.timeout.ms": 6000,
    "heartbeat.interval.ms": 1000,
    # A member that waits for PostgreSQL or for room holds up a hand-over in its group for that long.
    "max.poll.interval.ms": 60_000,
    "queued.max.messages.kbytes": 16384,
    "reconnect.backoff.max.ms": 2000,
    "log_level": 2,  # what it cannot do comes through `error_cb`, once instead of 20 times a second
}
_POLL_SECONDS: Final = 0.25
"""How long one call waits for a message. Whoever is to stop notices that after it."""
_MOST: Final = 1_000
"""The most messages that are read together."""
_THREADS: Final = 3
"""For a call, for one that a callback of it makes, and for closing."""


class Consumer(Protocol):
    """What is needed of `confluent_kafka.aio.AIOConsumer`."""

    async def subscribe(self, topics: list[str], /, **callbacks: Any) -> None:
        """Join the group."""

    async def poll(self, seconds: float, /) -> Any:
        """Return one message, or None."""

    async def consume(self, count: int, seconds: float, /) -> list[Any]:
        """Return messages that are there."""

    async def incremental_assign(self, parts: list[Any], /) -> None:
        """Read partitions, from their offsets on."""

    async def incremental_unassign(self, parts: list[Any], /) -> None:
        """Do not read partitions any more."""

    async def seek(self, part: Any, /) -> None:
        """Go on at another offset."""

    async def commit(self, *, offsets: list[Any], asynchronous: bool) -> Any:
        """Save offsets in the broker."""

    async def get_watermark_offsets(self, part: Any, /, *, cached: bool) -> Any:
        """Return the first offset of a partition, and the next new one."""

    async def close(self) -> None:
        """Leave the group."""


MakeConsumer = Callable[[TopicAddress, ClientSettings, OnTrouble], Consumer]


def make_consumer(
    address: TopicAddress, settings: ClientSettings, on_trouble: OnTrouble
) -> Consumer:
    """Return a member of the group, which has not joined yet.

    Offsets are not its business: it neither saves them by itself nor chooses where to begin. It is
    never a static member: one that comes back after a pause must be told that its partitions are
    gone.

    Args:
        address: The topic and the group.
        settings: The properties of the client.
        on_trouble: Called when the broker does not answer.

    Raises:
        ConfigurationError: If the client refuses its settings.
    """

    async def noted(error: KafkaError) -> None:
        on_trouble(reason_of(error))

    try:
        return AIOConsumer(
            settings.joined(
                _DEFAULTS,
                {"error_cb": noted},
                bootstrap_servers=address.bootstrap,
                group_id=address.group,
                enable_auto_commit=False,
                enable_auto_offset_store=False,
                auto_offset_reset="error",
                partition_assignment_strategy="cooperative-sticky",
            ),
            max_workers=_THREADS,
        )
    except KafkaException as error:
        raise explained(error) from None


async def read_some(consumer: Consumer) -> list[Any]:
    """Wait a moment for a message; return it with those that are there already."""
    first = await consumer.poll(_POLL_SECONDS)
    return [] if first is None else [first, *await consumer.consume(_MOST - 1, 0)]


def by_part(messages: Sequence[Any]) -> list[tuple[int, list[Any]]]:
    """Return the messages of each partition, in the order of the partitions."""
    found: dict[int, list[Any]] = {}
    for message in messages:
        found.setdefault(message.partition(), []).append(message)
    return sorted(found.items())


def place_of(topic: str, held: Held) -> TopicPartition:
    """Return where to read on in a partition."""
    offset = OFFSET_BEGINNING if held.offset == UNREAD else held.offset
    return TopicPartition(topic, held.part, offset)


async def close(consumer: Consumer) -> None:
    """Close it, also if this is cancelled: a member of a group that stays holds up the others."""
    closing = asyncio.ensure_future(consumer.close())
    try:
        await asyncio.shield(closing)
    except asyncio.CancelledError:
        await asyncio.wait([closing])
        raise


def reason_of(error: KafkaError) -> str:
    """Return what an error of the client says."""
    return str(error.str())

"""What is known of a topic: its id, its partitions, how long it keeps messages."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final, Protocol

from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from autoplay_rag.errors import BrokerError
from autoplay_rag.kafka.address import TopicAddress
from autoplay_rag.kafka.settings import ClientSettings, explained

__all__ = ["Describes", "Topic", "TopicAdmin"]

_UNKNOWN_TOPIC: Final = "UNKNOWN_TOPIC_OR_PART"
_EXISTS: Final = "TOPIC_ALREADY_EXISTS"


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic, as the broker describes it.

    Attributes:
        id: The id. A topic that was deleted and made anew has another one.
        partitions: The number of partitions.
    """

    id: str
    partitions: int


class Describes(Protocol):
    """Asks the broker about the topic."""

    async def describe(self) -> Topic | None:
        """Return the topic; None if there is none."""


class TopicAdmin:
    """Asks about one topic.

    Args:
        address: The topic.
        settings: The properties of the client.
        timeout: Seconds that the broker has for an answer.

    Raises:
        ConfigurationError: If the client refuses its settings.
    """

    def __init__(
        self, address: TopicAddress, settings: ClientSettings, *, timeout: float = 10.0
    ) -> None:
        self._topic = address.topic
        self._timeout = timeout
        self._place = str(address)
        try:
            # Kept as long as its futures: they never end after it. In a list, for `close`.
            self._clients = [
                AdminClient(settings.joined({"log_level": 0}, bootstrap_servers=address.bootstrap))
            ]
        except KafkaException as error:
            raise explained(error) from None

    async def close(self) -> None:
        """End the client's threads. Call it when nobody waits for an answer, and ask nothing after it.

        A thread that would get an answer while the interpreter ends may crash the process.
        """
        # Without its last reference the client ends, and waits for its threads.
        await asyncio.to_thread(self._clients.clear)

    @property
    def _client(self) -> AdminClient:
        return self._clients[0]

    async def describe(self) -> Topic | None:
        """Return the topic; None if there is none.

        Raises:
            BrokerError: If the broker does not answer, or refuses.
        """
        asked = self._client.describe_topics(
            TopicCollection([self._topic]), request_timeout=self._timeout
        )
        try:
            found = await self._answered(asked[self._topic])
        except BrokerError as error:
            if error.code == _UNKNOWN_TOPIC:
                return None
            raise
        return Topic(str(found.topic_id), len(found.partitions))

    async def create(self, partitions: int, *, copies: int = -1) -> None:
        """Create the topic, unless it is there.

        Args:
            partitions: The number of partitions.
            copies: On how many brokers each partition is; -1 for the broker's own setting.

        Raises:
            BrokerError: If the broker does not answer, or refuses.
        """
        made = self._client.create_topics(
            [NewTopic(self._topic, partitions, copies)], request_timeout=self._timeout
        )
        try:
            await self._answered(made[self._topic])
        except BrokerError as error:
            if error.code != _EXISTS:
                raise

    async def retention(self) -> float | None:
        """Return for how many seconds the topic keeps messages; None for no limit, or if it is unknown.

        Raises:
            BrokerError: If the broker does not answer, or refuses.
        """
        asked = self._client.describe_configs(
            [ConfigResource(ResourceType.TOPIC, self._topic)], request_timeout=self._timeout
        )
        (future,) = asked.values()
        entry = (await self._answered(future)).get("retention.ms")
        if entry is None or entry.value is None or int(entry.value) < 0:
            return None
        return int(entry.value) / 1000

    async def _answered(self, future: Any) -> Any:
        try:
            return await asyncio.wrap_future(future)
        except KafkaException as error:
            reason = error.args[0]
            raise BrokerError(f"the {self._place}: {reason.str()}", code=reason.name()) from None

"""Looks after the topic: whether the broker answers, whether the topic is there, what its readers have."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from autoplay_rag.errors import BrokerError, JournalError
from autoplay_rag.kafka.address import TopicAddress
from autoplay_rag.kafka.admin import Topic, TopicAdmin
from autoplay_rag.kafka.settings import ClientSettings
from autoplay_rag.relay.readers import Readers
from autoplay_rag.relay.worker import RelayWorker

__all__ = ["TopicWatch"]

_log = logging.getLogger(__name__)

_EVERY_SECONDS: Final = 1.0
_BROKER_SECONDS: Final = 5.0


class TopicWatch:
    """Asks broker and readers every second, and tells the worker.

    Args:
        address: The topic.
        settings: The properties of the client.
        worker: Sends, once the topic is there.
        readers: The readers whose offsets count; None if a delivered payload is forgotten.
        partitions: The number of partitions, if the topic has to be created.

    Attributes:
        is_available: Whether the broker has answered the last time.
        problems: What is wrong, one line each.
    """

    def __init__(
        self,
        address: TopicAddress,
        settings: ClientSettings,
        worker: RelayWorker,
        readers: Readers | None,
        *,
        partitions: int,
    ) -> None:
        self.is_available = False
        self._broker_problem = f"the {address} has not answered yet"
        self._readers_problem = ""
        self._address = address
        self._admin = TopicAdmin(address, settings, timeout=_BROKER_SECONDS)
        self._worker = worker
        self._readers = readers
        self._partitions = partitions
        self._said = False

    @property
    def problems(self) -> list[str]:
        """What is wrong, one line each."""
        return [one for one in (self._broker_problem, self._readers_problem) if one]

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self.look_at_topic()
            await self._look_at_readers()
            await asyncio.sleep(_EVERY_SECONDS)

    async def close(self) -> None:
        """End the client. Call it after `run` has ended."""
        await self._admin.close()

    async def look_at_topic(self) -> None:
        """Look once whether the topic is there, and tell the worker.

        Raises:
            PipelineClosedError: If the worker has ended.
        """
        as_of = self._worker.reports
        try:
            topic = await self._topic()
        except BrokerError as error:
            if not self._said:
                _log.warning("%s; payloads wait in the outbox", error)
            self._said = True
            self.is_available, self._broker_problem = False, str(error)
            return
        if self._said:
            _log.warning("the broker answers again: %d payloads wait", self._worker.counts.waiting)
        self._said = False
        self.is_available, self._broker_problem = True, ""
        self._worker.topic_seen(topic.id, as_of)

    async def _topic(self) -> Topic:
        if (topic := await self._admin.describe()) is not None:
            return topic
        await self._worker.topic_gone()
        await self._admin.create(self._partitions)
        _log.info("created the %s with %d partitions", self._address, self._partitions)
        if (topic := await self._admin.describe()) is None:
            raise BrokerError(f"the {self._address} was created, and is not there yet")
        return topic

    async def _look_at_readers(self) -> None:
        if self._readers is None or not self._worker.counts.unread:
            return
        try:
            places = await self._readers.places()
        except JournalError as error:
            if not self._readers_problem:
                _log.warning("%s; delivered payloads are kept until it answers", error)
            self._readers_problem = str(error)
            return
        self._readers_problem = ""
        self._worker.readers_at(places)

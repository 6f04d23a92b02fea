"""Shared by the tests that read a topic: what sends messages, and pipelines that read them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from broker import Broker
from confluent_kafka import Producer
from pipelines import ScriptedEmbedder, titles
from postgres import PostgresServer

from autoplay_rag import IngestPipeline
from autoplay_rag.kafka.address import TopicAddress
from autoplay_rag.kafka.admin import TopicAdmin
from autoplay_rag.kafka.messages import Message, message_of
from autoplay_rag.kafka.settings import ClientSettings
from autoplay_rag.payloads import ActionsPayload, Payload
from autoplay_rag.stores import PgVectorStore

SETTINGS = {"session.timeout.ms": 3000, "heartbeat.interval.ms": 500}


class Topic:
    """A topic on a broker, and the pipelines that read it into one schema."""

    def __init__(
        self,
        broker: Broker,
        name: str,
        postgres: PostgresServer,
        make_store: Callable[..., PgVectorStore],
    ) -> None:
        self.broker = broker
        self.name = name
        self.postgres = postgres
        self.schema = make_store().schema
        self._make_store = make_store

    async def create(self, partitions: int = 1) -> None:
        admin = TopicAdmin(TopicAddress(self.broker.bootstrap, self.name), ClientSettings({}, {}))
        await admin.create(partitions)

    async def send(self, *payloads: Payload, part: int = -1) -> None:
        await self.send_messages(map(message_of, payloads), part)

    async def send_messages(self, messages: Iterable[Message], part: int = -1) -> None:
        """Send messages, and wait until the broker has them."""

        def send() -> None:
            producer = Producer(
                {"bootstrap.servers": self.broker.bootstrap, "log_level": 0, "linger.ms": 1}
            )
            for message in messages:
                producer.produce(
                    self.name, message.value, message.key, part, headers=list(message.headers)
                )
            assert producer.flush(20) == 0

        await asyncio.to_thread(send)

    def pipeline(self, *, group: str = "", **options: Any) -> IngestPipeline:
        """A pipeline that reads the topic."""
        given = {
            "batch_window": 0.0,
            "render": titles,
            "catalog": self.postgres.dsn,
            "kafka_settings": SETTINGS,
            **options,
        }
        store = self._make_store(schema=given.pop("schema", self.schema))
        embedder = given.pop("embedder", None) or ScriptedEmbedder()
        return IngestPipeline(
            store, embedder, journal=self.broker.address(self.name, group), **given
        )

    def titles(self, schema: str | None = None) -> dict[str, list[str]]:
        """What is stored of each session (the first word), in the order in which it came in."""
        found: dict[str, list[str]] = {}
        name = schema or self.schema
        for (text,) in self.postgres.run(
            f"SELECT t.text FROM {name}.payload p JOIN {name}.passage t USING (seq) "
            "WHERE p.state = 1 ORDER BY p.seq"
        ):
            title = text.split("\n")[-1]
            found.setdefault(title.split()[0], []).append(title)
        return found

    def parts(self, group: str = "", schema: str | None = None) -> list[tuple[Any, ...]]:
        """Number, owner, offset and missed messages of each partition."""
        name = schema or self.schema
        return self.postgres.run(
            f"SELECT part, owner, greatest(next_offset, 0), missed FROM {name}.topic_offset "
            f"JOIN {name}.topic_part USING (group_name, topic, part) "
            "WHERE topic = %s AND group_name = %s ORDER BY part",
            self.name,
            group or self.name,
        )


async def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    """Poll for what has no event: a commit of another process."""
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.02)


def visit(session: str, number: int, make: Callable[..., ActionsPayload]) -> ActionsPayload:
    """One of the payloads of a session, at a time of its own."""
    return make(session, f"{session} click {number}", at=1000.0 + 10 * number)

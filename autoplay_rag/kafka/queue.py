"""`KafkaQueue`: a topic as the queue, and PostgreSQL as catalog, offsets and work list."""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from autoplay_rag.cluster.journal import PostgresJournal
from autoplay_rag.cluster.presence import Presence
from autoplay_rag.cluster.queue import PostgresQueueTables
from autoplay_rag.cluster.topic_rows import Held, TopicRows
from autoplay_rag.errors import BrokerError
from autoplay_rag.journal.base import Entry, Outcome
from autoplay_rag.journal.database import Clock, wall_clock
from autoplay_rag.journal.inflow import Inflow
from autoplay_rag.journal.on_tables import Returned
from autoplay_rag.journal.queue import QueueTables
from autoplay_rag.journal.writer import OnEntry
from autoplay_rag.kafka.address import TopicAddress
from autoplay_rag.kafka.admin import TopicAdmin
from autoplay_rag.kafka.reading import TopicReader
from autoplay_rag.kafka.settings import ClientSettings
from autoplay_rag.kafka.standing_in import StandIn
from autoplay_rag.stores.postgres.link import Link
from autoplay_rag.stores.postgres.tables import quoted

__all__ = ["KafkaQueue"]

_CONNECTIONS: Final = 2
_SECONDS: Final = 10.0
_RETENTION_SECONDS: Final = 3.0
"""How long the start waits for the topic's retention, which receipts name."""
_UNITS: Final = (("days", 24 * 3600.0), ("hours", 3600.0), ("minutes", 60.0))


class KafkaQueue(PostgresJournal):
    """The journal of pipelines that read a topic of Kafka.

    Every process is a member of the consumer group. The one to which the broker has assigned a
    partition takes its messages into PostgreSQL, in the transaction that saves the offset after
    them. From there on it is a `PostgresJournal`: any process may plan, embed and store them, and
    payloads that come in another way are accepted as well.

    `inflow` reads the topic; run it with something that makes entries, as `IngestPipeline` does.

    Args:
        bootstrap: The brokers to ask first: `host:port`, with commas between several.
        topic: The name of the topic.
        group: The name of the consumer group.
        dsn: See `PgVectorStore`. The password may come from there too.
        settings: The properties of Kafka's client. Those in the environment are always added.
        schema: See `PostgresJournal`, as all that follow.
        max_bytes: The most bytes of queued and dead payloads. Messages beyond stay in the topic.
        keep_payloads: Whether the bodies of stored payloads are kept.
        replace_by_summaries: Whether summaries claim the actions they replace.
        model: The name of the embedder.
        erasure_register: A file with all requests to forget.
        lease_seconds: The length of the lease by which this process has its share of the work.
        takes_work: Whether this process takes a share, and reads the topic.
        clock: Returns the time in Unix seconds.
        on_entry: Called with each entry and its outcome.
        on_returned: See `PostgresJournal`.

    Attributes:
        inflow: Reads the topic.

    Raises:
        ConfigurationError: If an address or a setting cannot be used.
        MissingExtraError: If confluent-kafka or psycopg is not installed.

    Example:
        >>> async def main():
        ...     queue = KafkaQueue("broker.test:9092", "events", "rag", dsn="postgresql://db.test/app")
        ...     await queue.open()
        ...     print(await queue.inflow.status())
        ...     await queue.close()
    """

    inflow: Inflow

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        group: str,
        *,
        dsn: str,
        settings: ClientSettings | None = None,
        schema: str = "autoplay",
        max_bytes: int = 2**30,
        keep_payloads: bool = True,
        replace_by_summaries: bool = True,
        model: str = "",
        erasure_register: Path | None = None,
        lease_seconds: float | None = 10.0,
        takes_work: bool = True,
        clock: Clock = wall_clock,
        on_entry: OnEntry = lambda _entry, _outcome: None,
        on_returned: Returned = lambda _back: None,
    ) -> None:
        super().__init__(
            dsn,
            schema=schema,
            max_bytes=max_bytes,
            keep_payloads=keep_payloads,
            replace_by_summaries=replace_by_summaries,
            model=model,
            erasure_register=erasure_register,
            lease_seconds=lease_seconds,
            takes_work=takes_work,
            clock=clock,
            on_entry=on_entry,
            on_returned=on_returned,
        )
        self._address = TopicAddress(bootstrap, topic, group)
        client = settings or ClientSettings()
        self._link = Link(self._parameters, _CONNECTIONS, _SECONDS)
        self._rows = TopicRows(self._link, quoted(schema), topic, group)
        self._admin = TopicAdmin(self._address, client)
        self._retention: str | None = None
        name = f"{platform.node()}:{os.getpid()}"
        stand_in = StandIn(
            self._address,
            client,
            self._rows,
            self._admin,
            Presence(self._link, quoted(schema), name),
            name=name,
            take_in=self._take_in,
        )
        self.inflow = TopicReader(
            self._address,
            client,
            self._rows,
            self._admin,
            name=name,
            take_in=self._take_in,
            stand_in=stand_in,
        )

    def __repr__(self) -> str:
        return f"<KafkaQueue: {self._address}, group {self._address.group!r}>"

    async def open(self) -> None:
        """As in `PostgresJournal`. The broker need not answer yet."""
        try:
            async with asyncio.timeout(_RETENTION_SECONDS):
                self._retention = _said(await self._admin.retention())
        except (BrokerError, TimeoutError):
            self._retention = "for a time that is unknown here, because the broker did not say so"
        await super().open()

    async def close(self) -> None:
        """As in `PostgresJournal`. Call it after `inflow.run` has ended."""
        await self._admin.close()
        await self._link.close(_nothing)
        await super().close()

    def _open_tables(self) -> QueueTables:
        tables = super()._open_tables()
        topic = (
            f"Kafka ({self._address}): the topic keeps its messages {self._retention} (retention.ms). "
            "What comes in again from there is refused. Other readers and mirrors of the topic may "
            "have copies."
        )
        tables.file.remains += (topic,)
        return tables

    def _take_in(
        self, held: Held, offset: int, entries: Sequence[Entry]
    ) -> asyncio.Future[list[Outcome]]:
        # The values of now: `held` moves on after the commit.
        as_read = Held(held.part, held.epoch, held.topic_id, held.offset)

        def confirm() -> None:
            assert isinstance(self._tables, PostgresQueueTables)
            self._rows.advance(self._tables.file.connection.server, as_read, offset)

        return self._writer.take_in(entries, confirm)


def _said(seconds: float | None) -> str:
    if seconds is None:
        return "forever, unless the broker's own settings have a limit"
    # A unit of which there are at least two.
    unit, length = next((one for one in _UNITS if seconds >= 2 * one[1]), ("seconds", 1.0))
    return f"for {round(seconds / length, 1):g} {unit}"


async def _nothing() -> None:
    pass

"""Makes the journal that the settings name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoplay_rag._checks import check_journal_file
from autoplay_rag.cluster.address import JournalAddress
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.journal.on_tables import TableJournal
from autoplay_rag.journal.sqlite import SqliteJournal
from autoplay_rag.kafka.address import KafkaAddress, TopicAddress, is_topic
from autoplay_rag.kafka.settings import ClientSettings
from autoplay_rag.stores.base import Store
from autoplay_rag.stores.postgres.dsn import is_dsn
from autoplay_rag.stores.postgres.store import PgVectorStore

if TYPE_CHECKING:
    from autoplay_rag.ingest.settings import Settings
    from autoplay_rag.journal.on_tables import Returned
    from autoplay_rag.journal.writer import OnEntry

__all__ = ["make_journal", "named_journal"]


def named_journal(
    name: str | Path | None,
    store: Store,
    *,
    catalog: str | None = None,
    kafka_settings: Mapping[str, Any] | None = None,
) -> Path | JournalAddress | None:
    """Return what the arguments name: a file, a schema of PostgreSQL, or a topic beside one.

    Args:
        name: The argument `journal`.
        store: The store. A `PgVectorStore` says in which schema the journal is.
        catalog: The argument of this name.
        kafka_settings: The argument of this name.

    Raises:
        ConfigurationError: If they do not go together.
        MissingExtraError: If a package for them is not installed.
    """
    if isinstance(name, str) and is_topic(name):
        if catalog is None or not is_dsn(catalog):
            raise ConfigurationError(
                'a topic as the journal needs catalog="postgresql://USER@HOST/DATABASE" beside it'
            )
        return KafkaAddress(
            catalog,
            store.schema if isinstance(store, PgVectorStore) else "autoplay",
            topic=TopicAddress.parse(name),
            settings=ClientSettings(kafka_settings),
        )
    for given, argument in ((catalog, "catalog"), (kafka_settings, "kafka_settings")):
        if given is not None:
            raise ConfigurationError(
                f'{argument} goes with a topic as the journal: "kafka://HOST:PORT/TOPIC?group=GROUP"'
            )
    if name is None:
        return None
    if isinstance(name, str) and is_dsn(name):
        if isinstance(store, PgVectorStore):
            return JournalAddress(name, store.schema)
        return JournalAddress(name)
    check_journal_file(name)  # an address as a `Path` has lost a slash
    # Resolved, so that a link and its target count as the same journal.
    return Path(name).resolve()


def make_journal(
    settings: Settings, model: str, *, on_entry: OnEntry, on_returned: Returned
) -> TableJournal:
    """Return the journal, which is not open yet.

    Args:
        settings: The options of the pipeline.
        model: The name of the embedder.
        on_entry: See `SqliteJournal`.
        on_returned: See `SqliteJournal`.
    """
    if isinstance(settings.journal, JournalAddress):
        return _make_shared(settings.journal)(
            max_bytes=settings.journal_max_bytes,
            keep_payloads=settings.keep_payloads,
            replace_by_summaries=settings.summaries == "replace",
            model=model,
            erasure_register=settings.erasure_register,
            lease_seconds=settings.lease_seconds,
            takes_work=settings.takes_work,
            clock=settings.clock,
            on_entry=on_entry,
            on_returned=on_returned,
        )
    return SqliteJournal(
        settings.journal,
        durability=settings.durability,
        max_bytes=settings.journal_max_bytes,
        keep_addresses=settings.include_email,
        keep_payloads=settings.keep_payloads,
        replace_by_summaries=settings.summaries == "replace",
        model=model,
        erasure_register=settings.erasure_register,
        clock=settings.clock,
        on_entry=on_entry,
        on_returned=on_returned,
    )


def _make_shared(address: JournalAddress) -> Callable[..., TableJournal]:
    """Return what makes a journal that several processes share."""
    if isinstance(address, KafkaAddress):
        from autoplay_rag.kafka.queue import KafkaQueue

        topic = address.topic
        return partial(
            KafkaQueue,
            topic.bootstrap,
            topic.topic,
            topic.group,
            dsn=address.dsn,
            settings=address.settings,
            schema=address.schema,
        )
    from autoplay_rag.cluster.journal import PostgresJournal

    return partial(PostgresJournal, address.dsn, schema=address.schema)

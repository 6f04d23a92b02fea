"""Makes the journal that the settings name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from autoplay_rag._checks import check_journal_file
from autoplay_rag.cluster.address import JournalAddress
from autoplay_rag.journal.on_tables import TableJournal
from autoplay_rag.journal.sqlite import SqliteJournal
from autoplay_rag.stores.base import Store
from autoplay_rag.stores.postgres.dsn import is_dsn
from autoplay_rag.stores.postgres.store import PgVectorStore

if TYPE_CHECKING:
    from autoplay_rag.ingest.settings import Settings
    from autoplay_rag.journal.on_tables import Returned
    from autoplay_rag.journal.writer import OnEntry

__all__ = ["make_journal", "named_journal"]


def named_journal(name: str | Path | None, store: Store) -> Path | JournalAddress | None:
    """Return what an argument `journal` names: a file, or a schema of PostgreSQL.

    Args:
        name: The argument.
        store: The store. A `PgVectorStore` says in which schema the journal is.
    """
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
        from autoplay_rag.cluster.journal import PostgresJournal

        return PostgresJournal(
            settings.journal.dsn,
            schema=settings.journal.schema,
            max_bytes=settings.journal_max_bytes,
            keep_payloads=settings.keep_payloads,
            replace_by_summaries=settings.summaries == "replace",
            model=model,
            erasure_register=settings.erasure_register,
            lease_seconds=settings.lease_seconds,
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

"""Comparing and backing up while no pipeline uses the journal."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path

from autoplay_rag._filelock import FileLock
from autoplay_rag.errors import JournalLockedError, StoreMismatchError
from autoplay_rag.journal.sqlite import SqliteJournal
from autoplay_rag.maintenance.backup import BackupReport, write_backup
from autoplay_rag.maintenance.progress import Progress
from autoplay_rag.maintenance.report import VerifyReport
from autoplay_rag.maintenance.verify import Verifier
from autoplay_rag.stores.base import Store

__all__ = ["backup_alone", "verify_alone"]


async def verify_alone(journal: Path, store: Store) -> VerifyReport:
    """Compare a journal that no pipeline uses with its store. Nothing is stored, and no text embedded.

    Args:
        journal: The journal's file.
        store: The store; it is not started, and closed afterwards.

    Raises:
        JournalError: If the journal is in use or cannot be used.
        StoreMismatchError: If the store belongs to another journal, or to none.
        StoreError: If the store cannot be read.
    """
    catalog = SqliteJournal(journal, on_entry=lambda *_: None, on_returned=lambda _: None)
    await catalog.open()
    try:
        notes = await catalog.notes()
        if "identity" in store.capabilities and notes.store_id:
            identity = await store.identity()
            if identity is None or identity.store_id != notes.store_id:
                raise StoreMismatchError(
                    f"{store!r} is not the store that the journal {journal} was last used with: check "
                    "the path of the journal, the path of the store, and the collection"
                )
        return await Verifier(catalog, store).run()
    finally:
        try:
            await store.aclose()
        finally:
            await catalog.close()


async def backup_alone(
    folder: Path,
    journal: Path,
    store: Store,
    *,
    on_progress: Callable[[Progress], None] | None = None,
) -> BackupReport:
    """Write a backup of a journal that no pipeline uses, and of its store.

    Args:
        folder: A new or an empty folder.
        journal: The journal's file.
        store: The store; it is not started, and closed afterwards.
        on_progress: As in `IngestPipeline.backup`.

    Raises:
        BackupError: If the backup cannot be written.
        JournalLockedError: If a pipeline uses the journal.
        StoreError: If the store cannot be copied.
    """
    lock = FileLock(journal.with_name(journal.name + ".lock"))
    if not lock.acquire():
        raise JournalLockedError(
            f"the journal {journal} is in use by process {lock.holder()}; run the command again"
        )
    try:
        return await write_backup(
            folder, journal, store, _nothing_to_pause, on_progress=on_progress
        )
    finally:
        try:
            await store.aclose()
        finally:
            lock.release()


def _nothing_to_pause() -> AbstractAsyncContextManager[None]:
    return nullcontext()

"""Writes a consistent copy of a journal and its store while a pipeline uses them.

Journal and store match if the store is not written between the moments of the two copies. So writes
to the store pause while its files are copied. The journal is copied as of one moment in that pause,
by a read transaction that stays open until the copy is complete. Payloads are accepted and embedded
all the time.

The copy is made in a folder beside the target, and renamed when it is complete. The manifest is
written last.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, closing, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec

from autoplay_rag._describe import describe
from autoplay_rag._serial import SerialThread
from autoplay_rag.errors import AutoplayError, BackupError
from autoplay_rag.journal.tasks import ANSWER
from autoplay_rag.maintenance.manifest import FORMAT, JOURNAL, MANIFEST, STORE, Manifest, hashed
from autoplay_rag.maintenance.measuring import Measuring
from autoplay_rag.maintenance.progress import Progress
from autoplay_rag.stores.base import Store

__all__ = ["BackupReport", "write_backup"]

_log = logging.getLogger(__name__)

_PARTIAL: Final = ".partial"
_UNFINISHED: Final = "autoplay-rag.unfinished"
"""A file that marks a folder as an unfinished backup of this package, which may be deleted."""


@dataclass(frozen=True, slots=True)
class BackupReport:
    """A complete backup.

    Attributes:
        folder: Where it is.
        has_store: Whether it has the files of the store. Otherwise it has the journal only, from
            which a store can be filled again with `rebuild=True`.
        files: The number of files.
        size: Their size in bytes.
        paused: For how many seconds writes to the store had to wait.
        seconds: How long the backup took.
    """

    folder: str
    has_store: bool
    files: int
    size: int
    paused: float
    seconds: float


async def write_backup(
    folder: Path,
    journal: Path,
    store: Store,
    paused: Callable[[], AbstractAsyncContextManager[None]],
    *,
    on_progress: Callable[[Progress], None] | None = None,
) -> BackupReport:
    """Write a backup of a journal and its store into a new folder.

    Args:
        folder: It must not exist, or be empty.
        journal: The journal's file.
        store: The store.
        paused: Makes no write to the store inside the block.
        on_progress: Called with the progress in bytes, twice a second. Each byte counts twice: when it
            is written, and when it is read again for its hash.

    Raises:
        BackupError: If it cannot be written. Nothing is left behind.
        StoreError: If the store cannot be copied.
    """
    thread = SerialThread("autoplay-backup")
    began = time.monotonic()
    folder, partial = await thread.run(_begin, folder)
    snapshot = _Snapshot(journal)
    measuring = Measuring(partial, journal, store.data_folder, on_progress)
    try:
        copied = partial / STORE
        await thread.run(copied.mkdir, 0o700)
        async with measuring.running():
            async with paused():
                stopped = time.monotonic()
                await thread.run(snapshot.take)
                has_store = await store.copy_to(copied)
                waited = time.monotonic() - stopped
            await thread.run(snapshot.copy_to, partial / JOURNAL)
            manifest = await thread.run(
                _complete, partial, folder, snapshot.notes, has_store, measuring.hashed
            )
    except BaseException as error:
        await thread.finish(_abandon, partial)
        if isinstance(error, AutoplayError) or not isinstance(error, Exception):
            raise
        raise BackupError(f"the backup {folder} cannot be written: {describe(error)}") from error
    finally:
        await thread.finish(snapshot.close)
    report = BackupReport(
        str(folder),
        has_store,
        len(manifest.files),
        manifest.size,
        round(waited, 3),
        round(time.monotonic() - began, 3),
    )
    _log.info("backup: %s", report)
    return report


class _Snapshot:
    """A journal's file as of one moment. All calls block, in one thread.

    Attributes:
        notes: Values of `meta`: the ids of journal and store.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self.notes: dict[str, str] = {}

    def take(self) -> None:
        """Fix the moment."""
        uri = f"{self._path.resolve().as_uri()}?mode=ro"
        self._connection = sqlite3.connect(uri, uri=True, timeout=30.0, isolation_level=None)
        self._connection.execute("BEGIN")  # it begins with the first read, and stays open
        rows = self._connection.execute(
            "SELECT name, value FROM meta WHERE name IN ('journal_id', 'store_id')"
        )
        self.notes = dict(rows.fetchall())

    def copy_to(self, target: Path) -> None:
        """Copy the file, and mark the copy as closed."""
        assert self._connection is not None
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        with closing(sqlite3.connect(target, isolation_level=None)) as copy:
            self._connection.backup(copy)
            # One file is easier to move than a file with a write-ahead log.
            copy.execute("PRAGMA journal_mode = DELETE").fetchone()
            copy.execute("REPLACE INTO meta VALUES ('open', 0)")
            copy.execute("DELETE FROM meta WHERE name LIKE ?", (f"{ANSWER}%",))
            copy.execute("DELETE FROM request")
            found = copy.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise BackupError(f"the journal {self._path} is damaged: {found}")

    def close(self) -> None:
        """End the read transaction."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _begin(folder: Path) -> tuple[Path, Path]:
    """Create the folder for the unfinished backup; returns both absolute paths."""
    folder = folder.expanduser().absolute()
    partial = folder.with_name(folder.name + _PARTIAL)
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise BackupError(f"{folder} exists and is not empty; give a new folder")
        if partial.exists():
            if not (partial / _UNFINISHED).exists():
                raise BackupError(f"{partial} is in the way; move it, or give another folder")
            shutil.rmtree(partial)
        partial.mkdir(mode=0o700, parents=True)
        (partial / _UNFINISHED).touch(mode=0o600)
    except OSError as error:
        raise BackupError(f"the backup {folder} cannot be written: {describe(error)}") from error
    return folder, partial


def _complete(
    partial: Path,
    folder: Path,
    notes: dict[str, str],
    has_store: bool,
    on_hashed: Callable[[int], None],
) -> Manifest:
    """Write the manifest and give the folder its name."""
    if not has_store:
        (partial / STORE).rmdir()
    paths = [p for p in sorted(partial.rglob("*")) if p.is_file() and p.name != _UNFINISHED]
    manifest = Manifest(
        FORMAT,
        time.time(),
        version("autoplay-rag"),
        notes.get("journal_id", ""),
        notes.get("store_id") or "",
        {
            path.relative_to(partial).as_posix(): hashed(path, sync=True, on_read=on_hashed)
            for path in paths
        },
    )
    fd = os.open(partial / MANIFEST, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(manifest), indent=1))
        file.flush()
        os.fsync(fd)
    (partial / _UNFINISHED).unlink()
    with suppress(FileNotFoundError):
        folder.rmdir()  # an empty one
    partial.rename(folder)
    _sync_folder(folder)
    _sync_folder(folder.parent)
    return manifest


def _abandon(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # pragma: no cover - folders cannot be opened there
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

"""Checks a backup and puts it back.

Everything is checked before anything is changed: the manifest, the hash of each file, the integrity
of the journal, and that journal and store belong together. Then the files are copied beside their
places and moved into them, under the locks of journal and store.

Between these two steps, what was forgotten after the backup was made is deleted from the copied journal.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from autoplay_rag._describe import describe
from autoplay_rag._filelock import FileLock
from autoplay_rag.errors import AutoplayError, BackupError
from autoplay_rag.journal.catalog import CatalogTables
from autoplay_rag.journal.file import JournalFile
from autoplay_rag.journal.forgetting import ErasureTables
from autoplay_rag.journal.register import Register, register_of
from autoplay_rag.journal.schema import APPLICATION_ID, SCHEMA_VERSION
from autoplay_rag.maintenance.manifest import JOURNAL, STORE, Manifest, hashed, read_manifest
from autoplay_rag.stores.chroma.copies import DATABASE, LOCK_NAME, identities_in

__all__ = ["RestoreReport", "check_backup", "restore"]

_STAGED: Final = "autoplay-rag.restoring"
_REPLACED: Final = "autoplay-rag.replaced"
_PAGE: Final = 500
_LOG_FILES: Final = ("-wal", "-shm")


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """A backup that was put back.

    Attributes:
        journal: The journal's file.
        store: The store's folder; None if the backup has the journal only.
        files: The number of files.
        size: Their size in bytes.
        made_at: When the backup was made, in Unix seconds.
    """

    journal: str
    store: str | None
    files: int
    size: int
    made_at: float


def check_backup(folder: Path) -> Manifest:
    """Check a backup without changing anything. Blocks.

    Returns:
        Its manifest.

    Raises:
        BackupError: If it is unfinished or damaged, of a newer version, or if its journal and store
            do not belong together. The message says which.
    """
    manifest = read_manifest(folder)
    for name, expected in manifest.files.items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise BackupError(f"the manifest of {folder} names a file outside of it")
        try:
            found = hashed(path)
        except OSError as error:
            raise BackupError(
                f"{path} of the backup cannot be read: {error.strerror}; use another backup"
            ) from error
        if found != expected:
            raise BackupError(f"{path} differs from the manifest of the backup; use another backup")
    try:
        notes = _check_journal(folder / JOURNAL)
        if notes.get("journal_id") != manifest.journal_id:
            raise BackupError(f"the journal in {folder} is not the one that its manifest names")
        if manifest.has_store:
            _check_store(folder / STORE, notes)
    except sqlite3.Error as error:
        raise BackupError(
            f"the backup {folder} is damaged: {describe(error)}; use another backup"
        ) from error
    return manifest


def restore(
    folder: str | Path,
    *,
    journal: str | Path,
    store: str | Path | None = None,
    force: bool = False,
    erasure_register: str | Path | None = None,
) -> RestoreReport:
    """Check a backup and put it back. Blocks.

    Args:
        folder: The backup.
        journal: Where the journal's file goes.
        store: Where the folder of the `ChromaStore` goes. Not needed if the backup has the journal
            only.
        force: Whether to replace a journal and a store that exist. Those in use are never replaced.
        erasure_register: The file that lists all requests to forget; by default the one beside
            `journal`. What it lists is deleted from the journal. The next start deletes it from the
            store.

    Raises:
        BackupError: If the backup is not usable, if a journal or a store is in the way or in use, or
            if files cannot be written. Unless the error comes from the last step, nothing has
            changed.
    """
    folder, journal = Path(folder).expanduser(), Path(journal).expanduser().resolve()
    manifest = check_backup(folder)
    register = Path(erasure_register) if erasure_register else register_of(journal)
    target = Path(store).expanduser().resolve() if store is not None else None
    if not manifest.has_store:
        target = None
    elif target is None:
        raise BackupError(f"the backup {folder} has a store: say where it goes")
    try:
        with ExitStack() as locks:
            locks.enter_context(_owned_journal(journal, force=force))
            if target is not None:
                locks.enter_context(_owned_store(target, force=force))
            staged = _stage(folder, manifest, journal, target)
            # What was forgotten after the backup was made leaves the copy before anybody sees it.
            _forget_again(staged, register)
            _put_in_place(staged, journal, target)
    except AutoplayError:
        raise
    except (OSError, sqlite3.Error) as error:
        raise BackupError(f"the backup {folder} cannot be restored: {describe(error)}") from error
    return RestoreReport(
        str(journal),
        None if target is None else str(target),
        len(manifest.files),
        manifest.size,
        manifest.made_at,
    )


# -- checking ---------------------------------------------------------------------------------


def _check_journal(path: Path) -> dict[str, Any]:
    """Check a journal's file, and return its notes."""
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if application != APPLICATION_ID:
            raise BackupError(f"{path} is not a journal of this package")
        if version > SCHEMA_VERSION:
            raise BackupError(
                f"the journal {path} has format {version}, but this version of autoplay-rag reads "
                f"up to {SCHEMA_VERSION}: install the newer version that made the backup"
            )
        found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if found != "ok":
            raise BackupError(f"the journal {path} is damaged: {found}; use another backup")
        return dict(connection.execute("SELECT name, value FROM meta").fetchall())


def _check_store(folder: Path, notes: dict[str, Any]) -> None:
    """Check that a Chroma folder is intact and has the store that a journal notes."""
    path = folder / DATABASE
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if found != "ok":
        raise BackupError(f"the store {folder} is damaged: {found}; use another backup")
    identities = identities_in(folder)
    if identities is None or not notes.get("store_id"):
        return
    first, last = notes.get("store_batch") or 0, notes.get("acknowledged") or 0
    if not any(
        (one.store_id, one.journal_id) == (notes["store_id"], notes["journal_id"])
        and first <= one.batch <= last
        for one in identities
    ):
        raise BackupError(
            f"the store {folder} does not belong to the journal beside it; use another backup"
        )


# -- putting back -----------------------------------------------------------------------------


@contextmanager
def _owned_journal(path: Path, *, force: bool) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_name(path.name + ".lock"), f"the journal {path}"):
        if path.exists() and path.stat().st_size and not force:
            raise BackupError(
                f"the journal {path} exists; give another path, or replace it (force=True, command: "
                "--force)"
            )
        yield


@contextmanager
def _owned_store(folder: Path, *, force: bool) -> Iterator[None]:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(folder / LOCK_NAME, f"the store {folder}"):
        if _entries(folder) and not force:
            raise BackupError(
                f"the folder {folder} is not empty; give another path, or replace its content "
                "(force=True, command: --force)"
            )
        if _entries(folder) and not (folder / DATABASE).exists():
            # A folder with a half-restored store has one of the two.
            own = [name for name in _entries(folder) if name.name.startswith("autoplay-rag.")]
            if not own:
                raise BackupError(
                    f"the folder {folder} has other files than those of Chroma, so its content is "
                    "not replaced; give another path"
                )
        yield


@contextmanager
def _locked(path: Path, what: str) -> Iterator[None]:
    existed = path.exists()
    lock = FileLock(path)
    if not lock.acquire():
        raise BackupError(
            f"{what} is in use by process {lock.holder()}: stop it, then restore again"
        )
    try:
        yield
    finally:
        lock.release(remove=not existed)


def _entries(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name not in (LOCK_NAME, _STAGED)]


def _stage(folder: Path, manifest: Manifest, journal: Path, store: Path | None) -> Path:
    """Copy all files beside their places, and return the staged journal."""
    staged = journal.with_name(f"{journal.name}.restoring")
    staged.unlink(missing_ok=True)
    if store is not None:
        shutil.rmtree(store / _STAGED, ignore_errors=True)
        (store / _STAGED).mkdir(mode=0o700)
    for name in manifest.files:
        parts = Path(name).parts
        if name == JOURNAL:
            _copy_file(folder / name, staged)
        elif store is not None and parts[0] == STORE:
            target = store / _STAGED / Path(*parts[1:])
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _copy_file(folder / name, target)
    return staged


def _forget_again(journal: Path, register: Path) -> None:
    """Delete from a copied journal what was forgotten after the copy was made."""
    if not register.exists():
        return
    file = JournalFile(journal, "full")
    try:
        catalog = CatalogTables(file)
        erasures = ErasureTables(file, catalog, Register(register))
        with file.transaction():
            catalog.fulltext.index_rest()
            erasures.apply_register()
        more = True
        while more:
            with file.transaction():
                more = erasures.delete_page(_PAGE).more
        merging = first = True
        while merging:
            with file.transaction():
                merging = catalog.fulltext.merge(first)
            first = False
        file.rewrite()
    finally:
        file.close()


def _put_in_place(staged: Path, journal: Path, store: Path | None) -> None:
    """Replace store and journal by the staged copies.

    The old files are moved away first and deleted last. The folder of the store stays, because it
    may be a mounted volume. Its database comes last, so a folder that is half restored has none.
    """
    if store is not None:
        replaced = store / _REPLACED
        replaced.mkdir(mode=0o700, exist_ok=True)
        old = [path for path in _entries(store) if path.name != _REPLACED]
        for path in sorted(old, key=lambda path: path.name != DATABASE):
            _move(path, replaced / path.name)
        new = list((store / _STAGED).iterdir())
        for path in sorted(new, key=lambda path: path.name == DATABASE):
            path.rename(store / path.name)
    aside = [journal.with_name(journal.name + suffix) for suffix in ("", *_LOG_FILES)]
    for path in aside:
        if path.exists():
            path.replace(path.with_name(f"{path.name}.replaced"))
    staged.rename(journal)
    for path in aside:
        path.with_name(f"{path.name}.replaced").unlink(missing_ok=True)
    if store is not None:
        shutil.rmtree(store / _REPLACED)
        (store / _STAGED).rmdir()


def _move(path: Path, target: Path) -> None:
    """Move a file or folder over what an interrupted restore may have left."""
    if target.is_dir():
        shutil.rmtree(target)
    path.replace(target)


def _copy_file(source: Path, target: Path) -> None:
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    with source.open("rb") as old, target.open("r+b") as new:
        shutil.copyfileobj(old, new, 4 * 2**20)
        new.flush()
        os.fsync(new.fileno())

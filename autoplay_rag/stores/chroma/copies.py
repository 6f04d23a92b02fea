"""Copies of a Chroma folder, for backups, and what can be read from one without Chroma.

Statements about Chroma apply to chromadb 1.5.9.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from autoplay_rag.stores.base import StoreIdentity

__all__ = [
    "BATCH",
    "DATABASE",
    "JOURNAL_ID",
    "LOCK_NAME",
    "STORE_ID",
    "copy_folder",
    "identities_in",
]

DATABASE: Final = "chroma.sqlite3"
LOCK_NAME: Final = "autoplay-rag.lock"
"""The file in a folder that its worker locks."""
STORE_ID, JOURNAL_ID, BATCH = "autoplay_store_id", "autoplay_journal_id", "autoplay_batch"
"""The keys in a collection's metadata for its identity."""
_OWN_FILES: Final = "autoplay-rag."
"""The beginning of the names of the lock file and of the copies of indexes, which need no backup."""


def copy_folder(folder: Path, target: Path) -> None:
    """Copy a folder while nobody writes to it.

    Chroma writes only during a call, so its worker may copy between two requests. The database is
    copied by SQLite, which includes the write-ahead log.

    Args:
        folder: Chroma's folder.
        target: An existing folder. Files get mode 0600, folders 0700.

    Raises:
        ValueError: If the target is inside of the folder.
        OSError: If files cannot be read or written.
        sqlite3.Error: If the database cannot be read.
    """
    if target.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"the copy {target} would be inside of the folder {folder}")
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if name.parts[0].startswith((_OWN_FILES, DATABASE)):
            continue
        if path.is_dir():
            (target / name).mkdir(mode=0o700)
        else:
            _copy_file(path, target / name)
    copy = target / DATABASE
    _create(copy)
    uri = f"{(folder / DATABASE).as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True)) as source, closing(sqlite3.connect(copy)) as made:
        source.backup(made)


def identities_in(folder: Path) -> list[StoreIdentity] | None:
    """Return the identities of the collections in a folder that Chroma does not have open.

    Returns:
        None if they cannot be read, because Chroma's tables have another form.

    Raises:
        sqlite3.DatabaseError: If the database is damaged.
    """
    notes: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    uri = f"{(folder / DATABASE).resolve().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True)) as connection:
        try:
            rows = connection.execute(
                "SELECT collection_id, key, str_value, int_value FROM collection_metadata"
            ).fetchall()
        except sqlite3.OperationalError:
            return None
    for collection, key, text, number in rows:
        notes[collection][key] = text if text is not None else number
    return [
        StoreIdentity(str(one[STORE_ID]), str(one[JOURNAL_ID]), int(one[BATCH]))
        for one in notes.values()
        if {STORE_ID, JOURNAL_ID, BATCH} <= one.keys()
    ]


def _create(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def _copy_file(source: Path, target: Path) -> None:
    _create(target)
    shutil.copyfile(source, target)

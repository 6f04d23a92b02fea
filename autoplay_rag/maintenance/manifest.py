"""The manifest of a backup: which files belong to it, with size and hash."""

from __future__ import annotations

import os
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Final

import msgspec

from autoplay_rag.errors import BackupError

__all__ = ["FORMAT", "JOURNAL", "MANIFEST", "STORE", "File", "Manifest", "hashed", "read_manifest"]

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
JOURNAL: Final = "journal.db"
STORE: Final = "store"
"""The names of files and folders in a backup."""
_SLAB: Final = 4 * 2**20


class File(msgspec.Struct, frozen=True):
    """One file of a backup: its size in bytes, and its BLAKE2b-256 in hex digits."""

    size: int
    hash: str


class Manifest(msgspec.Struct, frozen=True):
    """What a backup holds. It is written last, so a folder without it is unfinished."""

    format: int
    made_at: float
    version: str
    journal_id: str
    store_id: str
    files: dict[str, File]

    @property
    def has_store(self) -> bool:
        """Whether the backup has files of the store, beside the journal."""
        return any(name.startswith(f"{STORE}/") for name in self.files)

    @property
    def size(self) -> int:
        """The size of all files in bytes."""
        return sum(file.size for file in self.files.values())


def hashed(path: Path, *, sync: bool = False, on_read: Callable[[int], None] | None = None) -> File:
    """Return size and hash of a file.

    Args:
        path: The file.
        sync: Whether to make it survive a power loss.
        on_read: Called with the number of bytes of each part that was read.
    """
    digest = blake2b(digest_size=32)
    size = 0
    with path.open("rb") as file:
        while part := file.read(_SLAB):
            digest.update(part)
            size += len(part)
            if on_read is not None:
                on_read(len(part))
        if sync:
            os.fsync(file.fileno())
    return File(size, digest.hexdigest())


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a backup.

    Raises:
        BackupError: If there is none, or it is of another format.
    """
    path = folder / MANIFEST
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except OSError as error:
        raise BackupError(
            f"{folder} is not a complete backup: {MANIFEST} cannot be read ({error.strerror}). A "
            "backup that was interrupted has none; use another backup"
        ) from error
    except msgspec.MsgspecError as error:
        raise BackupError(f"{path} is damaged ({error}); use another backup") from error
    if manifest.format != FORMAT:
        raise BackupError(
            f"the backup {folder} has format {manifest.format}, but this version of autoplay-rag "
            f"reads {FORMAT}: install the version that made it ({manifest.version})"
        )
    return manifest

"""Copies of the small files of Chroma's vector indexes, to recover an index after a kill.

Chroma writes an index in place, file after file, once per few thousand chunks. After a kill during
this, it refuses the collection (as in https://github.com/chroma-core/chroma/issues/7678). The data
is safe: SQLite has texts, metadata, and a log of every chunk since the index was last written. An
old index and the log together contain the whole collection.

Most of an index is `data_level0.bin`, with a place for each chunk. Chroma overwrites places, and
moves or removes none as long as the index has chunks. So the vectors of an unfinished file are those of the old index, or later
ones that the log has again; only links and marks are corrected. The other files, 6 % of the index,
are copied.

Statements about Chroma apply to chromadb 1.5.9, and those about its index to
https://github.com/chroma-core/hnswlib (`persistDirty` in `hnswlib/hnswalg.h`).
"""

from __future__ import annotations

import logging
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec

from autoplay_rag.stores.chroma.index import PLACES, clear_unused, restore_places

__all__ = ["IndexMirror"]

_logger = logging.getLogger(__name__)
_STATE = "state.json"
_Files = dict[str, tuple[int, int]]
"""The size and modification time (in ns) of each file of an index."""


class _State(msgspec.Struct):
    """The state of an index when its files were copied."""

    written_to: int
    """The last entry of Chroma's log in the index, as recorded by Chroma."""
    files: _Files


class IndexMirror:
    """Copies of files of the indexes of a Chroma folder, each as Chroma last finished writing it.

    Chroma writes an index, then records in SQLite the last log entry in it. If the files differ
    from the copied state but the record does not, Chroma did not finish writing.

    Only the process that owns the folder may use this class, and only between its calls to Chroma,
    because Chroma writes an index during a call. The copies take about 100 bytes per chunk.

    Args:
        folder: Chroma's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mirror = folder / "autoplay-rag.mirror"
        self._seen: dict[str, _Files] = {}

    @property
    def size(self) -> int:
        """The size of the indexes in bytes, as of the last `refresh`."""
        return sum(size for files in self._seen.values() for size, _ in files.values())

    def restore(self) -> None:
        """Restore indexes that Chroma did not finish writing. Call it before Chroma opens the folder.

        Raises:
            OSError: If files cannot be read or written.
            sqlite3.Error: If Chroma's database cannot be read.
        """
        for index, written_to in self._written_to().items():
            if written_to is None:
                self._delete_unfinished(index)
                continue
            state = self._state(index)
            if state is None or state.written_to != written_to:
                continue
            if _files(self._folder / index) != state.files:
                self._restore_copy(index)
                _logger.warning(
                    "Chroma was killed while it wrote the index %s in %s: restored its last state; "
                    "Chroma adds later chunks from its own log",
                    index,
                    self._folder,
                )

    def discard(self) -> None:
        """Make the copies useless. The next `refresh` makes them equal to the indexes again.

        Raises:
            OSError: If files cannot be deleted.
        """
        for state in self._mirror.glob(f"*/{_STATE}"):
            state.unlink()
        self._seen = {}

    def refresh(self) -> bool:
        """Copy indexes written since the last call, and delete copies of deleted indexes.

        A failed copy is logged and does not affect the stored chunks.

        Returns:
            Whether an index was written, and could be copied.
        """
        try:
            return self._refresh()
        except (OSError, sqlite3.Error) as error:
            _logger.warning(
                "the indexes in %s could not be copied for recovery: %s", self._folder, error
            )
            return False

    def _refresh(self) -> bool:
        found = {
            path.parent.name: _files(path.parent) for path in self._folder.glob("*/header.bin")
        }
        if found == self._seen:
            return False
        for index, files in found.items():
            if files != self._seen.get(index):
                # Chroma writes memory that belongs to no chunk when it begins an index, or begins
                # it anew.
                clear_unused(self._folder / index)
                found[index] = _files(self._folder / index)
        self._seen = found
        written_to = self._written_to()
        for index, files in found.items():
            if (end := written_to.get(index)) is not None:
                self._copy(index, _State(end, files))
        for path in self._mirror.glob("*"):
            # Chroma does not delete the files of a deleted collection.
            if path.name not in written_to:
                shutil.rmtree(path)
        return True

    def _written_to(self) -> dict[str, int | None]:
        """Return the last log entry in each vector index; None if it was never written."""
        database = self._folder / "chroma.sqlite3"
        if not database.exists():
            return {}
        with closing(sqlite3.connect(database)) as connection:
            return dict(
                connection.execute(
                    "SELECT id, seq_id FROM segments"
                    " LEFT JOIN max_seq_id ON segment_id = id WHERE scope = 'VECTOR'"
                )
            )

    def _state(self, index: str) -> _State | None:
        try:
            return msgspec.json.decode((self._mirror / index / _STATE).read_bytes(), type=_State)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None

    def _copy(self, index: str, taken: _State) -> None:
        held = self._state(index)
        if held is not None and held.written_to == taken.written_to:
            return  # the copy is current, or Chroma did not finish and `restore` needs it
        copy = self._mirror / index
        # A kill may leave the copy unfinished. A copy without a state file is never restored.
        copy.mkdir(parents=True, exist_ok=True)
        (copy / _STATE).unlink(missing_ok=True)
        for name in taken.files:
            if name != PLACES:
                shutil.copy2(self._folder / index / name, copy / name)
        # The copies of older versions contain it.
        (copy / PLACES).unlink(missing_ok=True)
        (copy / _STATE).write_bytes(msgspec.json.encode(taken))

    def _delete_unfinished(self, index: str) -> None:
        """Delete an index that was never finished. The log still has all its chunks."""
        # This file is written last. If it exists, either only the record in SQLite is missing, or
        # the index is of an older Chroma, which kept the record in this file.
        if not (self._folder / index / "index_metadata.pickle").exists():
            shutil.rmtree(self._folder / index, ignore_errors=True)

    def _restore_copy(self, index: str) -> None:
        # After an interruption, the files differ from the copied state, so the next start repeats
        # this.
        for path in (self._mirror / index).iterdir():
            if path.name != _STATE:
                shutil.copy2(path, self._folder / index / path.name)
        restore_places(self._folder / index)


def _files(folder: Path) -> _Files:
    return {
        path.name: (stat.st_size, stat.st_mtime_ns)
        for path in folder.glob("*")
        for stat in [path.stat()]
    }

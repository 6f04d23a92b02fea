"""A copy of Chroma's vector indexes, to recover an index that a kill left half written.

Chroma rewrites an index in place, file after file, once per thousand chunks. After a kill during
this, it refuses the collection (as in https://github.com/chroma-core/chroma/issues/7678). The data
is safe: SQLite has texts, metadata, and a log of every chunk since the index was last written. An
old index and the log together contain the whole collection.

Statements about Chroma apply to chromadb 1.5.9.
"""

from __future__ import annotations

import logging
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec

from autoplay_rag.stores.chroma.index import clear_unused

__all__ = ["IndexMirror"]

_logger = logging.getLogger(__name__)
_STATE = "state.json"
_SLAB = 4 * 2**20
_PAGE = 4096
_Files = dict[str, tuple[int, int]]
"""The size and modification time (in ns) of each file of an index."""


class _State(msgspec.Struct):
    """The state of an index when it was copied."""

    written_to: int
    """The last entry of Chroma's log in the index, as recorded by Chroma."""
    files: _Files


class IndexMirror:
    """Copies of the indexes of a Chroma folder, each as Chroma last finished writing it.

    Chroma writes an index, then records in SQLite the last log entry in it. If the files differ
    from the copy but the record does not, Chroma did not finish writing.

    Only the process that owns the folder may use this class, and only between its calls to Chroma,
    because Chroma writes an index during a call. The copies take as much disk space as the indexes:
    1.7 KB per chunk of 384 dimensions.

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
                    "Chroma was killed while it wrote the index %s in %s: restored the last copy; "
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

    def refresh(self) -> None:
        """Copy indexes written since the last call, and delete copies of deleted indexes.

        A failed copy is logged and does not affect the stored chunks.
        """
        try:
            self._refresh()
        except (OSError, sqlite3.Error) as error:
            _logger.warning(
                "the indexes in %s could not be copied for recovery: %s", self._folder, error
            )

    def _refresh(self) -> None:
        found = {
            path.parent.name: _files(path.parent) for path in self._folder.glob("*/header.bin")
        }
        if found == self._seen:
            return
        for index, files in found.items():
            if files != self._seen.get(index):
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
            _copy_changed(self._folder / index / name, copy / name)
        (copy / _STATE).write_bytes(msgspec.json.encode(taken))

    def _delete_unfinished(self, index: str) -> None:
        """Delete an index that was never finished. The log still has all its chunks."""
        # This file is written last. If it exists, either only the record in SQLite is missing, or
        # the index is of an older Chroma, which kept the record in this file.
        if not (self._folder / index / "index_metadata.pickle").exists():
            shutil.rmtree(self._folder / index, ignore_errors=True)

    def _restore_copy(self, index: str) -> None:
        # After an interruption, the files differ from the copy, so the next start repeats this.
        shutil.rmtree(self._folder / index, ignore_errors=True)
        shutil.copytree(self._mirror / index, self._folder / index, ignore=lambda *_: [_STATE])


def _copy_changed(source: Path, copy: Path) -> None:
    """Make `copy` equal to `source`, including its times. Write only the pages that differ.

    Whole copies of a growing index would write an amount that grows with the square of its size. A
    thousand chunks change about the same amount of a large and a small index: measured 22 of 39 MB
    and 25 of 47 MB.
    """
    copy.touch()
    with source.open("rb") as new, copy.open("r+b") as old:
        old.truncate(source.stat().st_size)
        start = 0
        while wanted := new.read(_SLAB):
            old.seek(start)
            there = old.read(len(wanted))
            if wanted != there:
                for at in range(0, len(wanted), _PAGE):
                    page = wanted[at : at + _PAGE]
                    if page != there[at : at + _PAGE]:
                        old.seek(start + at)
                        old.write(page)
            start += len(wanted)
    shutil.copystat(source, copy)


def _files(folder: Path) -> _Files:
    return {
        path.name: (stat.st_size, stat.st_mtime_ns)
        for path in folder.glob("*")
        for stat in [path.stat()]
    }

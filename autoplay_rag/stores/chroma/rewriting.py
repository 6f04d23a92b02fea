"""Writes collections anew from their own vectors, and deletes collections, in small steps.

Chroma's index keeps the place of each deleted chunk, so it only grows. A rewrite copies the chunks
into a new collection without embedding them, and then gives it the name of the old one.

Other requests come between two steps. Collections that are being written or deleted have reserved
names. After a kill they are deleted, in steps as well.

Statements about Chroma apply to chromadb 1.5.9.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from autoplay_rag.stores.chroma.database import Database
from autoplay_rag.stores.chroma.index import IndexHeader
from autoplay_rag.stores.chroma.names import UNUSED, replace, successor_name, writing

if TYPE_CHECKING:
    from chromadb.api import ClientAPI
    from chromadb.api.models.Collection import Collection

__all__ = ["Rewrites", "delete_collection"]

_STEP_SECONDS: Final = 0.03
"""A step ends with the page that takes it beyond this time."""
_COPY_PAGE: Final = 50
_DELETE_PAGE: Final = 200
_MERGE_PAGES: Final = 200
"""Pages of the full-text index that one step merges."""
_FIRST_APPLIED: Final = 100
"""The most changes in the first step that applies them. The number doubles with each further step,
so that they end even if more changes arrive all the time."""
_TABLES: Final = {
    "embedding_fulltext_search": "rowid",
    "embedding_metadata": "id",
    "embedding_metadata_array": "id",
    "embeddings": "id",
}
"""The tables with the rows of chunks, and their column for the row number of the chunk."""


class _Rewrite:
    """A rewrite that has begun. It holds no object of Chroma, so Chroma may be opened again."""

    def __init__(self, source: str, last_row: int) -> None:
        self.source = source
        """The id of the collection."""
        self.target = successor_name(source)
        """The name of the new one."""
        self.row = 0
        """Chunks up to this row number are copied."""
        self.last_row = last_row
        """The last row number when the rewrite began. Later chunks are among `changed`."""
        self.changed: set[str] = set()
        """Ids of chunks that were stored, changed or deleted since the rewrite began."""
        self.applied_at_once = _FIRST_APPLIED


class Rewrites:
    """The rewrites and deletions of the collections in one folder.

    Args:
        path: Chroma's folder.
        database: Chroma's database.
    """

    def __init__(self, path: Path, database: Database) -> None:
        self._path = path
        self._database = database
        self._under_way: dict[str, _Rewrite] = {}
        self._merge: int | None = None
        """What the next step of merging the full-text index is called with; None if it is merged."""

    def note(self, name: str, ids: Iterable[str]) -> None:
        """Note that chunks are about to change. Call it before each write to a collection."""
        if (rewrite := self._under_way.get(name)) is not None:
            rewrite.changed.update(ids)

    def abandon(self, name: str) -> None:
        """Give up the rewrite of a collection. `delete_some` deletes what was copied."""
        self._under_way.pop(name, None)

    def is_under_way(self, name: str) -> bool:
        """Whether the rewrite of this collection has begun."""
        return name in self._under_way

    def begin(self, client: ClientAPI, name: str, source: Collection) -> bool:
        """Begin a rewrite if more than half of the index are deleted chunks.

        Returns:
            Whether it has begun.
        """
        (segment,) = self._index(str(source.id))
        header = IndexHeader.read(self._path / segment)
        if header is None or header.places <= 2 * source.count() or not self._database.readable:
            return False
        ((last_row,),) = self._database.select("SELECT max(id) FROM embeddings")
        rewrite = _Rewrite(str(source.id), last_row or 0)
        held: Any = source.configuration
        copied = ("space", "ef_search", "sync_threshold")
        configuration: Any = {"hnsw": {key: held["hnsw"][key] for key in copied}}
        client.create_collection(
            rewrite.target, embedding_function=None, configuration=configuration
        )
        self._under_way[name] = rewrite
        return True

    def step(self, client: ClientAPI, name: str, source: Collection, *, may_end: bool) -> bool:
        """Do one step of a rewrite. A failure ends the rewrite, and the next one begins anew.

        Args:
            client: Chroma.
            name: The name of the collection.
            source: The collection.
            may_end: Whether the new collection may take the place of the old one in this step.

        Returns:
            Whether it has taken its place.
        """
        rewrite = self._under_way.pop(name)
        if rewrite.source != str(source.id):  # it was deleted and created again
            return False
        target = client.get_collection(rewrite.target, embedding_function=None)
        if self._is_complete(rewrite, source, target) and may_end:
            if (had := source.count()) != (has := target.count()):
                raise RuntimeError(
                    f"the collection {name!r} has {had} chunks, but its copy {has}; the copy is "
                    "deleted"
                )
            replace(self._path, rewrite.source, str(target.id))
            return True
        self._under_way[name] = rewrite
        return False

    def _is_complete(self, rewrite: _Rewrite, source: Collection, target: Collection) -> bool:
        """Copy and change some chunks; returns whether the new collection is equal to the old."""
        end = time.monotonic() + _STEP_SECONDS
        while rewrite.row < rewrite.last_row and time.monotonic() < end:
            self._copy_page(rewrite, source, target)
        if rewrite.row < rewrite.last_row or time.monotonic() > end:
            return False
        if rewrite.changed:
            count = min(len(rewrite.changed), rewrite.applied_at_once)
            changed = [rewrite.changed.pop() for _ in range(count)]
            rewrite.applied_at_once *= 2
            target.delete(ids=changed)
            _copy(changed, source, target)
        return not rewrite.changed

    def _copy_page(self, rewrite: _Rewrite, source: Collection, target: Collection) -> None:
        # With the plus, SQLite does not use the index on `segment_id` (see `Database`).
        rows = self._database.select(
            "SELECT id, embedding_id FROM embeddings WHERE id > ? AND id <= ? AND +segment_id ="
            " (SELECT id FROM segments WHERE scope = 'METADATA' AND collection = ?)"
            " ORDER BY id LIMIT ?",
            (rewrite.row, rewrite.last_row, rewrite.source, _COPY_PAGE),
        )
        _copy([one for _, one in rows if one not in rewrite.changed], source, target)
        rewrite.row = rows[-1][0] if len(rows) == _COPY_PAGE else rewrite.last_row

    def delete_some(self, client: ClientAPI) -> bool:
        """Delete some chunks of a collection that nobody uses, or the collection if it is empty.

        Once all are deleted, the full-text index is merged, which then gives back their space.

        Returns:
            Whether there is more to do.
        """
        kept = {rewrite.target for rewrite in self._under_way.values()}
        names = self._database.select(
            "SELECT id, name FROM collections WHERE substr(name, 1, ?) = ?", (len(UNUSED), UNUSED)
        )
        for collection, name in names:
            if name in kept:
                continue
            if not (self._database.readable and _delete_rows(self._path, collection)):
                found = client.get_collection(name, embedding_function=None)
                delete_collection(client, self._database, found)
                self._merge = -_MERGE_PAGES
            return True
        return self._merge_some()

    def _merge_some(self) -> bool:
        """Merge a part of Chroma's full-text index, which keeps deleted words until then.

        Returns:
            Whether there is more to merge.
        """
        if self._merge is None:
            return False
        with writing(self._path) as connection:
            if "embedding_fulltext_search" not in _tables(connection):
                self._merge = None
                return False
            before = connection.total_changes
            connection.execute(
                "INSERT INTO embedding_fulltext_search (embedding_fulltext_search, rank) "
                "VALUES ('merge', ?)",
                (self._merge,),
            )
            # As SQLite documents it: a difference below 2 means that nothing was merged. A negative
            # number begins a merge of the whole index, a positive one goes on with it.
            more = connection.total_changes - before >= 2  # noqa: PLR2004
        self._merge = _MERGE_PAGES if more else None
        return more

    def _index(self, collection: str) -> list[str]:
        rows = self._database.select(
            "SELECT id FROM segments WHERE scope = 'VECTOR' AND collection = ?", (collection,)
        )
        return [index for (index,) in rows]


def delete_collection(client: ClientAPI, database: Database, collection: Collection) -> None:
    """Delete a collection and its index files, which Chroma leaves. The mirror deletes its copy."""
    indexes = database.select(
        "SELECT id FROM segments WHERE scope = 'VECTOR' AND collection = ?",
        (str(collection.id),),
    )
    client.delete_collection(collection.name)
    for (index,) in indexes:
        shutil.rmtree(database.folder / index, ignore_errors=True)


def _copy(ids: list[str], source: Collection, target: Collection) -> None:
    import numpy as np

    if not ids:
        return  # Chroma would return every chunk
    found: Any = source.get(ids=ids, include=["documents", "metadatas", "embeddings"])
    if found["ids"]:
        target.add(
            ids=found["ids"],
            documents=found["documents"],
            metadatas=found["metadatas"],
            embeddings=np.asarray(found["embeddings"], np.float32),
        )


def _delete_rows(folder: Path, collection: str) -> bool:
    """Delete some rows of a collection. Chroma itself deletes all in one call: 100,000 take 9 s.

    Returns:
        Whether there were any.
    """
    with writing(folder) as connection:
        rows = [
            row
            for (row,) in connection.execute(
                "SELECT id FROM embeddings WHERE segment_id ="
                " (SELECT id FROM segments WHERE scope = 'METADATA' AND collection = ?) LIMIT ?",
                (collection, _DELETE_PAGE),
            )
        ]
        marks = ", ".join("?" * len(rows))
        for table in _TABLES.keys() & _tables(connection):
            column = _TABLES[table]
            connection.execute(f"DELETE FROM {table} WHERE {column} IN ({marks})", rows)  # noqa: S608
    return bool(rows)


def _tables(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}

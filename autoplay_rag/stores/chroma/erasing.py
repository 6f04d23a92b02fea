"""Removes the remains of deleted chunks from the files of a Chroma folder.

Deleted texts and metadata are in free pages and in the full-text index of the database, deleted
vectors in the index. Both are in Chroma's log.

Statements about Chroma apply to chromadb 1.5.9.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from autoplay_rag.stores.chroma.copies import DATABASE
from autoplay_rag.stores.chroma.index import clear_vectors

__all__ = ["erase_deleted", "erase_vectors"]

_APPLIED: Final = (
    "EXISTS (SELECT 1 FROM segments JOIN max_seq_id ON max_seq_id.segment_id = segments.id "
    "WHERE segments.scope = 'METADATA' AND topic LIKE '%' || segments.collection "
    "AND embeddings_queue.seq_id <= max_seq_id.seq_id)"
)
"""Chroma's log keeps the last thousand or so changes, with text and vector. The text and metadata of
these entries are in the tables already; only ids and vectors are read again, for the index."""
_PRESENT: Final = (
    "EXISTS (SELECT 1 FROM segments JOIN embeddings ON embeddings.segment_id = segments.id "
    "WHERE segments.scope = 'METADATA' AND topic LIKE '%' || segments.collection "
    "AND embeddings.embedding_id = embeddings_queue.id)"
)
_DELETE: Final = 3
"""Chroma's number for deletions in the log."""
_BUSY_SECONDS: Final = 30.0


def erase_deleted(folder: Path) -> None:
    """Remove deleted texts, metadata and vectors from the database.

    Call it between two calls of Chroma, and after one for each collection: after a kill, Chroma
    applies its log only then.

    Raises:
        sqlite3.Error: If the database cannot be written.
    """
    with closing(
        sqlite3.connect(folder / DATABASE, timeout=_BUSY_SECONDS, isolation_level=None)
    ) as connection:
        connection.execute("PRAGMA secure_delete = ON").fetchone()
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(
            f"DELETE FROM embeddings_queue WHERE operation <> {_DELETE} AND {_APPLIED} "  # noqa: S608
            f"AND NOT {_PRESENT} "
            # Chroma numbers the next entry after the last one, which must stay.
            "AND seq_id < (SELECT max(seq_id) FROM embeddings_queue)"
        )
        connection.execute(
            f"UPDATE embeddings_queue SET metadata = NULL WHERE metadata IS NOT NULL AND {_APPLIED}"  # noqa: S608
        )
        _erase_replaced_vectors(connection)
        connection.execute(
            "INSERT INTO embedding_fulltext_search (embedding_fulltext_search) VALUES ('optimize')"
        )
        connection.execute("COMMIT")
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()


def erase_vectors(folder: Path) -> bool:
    """Overwrite the vectors of deleted and replaced chunks in all indexes of a folder.

    Call it after `erase_deleted`, while Chroma does not have the folder open: it would write again
    what it has in memory.

    Returns:
        False if an index has an unknown format, so that it may keep vectors.

    Raises:
        OSError: If files cannot be read or written.
        sqlite3.Error: If the database cannot be read.
    """
    with closing(
        sqlite3.connect(f"{(folder / DATABASE).as_uri()}?mode=ro", uri=True)
    ) as connection:
        indexes = connection.execute(
            "SELECT id, collection FROM segments WHERE scope = 'VECTOR'"
        ).fetchall()
        return all(
            clear_vectors(folder / index, _kept_vectors(connection, index, collection))
            for index, collection in indexes
            if (folder / index / "header.bin").exists()
        )


def _kept_vectors(connection: sqlite3.Connection, index: str, collection: str) -> set[str]:
    """Return the ids of chunks that need the vectors that their index has on disk.

    The others were deleted, or Chroma's log has a later vector for them, which Chroma puts into
    the index when it opens it.
    """
    present = connection.execute(
        "SELECT embedding_id FROM embeddings WHERE segment_id ="
        " (SELECT id FROM segments WHERE scope = 'METADATA' AND collection = ?)",
        (collection,),
    )
    later = connection.execute(
        f"SELECT id FROM embeddings_queue WHERE (operation = {_DELETE} OR vector IS NOT NULL)"  # noqa: S608
        " AND topic LIKE '%' || ?"
        " AND seq_id > (SELECT seq_id FROM max_seq_id WHERE segment_id = ?)",
        (collection, index),
    )
    return {one for (one,) in present} - {one for (one,) in later}


def _erase_replaced_vectors(connection: sqlite3.Connection) -> None:
    """Replace older vectors of a chunk in the log by its last one. The index needs only that."""
    last: dict[tuple[str, str], bytes] = {}
    entries = connection.execute(
        "SELECT seq_id, topic, id, vector FROM embeddings_queue WHERE vector IS NOT NULL"
        " ORDER BY seq_id DESC"
    ).fetchall()
    for entry, topic, chunk_id, vector in entries:
        if (newest := last.setdefault((topic, chunk_id), vector)) != vector:
            connection.execute(
                "UPDATE embeddings_queue SET vector = ? WHERE seq_id = ?", (newest, entry)
            )

"""Removes the remains of deleted chunks from the files of a Chroma folder.

Statements about Chroma apply to chromadb 1.5.9.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from autoplay_rag.stores.chroma.copies import DATABASE

__all__ = ["erase_deleted"]

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
    """Remove deleted texts and metadata from the database. Call it between two calls of Chroma.

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
        connection.execute(
            "INSERT INTO embedding_fulltext_search (embedding_fulltext_search) VALUES ('optimize')"
        )
        connection.execute("COMMIT")
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

"""Deletes the content of payloads: what forgetting and retention have in common.

All functions block and run in a transaction on the writer thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from autoplay_rag.journal.catalog import CatalogTables
from autoplay_rag.journal.database import JournalDatabase
from autoplay_rag.journal.rows import Connection, Database, delete_in, insert, json_list
from autoplay_rag.journal.schema import PayloadState

__all__ = ["Deletion", "compact"]

_LARGE_BYTES: Final = 4096
"""Rows of larger payloads are rewritten when their bodies are dropped."""
_WITHOUT_BODY: Final = (
    "seq, key, lane, kind, session, at, actions, claimed, state, retried, size, ended, error"
)


class Deletion:
    """Deletes payloads with everything that was made of them.

    Args:
        file: The journal's file.
        catalog: The catalog in the same file.
    """

    def __init__(self, file: JournalDatabase, catalog: CatalogTables) -> None:
        self._file = file
        self._catalog = catalog
        self._connection = file.connection

    def delete_content(self, seqs: Sequence[int], lanes: Iterable[int]) -> None:
        """Delete words, claims, and sessions that have no other payload.

        Args:
            seqs: The payloads.
            lanes: Their sessions.
        """
        self._catalog.fulltext.remove(seqs)
        self._connection.execute(
            "DELETE FROM visit WHERE payloads = 0 AND lane IN (SELECT value FROM json_each(?))",
            (json_list(lanes),),
        )
        delete_in(self._connection, "claim", "seq", seqs)

    def delete_rows(self, seqs: Sequence[int]) -> None:
        """Delete the payloads' rows. Their numbers are not assigned again."""
        last = max((*seqs, self._file.meta("last_seq") or 0))
        self._file.set_meta("last_seq", last)
        delete_in(self._connection, "payload", "seq", seqs)

    def count_discarded(self, payloads: Iterable[tuple[int, int]]) -> None:
        """Count payloads that waited or were dead as discarded.

        Args:
            payloads: State and size of each.
        """
        counts = self._file.counts
        for state, size in payloads:
            if state in (PayloadState.WAITING, PayloadState.DEAD):
                counts["pending" if state == PayloadState.WAITING else "dead"] -= 1
                counts["discarded"] += 1
                counts["bytes"] -= size


def compact(connection: Connection, seqs: Iterable[int]) -> None:
    """Rewrite rows that lost a large body: in SQLite, an update would leave each on its own page."""
    if isinstance(connection, Database):
        return
    large = f"size > {_LARGE_BYTES} AND seq IN (SELECT value FROM json_each(?))"
    given = json_list(seqs)
    rows = connection.execute(
        f"SELECT {_WITHOUT_BODY} FROM payload WHERE {large}", (given,)
    ).fetchall()
    if rows:
        connection.execute(f"DELETE FROM payload WHERE {large}", (given,))
        insert(connection, f"payload ({_WITHOUT_BODY})", rows)

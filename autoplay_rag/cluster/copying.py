"""Tracks changes of chunks during a re-embedding. The tables and the trigger are always there."""

from __future__ import annotations

from typing import Final

from autoplay_rag.cluster.database import PostgresDatabase
from autoplay_rag.journal.copying import Copy, CopyTables

__all__ = ["PostgresCopyTables"]

_NOTING: Final = "copying"
"""While `meta` has this name, the trigger on `chunk` notes changes."""


class PostgresCopyTables(CopyTables):
    """The operations on the tables of a copy. `CopyTables` has the rest."""

    _file: PostgresDatabase

    def begin(self, model: str, collection: str, render: bool) -> Copy:
        """As in `CopyTables`."""
        self._file.lock_out_others()
        return super().begin(model, collection, render)

    def exchanging(self) -> bool:
        """As in `CopyTables`."""
        self._file.lock_out_others()
        return super().exchanging()

    def exchanged(self, batch: int) -> int:
        """As in `CopyTables`."""
        self._file.lock_out_others()
        return super().exchanged(batch)

    def _add_tables(self) -> None:
        self._file.set_meta(_NOTING, 1)

    def _remove_tables(self) -> None:
        self._file.delete_meta(_NOTING)
        for table in ("copying", "rendered"):
            self._connection.execute(f"DELETE FROM {table}")

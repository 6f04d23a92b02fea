"""Copies of a schema in PostgreSQL at each commit, as a crash at that moment would leave it.

Journal and store are in one schema, so one copy has both as they were together.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self, TypeAlias

import psycopg
from psycopg import errors, sql

from autoplay_rag.cluster.connection import PostgresConnection
from autoplay_rag.stores import PgVectorStore
from autoplay_rag.stores.postgres.tables import collection_statements

__all__ = ["Copy", "SchemaCopies", "WatchedPgStore"]

Copy: TypeAlias = dict[str, bytes]
"""The rows of each table that has some, in PostgreSQL's binary form."""

_LEASES = {"worker", "lease"}
"""A new process goes on once the lease of the killed one has ended. Here, it has ended."""
_CHUNKS = re.compile(r"store_chunk_(\d+)").fullmatch
_CHANGES = ("start", "upsert", "delete", "update_metadata", "save_identity", "exchange", "drop")


class WatchedPgStore(PgVectorStore):
    """Calls `on_change` after each change. Its siblings do too."""

    on_change: Callable[[], None] = staticmethod(lambda: None)

    def sibling(self, name: str) -> WatchedPgStore:
        found = super().sibling(name)
        found.on_change = lambda: self.on_change()  # noqa: PLW0108 - it is set later
        return found


def _watched(name: str) -> Any:
    async def change(self: WatchedPgStore, *args: Any) -> None:
        await getattr(PgVectorStore, name)(self, *args)
        self.on_change()

    return change


for _name in _CHANGES:
    setattr(WatchedPgStore, _name, _watched(_name))


class SchemaCopies:
    """Takes and restores copies of all rows of a schema.

    Sequences are not restored: a crash leaves them where they are.

    Args:
        dsn: The address of the server.
        schema: The name of the schema. It may be missing at first.
    """

    def __init__(self, dsn: str, schema: str) -> None:
        self._schema = schema
        self._lock = threading.Lock()
        self._connection = psycopg.connect(dsn, autocommit=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def take(self) -> Copy:
        """Copy all rows as they are now, except leases. May be called from any thread."""
        while True:
            with suppress(errors.UndefinedTable):  # it was dropped after the tables were listed
                return self._take()

    def _take(self) -> Copy:
        found = {}
        with self._lock, self._connection.transaction():
            self._run("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            for table in self._tables() - _LEASES:
                with self._connection.cursor().copy(
                    sql.SQL("COPY {} TO STDOUT (FORMAT binary)").format(self._name(table))
                ) as copied:
                    found[table] = b"".join(map(bytes, copied))
        return found

    def restore(self, copy: Copy) -> None:
        """Make all rows those of a copy. Nothing else may use the schema."""
        with self._lock, self._connection.transaction():
            # Triggers would add rows of their own.
            self._run("SET LOCAL session_replication_role = replica")
            self._make_missing(copy)
            for table in self._tables():
                self._run(sql.SQL("DELETE FROM {}").format(self._name(table)))
                if table in copy:
                    with self._connection.cursor().copy(
                        sql.SQL("COPY {} FROM STDIN (FORMAT binary)").format(self._name(table))
                    ) as copied:
                        copied.write(copy[table])

    @contextmanager
    def watching(self, store: WatchedPgStore, note: Callable[[], None]) -> Iterator[None]:
        """Call `note` after each commit of a journal, and after each change of the store."""
        original = PostgresConnection.commit

        def commit(connection: PostgresConnection) -> None:
            original(connection)
            note()

        PostgresConnection.commit = commit
        store.on_change = note
        try:
            yield
        finally:
            PostgresConnection.commit = original
            store.on_change = lambda: None

    def _make_missing(self, copy: Copy) -> None:
        """Create the tables of collections that have been dropped since."""
        numbers = {found[1] for table in copy.keys() - self._tables() if (found := _CHUNKS(table))}
        for number in numbers:
            for statement in collection_statements(self._schema, int(number), "halfvec"):
                self._run(statement)

    def _tables(self) -> set[str]:
        rows = self._run(
            "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = %s AND c.relkind = 'r'",
            self._schema,
        )
        return {table for (table,) in rows.fetchall()}

    def _name(self, table: str) -> sql.Identifier:
        return sql.Identifier(self._schema, table)

    def _run(self, statement: Any, *parameters: Any) -> psycopg.Cursor[Any]:
        return self._connection.execute(statement, parameters or None)

"""When the vector index is built, and how.

A batch of vectors takes 25 times as long with the index as without it. So the index is built once
there is something to gain, and once writing has calmed down: after a backfill, not during it.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

import psycopg
from psycopg import errors, pq

from autoplay_rag._describe import describe
from autoplay_rag.errors import ConfigurationError, StoreError
from autoplay_rag.stores.postgres.contents import Contents
from autoplay_rag.stores.postgres.link import Connection, Link
from autoplay_rag.stores.postgres.tables import Collection, Tables, Vectors

__all__ = ["MOST_INDEXED_DIMENSIONS", "IndexBuilder"]

_log = logging.getLogger(__name__)

MOST_INDEXED_DIMENSIONS = 4000
"""pgvector indexes no vectors with more dimensions. They are searched exactly."""

_LEAST_ROWS = 10_000
"""With fewer chunks, an exact search takes some milliseconds."""
_CALM_SECONDS = 10.0
_CALM_ROWS = 2000
"""Writing has calmed down if at most this many chunks were stored in `_CALM_SECONDS`."""
_POLL_SECONDS = 0.2
_OTHER_BUILDS = (errors.DuplicateTable, errors.UniqueViolation, errors.DeadlockDetected)
"""What a second build of the same index ends with, depending on how far the first one is."""


class IndexBuilder:
    """Builds the vector index of a store, on request or after a backfill.

    Used in the store's loop only. The index is built while others read and write. If the store is
    closed meanwhile, the server goes on and completes it.

    Args:
        link: The connections.
        tables: The names of tables.
        contents: The collection.
    """

    def __init__(self, link: Link, tables: Tables, contents: Contents) -> None:
        self._link = link
        self._tables = tables
        self._contents = contents
        self._written = 0
        self._filled: dict[int, Collection] = {}
        self._watching: asyncio.Task[None] | None = None

    def wrote(self, collection: Collection, rows: int) -> None:
        """Note that chunks were stored without an index; build it once writing has calmed down."""
        self._written += rows
        self._filled[collection.number] = collection
        if self._watching is None or self._watching.done():
            self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def build(self) -> bool:
        """Build the index now.

        Returns:
            Whether there is an index afterwards. False for an empty collection.

        Raises:
            ConfigurationError: If the vectors have too many dimensions.
        """
        found, vectors = await self._contents.whole()
        if found is None or found.dimension is None:
            return False
        if found.dimension > MOST_INDEXED_DIMENSIONS:
            raise ConfigurationError(
                f"vectors of {found.dimension} dimensions cannot be indexed; pgvector indexes at "
                f"most {MOST_INDEXED_DIMENSIONS}: use an embedder with fewer dimensions, or search "
                "without an index"
            )
        await self._build(found, vectors, wait=True)
        return True

    async def build_if_due(self) -> bool:
        """Build the index now if the collection is large enough to need one.

        Returns:
            Whether there is an index afterwards.
        """
        found, vectors = await self._contents.whole()
        if found is None or not (found.indexed or await self._is_due(found)):
            return False
        await self._build(found, vectors, wait=True)
        return True

    async def drop(self) -> None:
        """Delete the index."""
        found, _ = await self._contents.whole()
        if found is not None:
            async with self._link.transaction() as connection:
                await connection.execute(f"DROP INDEX IF EXISTS {self._tables.index(found.number)}")

    async def close(self) -> None:
        """Start a build that is due, without waiting for it, and end the task."""
        watching, self._watching = self._watching, None
        if watching is None or watching.done():
            return
        watching.cancel()
        await asyncio.wait([watching])
        await self._try(wait=False)

    async def _watch(self) -> None:
        while True:
            before = self._written
            await asyncio.sleep(_CALM_SECONDS)
            if self._written - before <= _CALM_ROWS:
                break
        await self._try(wait=True)

    async def _try(self, *, wait: bool) -> None:
        try:
            found, vectors = await self._contents.whole()
            # What was filled may have another name now, after an exchange.
            if found is not None:
                self._filled[found.number] = found
            for each in list(self._filled.values()):
                with suppress(errors.UndefinedTable):  # dropped meanwhile
                    if not each.indexed and await self._is_due(each):
                        await self._build(each, vectors, wait=wait)
                # Not before: `close` may have cancelled this, and goes on.
                self._filled.pop(each.number, None)
        except (psycopg.Error, OSError) as error:
            self._not_built(self._link.explained(error))
        except (StoreError, ConfigurationError) as error:
            self._not_built(error)

    def _not_built(self, error: Exception) -> None:
        # Without the index, searches are slower and complete. The next batch tries again.
        _log.warning("the vector index of %r was not built: %s", self._tables.name, describe(error))

    async def _is_due(self, found: Collection) -> bool:
        if found.dimension is None or found.dimension > MOST_INDEXED_DIMENSIONS:
            return False
        async with self._link.transaction() as connection:
            cursor = await connection.execute(
                f"SELECT count(*) FROM (SELECT FROM {self._tables.vectors(found.number)} "
                f"LIMIT {_LEAST_ROWS}) AS first"
            )
            row = await cursor.fetchone()
        return row is not None and row[0] >= _LEAST_ROWS

    async def _build(self, found: Collection, vectors: Vectors, *, wait: bool) -> None:
        statement = (
            f"CREATE INDEX CONCURRENTLY {self._tables.index_name(found.number)} "
            f"ON {self._tables.vectors(found.number)} USING hnsw "
            f"((vector::{vectors.type}({found.dimension})) {vectors.schema}.halfvec_ip_ops)"
        )
        # A connection of its own: a build takes minutes, and may go on after the store is closed.
        connection = await self._link.connect()
        try:
            while await self._is_needed(connection, found.number, wait=wait):
                _log.info("building the vector index of %r", self._tables.name)
                await _send(connection, statement)
                if not wait:
                    return
                with suppress(*_OTHER_BUILDS):  # then that one is waited for
                    await _finished(connection)
                    # The planner would take the table for a small one until autovacuum comes.
                    tables = (
                        f"{self._tables.chunks(found.number)}, {self._tables.vectors(found.number)}"
                    )
                    await connection.execute(f"ANALYZE {tables}")
        finally:
            # Not `close`, which may cancel the statement: the server completes it.
            connection.pgconn.finish()

    async def _is_needed(self, connection: Connection, number: int, *, wait: bool) -> bool:
        """Whether nobody has built the index. Deletes one that was left incomplete.

        Args:
            connection: Outside of a transaction.
            number: The number of the tables.
            wait: Whether to wait for somebody who is building it.
        """
        while True:
            cursor = await connection.execute(
                "SELECT i.indisvalid, EXISTS (SELECT FROM pg_stat_progress_create_index p "
                "WHERE p.relid = i.indrelid) FROM pg_index i WHERE i.indexrelid = to_regclass(%s)",
                [self._tables.index(number)],
            )
            row = await cursor.fetchone()
            if row is None:
                return True
            valid, in_progress = row
            if valid or (in_progress and not wait):
                return False
            if not in_progress:
                await connection.execute(
                    f"DROP INDEX CONCURRENTLY IF EXISTS {self._tables.index(number)}"
                )
                return True
            await asyncio.sleep(_POLL_SECONDS)


async def _send(connection: Connection, statement: str) -> None:
    """Send a statement without waiting for its result.

    psycopg cancels a statement if its caller is cancelled, and this one is to go on.
    """
    connection.pgconn.send_query(statement.encode())
    while connection.pgconn.flush():  # noqa: ASYNC110 - libpq has no event
        await asyncio.sleep(_POLL_SECONDS)


async def _finished(connection: Connection) -> None:
    pgconn = connection.pgconn
    while True:
        pgconn.consume_input()
        if not pgconn.is_busy():
            break
        await asyncio.sleep(_POLL_SECONDS)
    # To the end, also after an error: the connection takes no other statement before.
    results = list(iter(pgconn.get_result, None))
    for result in results:
        if result.status != pq.ExecStatus.COMMAND_OK:
            raise errors.error_from_result(result)

"""Reads the journal in PostgreSQL beside the writer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import psycopg

from autoplay_rag._serial import SerialThread
from autoplay_rag.cluster.connection import PostgresConnection
from autoplay_rag.cluster.finding import PostgresFinder, PostgresTimeline
from autoplay_rag.errors import JournalError
from autoplay_rag.stores.postgres.dsn import place_of
from autoplay_rag.stores.postgres.failures import reason_of

__all__ = ["PostgresReadThread"]

T = TypeVar("T")

_NAME: Final = "autoplay-journal-reader"
_COSTS: Final = "SET LOCAL random_page_cost = 1.1"
"""Reads look up few rows by an index. The default, for disks that turn, makes the server read whole
tables instead."""
_SNAPSHOT: Final = "ISOLATION LEVEL REPEATABLE READ READ ONLY"


class PostgresReadThread:
    """A connection that only reads, with its own thread. Each read sees one moment.

    Args:
        parameters: The parameters of a connection, by libpq's names.
        schema: The name of the schema.
    """

    def __init__(self, parameters: Mapping[str, str], schema: str) -> None:
        self._place = place_of(parameters)
        self._thread = SerialThread(_NAME)
        self.connection = PostgresConnection(parameters, schema)
        self.finder = PostgresFinder(self.connection)
        self.timeline = PostgresTimeline(self.connection)

    async def run(self, work: Callable[[], T], /) -> T:
        """Await `work()` in the thread.

        Raises:
            JournalError: If the journal cannot be read.
        """
        return await self._thread.run(self._read, work)

    async def close(self) -> None:
        """Close the connection, and end the thread. A later call would start both again."""
        await self._thread.finish(self.connection.close)
        self._thread = SerialThread(_NAME)  # the former one ends without a reference

    def _read(self, work: Callable[[], T]) -> T:
        was_open = self.connection.is_open
        try:
            try:
                return self._attempt(work)
            except psycopg.Error:
                # The server may have ended an idle connection.
                if not was_open or self.connection.is_open:
                    raise
                return self._attempt(work)
        except psycopg.Error as error:
            raise JournalError(
                f"the journal in PostgreSQL ({self._place}) cannot be read: {reason_of(error)}"
            ) from None

    def _attempt(self, work: Callable[[], T]) -> T:
        try:
            self.connection.begin(_COSTS, options=_SNAPSHOT)
            return work()
        finally:
            self.connection.rollback()

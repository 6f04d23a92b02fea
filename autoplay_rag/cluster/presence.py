"""Shows which processes run: each holds a lock that PostgreSQL frees when its connection ends.

The system closes the connections of a process that is killed. So others notice within moments, long
before a lease or a session ends. Nothing that is written depends on it, because it may be wrong:

- A machine that lost power or its network closes nothing. Its lock stays until PostgreSQL gives the
  connection up.
- A process that lost its connection has no lock until it is connected again.
- Behind a pooler in transaction mode, the lock belongs to a connection of the pooler.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from autoplay_rag._backoff import grown_delay
from autoplay_rag.errors import ConfigurationError, StoreError

if TYPE_CHECKING:
    from autoplay_rag.stores.postgres.link import Link

__all__ = ["Presence", "lock_of"]

_log = logging.getLogger(__name__)

_SHORTEST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 2.0
"""Others take a process for ended while it is not connected, so this is short."""


def lock_of(schema: str, name: str) -> str:
    """Return the text whose hash is the number of the lock of a process.

    Args:
        schema: The quoted name of the schema.
        name: The name of the process; "" for the beginning of all of them.
    """
    return f"autoplay-rag process {schema} {name}"


class Presence:
    """The lock of this process.

    Args:
        link: Opens the connection, which is kept for as long as `run` runs.
        schema: The quoted name of the schema.
        name: The name of this process.
    """

    def __init__(self, link: Link, schema: str, name: str) -> None:
        self._link = link
        self._lock = lock_of(schema, name)
        self._failures = 0

    async def run(self) -> None:
        """Hold the lock until cancelled. A connection that ends is opened again."""
        while True:
            try:
                await self._link.run(self._hold, limited=False)
            except (StoreError, ConfigurationError) as error:
                level = logging.DEBUG if self._failures else logging.WARNING
                _log.log(level, "other processes may take this one for ended: %s", error)
            await asyncio.sleep(grown_delay(self._failures, _SHORTEST_PAUSE, _LONGEST_PAUSE))
            self._failures += 1

    async def _hold(self) -> None:
        connection = await self._link.connect()
        try:
            # Shared: it does not wait for a former connection of this process.
            await connection.execute(
                b"SELECT pg_advisory_lock_shared(hashtextextended(%s, 0))", (self._lock,)
            )
            self._failures = 0
            async for _ in connection.notifies():
                pass  # nothing comes: this raises when the connection ends
        finally:
            await connection.close()

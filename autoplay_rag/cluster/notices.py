"""Notifications of other processes (`LISTEN`), as a wake-up.

They may be lost: while the connection is down, and always behind a pooler in transaction mode. So
whoever uses them polls as well.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from autoplay_rag._backoff import grown_delay
from autoplay_rag.errors import ConfigurationError, StoreError

if TYPE_CHECKING:
    from autoplay_rag.stores.postgres.link import Link

__all__ = ["Notices", "channel_of"]

_log = logging.getLogger(__name__)

_SHORTEST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 30.0


def channel_of(schema: str) -> str:
    """Return the channel of NOTIFY on which the processes of one journal wake each other.

    The message of new payloads has their partitions, separated by commas.

    Example:
        >>> channel_of("autoplay")[:9], len(channel_of("x" * 63))
        ('autoplay_', 41)
    """
    return f"autoplay_{blake2b(schema.encode(), digest_size=16).hexdigest()}"


class Notices:
    """Listens on one channel.

    Args:
        link: Opens the connection, which is kept for as long as `run` runs.
        channel: The name of the channel.
        on_notice: Called on the event loop that runs `run` with the text of each notification, and
            with "" after each connect: something may have been missed.
    """

    def __init__(self, link: Link, channel: str, on_notice: Callable[[str], None]) -> None:
        self._link = link
        self._channel = channel
        self._on_notice = on_notice
        self._failures = 0

    async def run(self) -> None:
        """Listen until cancelled. A connection that ends is opened again."""
        loop = asyncio.get_running_loop()

        def tell(text: str) -> None:
            loop.call_soon_threadsafe(self._on_notice, text)

        while True:
            try:
                await self._link.run(lambda: self._listen(tell), limited=False)
            except (StoreError, ConfigurationError) as error:
                level = logging.DEBUG if self._failures else logging.WARNING
                _log.log(level, "notifications are not received, only polled for: %s", error)
            await asyncio.sleep(grown_delay(self._failures, _SHORTEST_PAUSE, _LONGEST_PAUSE))
            self._failures += 1

    async def _listen(self, tell: Callable[[str], None]) -> None:
        connection = await self._link.connect()
        try:
            quoted = '"' + self._channel.replace('"', '""') + '"'
            await connection.execute(f"LISTEN {quoted}".encode())
            self._failures = 0
            tell("")
            async for notice in connection.notifies():
                tell(notice.payload)
        finally:
            await connection.close()

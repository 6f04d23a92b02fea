"""Live sessions for processes that do not run the pipeline themselves."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from autoplay_rag._checks import check_above
from autoplay_rag._describe import describe
from autoplay_rag.journal.reader import JournalReader
from autoplay_rag.live import LiveSessions

__all__ = ["follow_journal"]

_log = logging.getLogger(__name__)


@asynccontextmanager
async def follow_journal(
    journal: str | Path,
    *,
    live: LiveSessions | None = None,
    seconds: float = 600.0,
    interval: float = 0.5,
) -> AsyncIterator[LiveSessions]:
    """Follow live sessions in a process without a pipeline, such as a second web worker.

    Args:
        journal: The file that a pipeline on this machine writes.
        live: The `LiveSessions` to fill; None makes one with the default limits.
        seconds: How many seconds back to begin. With `keep_payloads=False` only payloads that are
            not stored yet are shown. After each request to forget, it begins anew.
        interval: Seconds between two reads of the file; more than 0.

    Yields:
        The sessions, kept up to date until the block ends.

    Raises:
        ConfigurationError: If `interval` is not valid.
        JournalError: If the journal does not exist or cannot be read.

    Example:
        >>> async def main():
        ...     async with follow_journal("journal.db") as live:
        ...         return live.get(user_id="u1")
        >>> asyncio.run(main())
        Traceback (most recent call last):
        autoplay_rag.errors.JournalError: no journal found at journal.db; check the path
    """
    check_above("interval", interval)
    kept = LiveSessions() if live is None else live
    reader = await asyncio.to_thread(JournalReader, journal)
    follower = _Follower(reader, kept, seconds)
    await follower.catch_up()

    async def follow() -> None:
        failing = False
        while True:
            await asyncio.sleep(interval)
            try:
                await follower.catch_up()
                failing = False
            except Exception as error:  # noqa: BLE001 - a look that fails must not be the last
                if not failing:
                    _log.warning("live sessions are not updated; retrying: %s", describe(error))
                failing = True

    task = asyncio.create_task(follow(), name="autoplay-follow")
    try:
        yield kept
    finally:
        task.cancel()
        await asyncio.wait([task])


class _Follower:
    def __init__(self, reader: JournalReader, live: LiveSessions, seconds: float) -> None:
        self._reader = reader
        self._live = live
        self._seconds = seconds
        self._begun = time.time() - seconds
        self._forgotten: int | None = None
        # Updated after each payload, so that a read that fails half-way does not add any twice.
        self._seen = 0

    async def catch_up(self) -> None:
        # Read first: what is read after it is without what that request forgot.
        forgotten = await asyncio.to_thread(self._reader.last_request_to_forget)
        if self._forgotten not in (None, forgotten):
            await self._begin_anew()
        self._forgotten = forgotten
        while found := await asyncio.to_thread(self._reader.payloads, self._seen, self._begun):
            for seq, at, payload in found:
                self._live.add(payload, at=at)
                self._seen = seq

    async def _begin_anew(self) -> None:
        """Read all sessions again: the journal does not say whom it forgot."""
        fresh, seen = self._live.like(), 0
        since = max(self._begun, time.time() - self._seconds)
        while found := await asyncio.to_thread(self._reader.payloads, seen, since):
            for _, at, payload in found:
                fresh.add(payload, at=at)
            seen = found[-1][0]
        self._live.replace(fresh)
        self._seen = max(self._seen, seen)

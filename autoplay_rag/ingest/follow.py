"""What happens now, for processes beside the one that owns the journal."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from autoplay_rag.ingest.journal_reader import JournalReader
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
    """Live sessions in a process that runs no pipeline: a second web worker, say.

    Args:
        journal: The file that a pipeline on this machine writes.
        live: Where to keep what is found; None makes one with the usual bounds.
        seconds: How far back to begin. The pipeline keeps what it has stored for
            `journal_recent_seconds`.
        interval: Seconds between two looks at the file.

    Yields:
        The sessions, kept up to date until the block ends.

    Raises:
        JournalError: If there is no such journal.

    Example:
        >>> async def main():
        ...     async with follow_journal("journal.db") as live:
        ...         return live.get(user_id="u1")
        >>> asyncio.run(main())
        Traceback (most recent call last):
        autoplay_rag.errors.JournalError: there is no journal at journal.db
    """
    kept = LiveSessions() if live is None else live
    reader = await asyncio.to_thread(JournalReader, journal)
    since = time.time() - seconds
    seen = await _catch_up(reader, kept, 0, since)

    async def follow() -> None:
        last, failing = seen, False
        while True:
            await asyncio.sleep(interval)
            try:
                last = await _catch_up(reader, kept, last, since)
                failing = False
            except Exception as error:  # noqa: BLE001 - a look that fails must not be the last
                if not failing:
                    _log.warning("live sessions stand still: %s: %s", type(error).__name__, error)
                failing = True

    task = asyncio.create_task(follow(), name="autoplay-follow")
    try:
        yield kept
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _catch_up(reader: JournalReader, live: LiveSessions, seen: int, since: float) -> int:
    while found := await asyncio.to_thread(reader.payloads, seen, since):
        for seq, at, payload in found:
            live.add(payload, at=at)
            seen = seq
    return seen

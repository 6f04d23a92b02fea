"""How far a backup is, from the sizes of the files that it has written."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from autoplay_rag._serial import SerialThread
from autoplay_rag.maintenance.progress import Progress
from autoplay_rag.maintenance.space import space_of

__all__ = ["Measuring"]

_log = logging.getLogger(__name__)

_EVERY_SECONDS: Final = 0.5


class Measuring:
    """Tells how many bytes of a backup are done. Each byte counts twice: written, and then hashed.

    Args:
        folder: Where the files are written.
        journal: The journal's file.
        store: The folder of the store; None if it has none.
        tell: Called with the progress on the event loop; None to measure nothing.
    """

    def __init__(
        self,
        folder: Path,
        journal: Path,
        store: Path | None,
        tell: Callable[[Progress], None] | None,
    ) -> None:
        self._folder = folder
        self._journal = journal
        self._store = store
        self._tell = tell
        self._began = time.monotonic()
        self._written = 0
        self._hashed = 0
        self._done = 0

    def hashed(self, size: int) -> None:
        """Count bytes that were hashed. Call it from one thread."""
        self._hashed += size

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Tell the progress inside the block, twice a second, and at its end that all is done."""
        if self._tell is None:
            yield
            return
        task = asyncio.create_task(self._run(), name="autoplay-backup-progress")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
        self._done = max(self._done, 2 * self._hashed)
        self._call(self._done, self._done)

    async def _run(self) -> None:
        # A thread of its own: the one of the backup is busy.
        thread = SerialThread("autoplay-backup-progress")
        expected = 0
        while True:
            with suppress(OSError):  # the backup reports what is wrong with the disk
                if not expected:
                    space = await thread.run(space_of, self._journal, self._store)
                    expected = (space.journal or 0) + (space.store or 0)
                self._written = max(self._written, await thread.run(_size, self._folder))
            if self._hashed:
                expected = self._written  # nothing more is written
            # What is expected is an estimate: SQLite leaves out free pages, for example.
            self._done = max(self._done, min(self._written, expected) + self._hashed)
            self._call(self._done, max(self._done, 2 * expected))
            await asyncio.sleep(_EVERY_SECONDS)

    def _call(self, done: int, total: int) -> None:
        assert self._tell is not None
        seconds = time.monotonic() - self._began
        try:
            self._tell(Progress(done, total, done / seconds if seconds else 0.0, unit="bytes"))
        except Exception:  # noqa: BLE001 - other people's code
            _log.exception("on_progress failed")


def _size(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        try:
            size += path.stat().st_size if path.is_file() else 0
        except OSError:  # it was moved meanwhile
            continue
    return size

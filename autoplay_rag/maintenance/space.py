"""How much disk journal and store take, and whether there is room for more."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from autoplay_rag._serial import SerialThread

__all__ = ["Space", "SpaceWatch", "space_of"]

_LEAST_FREE: Final = 128 << 20
"""`ChromaStore` does not write with less than 64 MB, so the warning has to come earlier."""
_SHARE: Final = 0.5
"""Erasing writes a file anew beside the old one, and Chroma needs half the size of its indexes."""
_EVERY_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Space:
    """The disk space of a journal and its store, in bytes.

    Attributes:
        journal: The journal's file with its write-ahead log; None for a journal in memory.
        store: The files of the store; None if it has none of its own here.
        free: Free bytes on the fuller of their disks; without any files here, there is no limit.

    Example:
        >>> Space(journal=4 << 30, store=1 << 30, free=2 << 30).is_low
        True
        >>> Space(journal=4 << 20, store=None, free=2 << 30).is_low
        False
    """

    journal: int | None
    store: int | None
    free: int

    @property
    def needed(self) -> int:
        """How many bytes have to be free."""
        return max(_LEAST_FREE, int(_SHARE * ((self.journal or 0) + (self.store or 0))))

    @property
    def is_low(self) -> bool:
        """Whether less than `needed` is free."""
        return self.free < self.needed

    @property
    def warning(self) -> str | None:
        """What is wrong, in one line; None if there is enough room."""
        if not self.is_low:
            return None
        return (
            f"disk space is low: {self.free >> 20:,} MB are free, and {self.needed >> 20:,} MB are "
            "needed to go on safely; free some space, or set a shorter retention_days"
        )


def space_of(journal: Path | None, folder: Path | None) -> Space:
    """Measure the disk space of a journal and the folder of its store. Blocks.

    Args:
        journal: The journal's file; None for a journal in memory.
        folder: The store's folder; None if it has none.

    Raises:
        OSError: If the disk cannot be read.
    """
    places = [path for path in (journal and journal.parent, folder) if path is not None]
    return Space(
        journal=None
        if journal is None
        else _sum([journal, journal.with_name(f"{journal.name}-wal")]),
        store=None if folder is None else _sum(folder.rglob("*")),
        free=min((shutil.disk_usage(place).free for place in places), default=sys.maxsize),
    )


def _sum(paths: Iterable[Path]) -> int:
    found = 0
    for path in paths:
        try:
            found += path.stat().st_size if path.is_file() else 0
        except OSError:  # deleted meanwhile
            continue
    return found


class SpaceWatch:
    """Measures the disk space of a running pipeline once a minute.

    Args:
        journal: The journal's file; None for a journal in memory.
        folder: The store's folder; None if it has none.

    Attributes:
        found: The last measurement; None before the first.
    """

    def __init__(self, journal: Path | None, folder: Path | None) -> None:
        self._journal = journal
        self._folder = folder
        self._thread = SerialThread("autoplay-space")
        self.found: Space | None = None

    @property
    def problems(self) -> list[str]:
        """The warning, if there is one. Readable from any thread."""
        warning = self.found.warning if self.found else None
        return [warning] if warning else []

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(_EVERY_SECONDS)

    async def measure(self) -> Space:
        """Measure now, in a thread.

        Raises:
            OSError: If the disk cannot be read.
        """
        return await self._thread.run(space_of, self._journal, self._folder)

    async def look(self) -> None:
        """Measure now, and note whether space is low."""
        try:
            self.found = await self.measure()
        except OSError:
            return  # the journal and the store report what is wrong with their disk

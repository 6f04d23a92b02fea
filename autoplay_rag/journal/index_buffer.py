"""Holds payloads that are accepted but not in the full-text index yet.

A commit writes whole pages. One payload changes five pages of the queue and fifteen of the index; a
hundred payloads change hardly more pages of the index than one. So the writer commits each payload
to the queue at once, and to the index with others: before anything reads the index in this process,
and after two seconds at the latest. `FullTextTables.index_rest` adds what a killed process left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from autoplay_rag.journal.base import IndexEntry

__all__ = ["IndexBuffer"]

_MOST_SECONDS: Final = 2.0
"""How long a reader in another process may not see a payload."""
_MOST: Final = 512
"""Writing them takes about 30 ms, for which the next payloads wait."""


class IndexBuffer:
    """Entries of the full-text index that wait for a common write.

    Only the writer's thread changes it. It is true while entries wait; any thread may ask that.

    Args:
        write: Writes entries into the index, without those that it has or whose payload is gone.

    Example:
        >>> written = []
        >>> buffer = IndexBuffer(written.extend)
        >>> bool(buffer), buffer.seconds_left()
        (False, None)
    """

    def __init__(self, write: Callable[[Sequence[IndexEntry]], None]) -> None:
        self._write = write
        self._waiting: dict[int, IndexEntry] = {}
        self._due = 0.0
        self._failed = False

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, entries: Iterable[IndexEntry]) -> None:
        """Add payloads that the current transaction accepts."""
        if not self._waiting:
            self._begin()
        # A payload is added again if its transaction is repeated.
        self._waiting.update((one.seq, one) for one in entries)

    def seconds_left(self) -> float | None:
        """Return the seconds until the entries are to be written; None if there are none."""
        if not self._waiting:
            return None
        if len(self._waiting) >= _MOST and not self._failed:
            return 0.0
        return max(0.0, self._due - time.monotonic())

    @property
    def seqs(self) -> list[int]:
        """The sequence numbers of the entries."""
        return [*self._waiting]

    def write(self, seqs: Iterable[int]) -> None:
        """Write some of the entries, in the current transaction. After its commit, `drop` them."""
        self._write([self._waiting[seq] for seq in seqs])

    def drop(self, seqs: Iterable[int]) -> None:
        """Drop entries that are in the index, or can never be."""
        for seq in seqs:
            del self._waiting[seq]
        self._begin()

    def put_off(self) -> None:
        """Keep the entries, which cannot be written now, for another two seconds."""
        self._begin()
        self._failed = True

    def _begin(self) -> None:
        self._due = time.monotonic() + _MOST_SECONDS
        self._failed = False

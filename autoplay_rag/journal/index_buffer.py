"""Holds payloads that are accepted but not in the full-text index yet.

A commit writes whole pages. One payload changes five pages of the queue and fifteen of the index; a
hundred payloads change hardly more pages of the index than one. So the writer commits each payload
to the queue at once, and to the index with others: before anything reads the index in this process,
and after a second at the latest. What a killed process left is found by
`FullTextTables.index_rest`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

from autoplay_rag.journal.base import IndexEntry
from autoplay_rag.journal.fulltext import FullTextTables

__all__ = ["IndexBuffer"]

_MOST_SECONDS: Final = 1.0
"""How long a reader in another process may not see a payload."""
_MOST: Final = 256
"""As many as in one commit of the writer."""


class IndexBuffer:
    """Entries of the full-text index that wait for a common write.

    Only the writer's thread changes it. It is true while entries wait; any thread may ask that.

    Args:
        fulltext: The index.

    Example:
        >>> from autoplay_rag.journal.file import JournalFile
        >>> buffer = IndexBuffer(FullTextTables(JournalFile(None, "normal")))
        >>> bool(buffer), buffer.seconds_left()
        (False, None)
    """

    def __init__(self, fulltext: FullTextTables) -> None:
        self._fulltext = fulltext
        self._waiting: dict[int, IndexEntry] = {}
        self._written: set[int] = set()
        self._since = 0.0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, entries: Iterable[IndexEntry]) -> None:
        """Add payloads that the current transaction accepts."""
        if not self._waiting:
            self._since = time.monotonic()
        # A payload is added again if its transaction is repeated.
        self._waiting.update((one.seq, one) for one in entries)

    def seconds_left(self) -> float | None:
        """Return the seconds until the entries must be written; None if there are none."""
        if not self._waiting:
            return None
        if len(self._waiting) >= _MOST:
            return 0.0
        return max(0.0, self._since + _MOST_SECONDS - time.monotonic())

    def write(self) -> None:
        """Write all entries into the index, in the current transaction. `end` must follow it."""
        if entries := [one for seq, one in self._waiting.items() if seq not in self._written]:
            self._fulltext.add_missing(entries)
            self._written.update(one.seq for one in entries)

    def end(self, *, committed: bool) -> None:
        """Drop what the ended transaction wrote, or keep it if it was rolled back."""
        if committed:
            for seq in self._written:
                del self._waiting[seq]
        self._written.clear()
        self._since = time.monotonic()

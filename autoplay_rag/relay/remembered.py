"""What a relay remembers of sources: the sessions that it named, and the actions that it has.

All functions block. They run on the relay's own thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from autoplay_rag.relay.outbox_file import OutboxFile

__all__ = ["Remembered", "SessionTimes"]

_KEPT_SECONDS: Final = 2 * 86_400.0
"""How long sessions and actions are remembered. A session has at most a day, and a pull endpoint
keeps actions of a day."""
_PRUNE_SECONDS: Final = 3600.0


class SessionTimes(NamedTuple):
    """A session that the relay, or a source, named itself.

    Attributes:
        product: The product.
        name: Its id.
        first: Unix seconds of its first action so far.
        last: Unix seconds of its last action so far.
    """

    product: str
    name: str
    first: float
    last: float


class Remembered:
    """Sessions and actions of the last two days, in the file of the outbox.

    Args:
        file: The file.
        clock: Returns the time in Unix seconds.
    """

    def __init__(self, file: OutboxFile, clock: Callable[[], float]) -> None:
        self._file = file
        self._clock = clock
        self._pruned_at = float("-inf")

    def session_times(self, product: str, names: Sequence[str]) -> dict[str, tuple[float, float]]:
        """Return when sessions of a product began and ended, of those that are remembered."""
        found = {}
        with self._file.failures():
            for name in names:
                row = self._file.connection.execute(
                    "SELECT first, last FROM session WHERE product = ? AND name = ?",
                    (_plain(product), _plain(name)),
                ).fetchone()
                if row is not None:
                    found[name] = (float(row[0]), float(row[1]))
        return found

    def known_actions(self, keys: Iterable[int]) -> set[int]:
        """Return those of the keys of actions that were taken in before."""
        with self._file.failures():
            return {
                key
                for key in keys
                if self._file.connection.execute(
                    "SELECT 1 FROM action WHERE key = ?", (_signed(key),)
                ).fetchone()
            }

    def add(self, session: SessionTimes | None, actions: Sequence[int]) -> None:
        """Remember a session and the keys of actions. Inside a transaction."""
        now = self._clock()
        if session is not None:
            self._file.connection.execute(
                "INSERT INTO session VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                "first = min(first, excluded.first), last = max(last, excluded.last), at = excluded.at",
                (
                    _plain(session.product),
                    _plain(session.name),
                    session.first,
                    session.last,
                    now,
                ),
            )
        self._file.connection.executemany(
            "INSERT OR REPLACE INTO action VALUES (?, ?)",
            [(_signed(key), now) for key in actions],
        )

    def prune(self) -> None:
        """Forget what is old, about once an hour. Inside a transaction."""
        now = self._clock()
        if now - self._pruned_at < _PRUNE_SECONDS:
            return
        self._pruned_at = now
        before = now - _KEPT_SECONDS
        self._file.connection.execute("DELETE FROM session WHERE at < ?", (before,))
        self._file.connection.execute("DELETE FROM action WHERE at < ?", (before,))


def _plain(text: str) -> str:
    """Return a text that SQLite takes: lone surrogates become question marks."""
    return text.encode("utf-8", "replace").decode()


def _signed(key: int) -> int:
    """Return 64 bits as SQLite has them."""
    return key - 2**64 if key >= 2**63 else key

"""A journal seen from another process: what it says, and what may be asked of its owner."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from autoplay_rag._filelock import FileLock
from autoplay_rag.errors import JournalError, JournalVersionError
from autoplay_rag.ingest.journal_file import APPLICATION_ID, QUEUE_BYTES, SCHEMA_VERSION
from autoplay_rag.ingest.journal_rows import Action, DeadLetter, decoded, letters
from autoplay_rag.ingest.ledger import Ledger
from autoplay_rag.payloads import Payload

__all__ = ["JournalReader", "JournalStatus"]


@dataclass(frozen=True, slots=True)
class JournalStatus:
    """How a journal stands.

    Attributes:
        ledger: Its durable counts.
        queue_bytes: Bytes of payloads waiting or dead.
        oldest_at: Unix seconds when the payload that waits longest came; None if none waits.
        health: "ok", "overflow", or what keeps payloads from the store, as the owner last said.
        running: Whether a pipeline has it open now; None if that cannot be known, because its
            lock file belongs to another user.
    """

    ledger: Ledger
    queue_bytes: int
    oldest_at: float | None
    health: str
    running: bool | None


class JournalReader:
    """Reads a journal beside the pipeline that writes it.

    Args:
        path: The journal's file.

    Raises:
        JournalError: If there is no such journal.
        JournalVersionError: If another version of this package wrote it.

    Example:
        >>> JournalReader("nowhere.db")
        Traceback (most recent call last):
        autoplay_rag.errors.JournalError: there is no journal at nowhere.db
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        if not self._path.is_file():
            raise JournalError(f"there is no journal at {self._path}")
        with self._connected() as connection:
            application = connection.execute("PRAGMA application_id").fetchone()[0]
            version = connection.execute("PRAGMA user_version").fetchone()[0]
        if application != APPLICATION_ID:
            raise JournalError(f"{self._path} is no journal of this package")
        if version != SCHEMA_VERSION:
            raise JournalVersionError(
                f"the journal {self._path} has format {version}, this version reads {SCHEMA_VERSION}"
            )

    def status(self) -> JournalStatus:
        """How the journal stands, as of its last commit."""
        with self._connected() as connection:
            connection.execute("BEGIN")  # one moment for all that is read
            counters = dict(connection.execute("SELECT name, value FROM counters").fetchall())
            size = connection.execute(QUEUE_BYTES).fetchone()[0]
            oldest = connection.execute(
                "SELECT at FROM catalog WHERE key = (SELECT key FROM queue ORDER BY seq LIMIT 1)"
            ).fetchone()
            health = connection.execute("SELECT value FROM meta WHERE name = 'health'").fetchone()
        return JournalStatus(
            ledger=Ledger(**counters),
            queue_bytes=size,
            oldest_at=oldest[0] if oldest else None,
            health=health[0] if health else "ok",
            running=self._is_running(),
        )

    def dead_letters(self, limit: int = 1000) -> list[DeadLetter]:
        """The dead letters, oldest first, at most `limit`."""
        with self._connected() as connection:
            return letters(connection, limit)

    def dead_ids(self) -> list[int]:
        """The ids of all dead letters, oldest first, however many there are."""
        with self._connected() as connection:
            return [seq for (seq,) in connection.execute("SELECT seq FROM dead ORDER BY seq")]

    def payloads(self, after: int, since: float) -> list[tuple[int, float, Payload]]:
        """What was accepted lately, stored or waiting, in order.

        Args:
            after: The sequence number up to which it is known already; 0 for none.
            since: Unix seconds; nothing that came earlier.

        Returns:
            Sequence number, Unix seconds when it came, payload; at most 10,000.
        """
        with self._connected() as connection:
            rows = connection.execute(
                "SELECT seq, at, body FROM recent WHERE seq > :after AND at >= :since UNION ALL "
                "SELECT seq, at, body FROM queue JOIN catalog USING (key) "
                "WHERE seq > :after AND at >= :since ORDER BY seq LIMIT 10000",
                {"after": after, "since": since},
            ).fetchall()
        found = ((seq, at, decoded(body)) for seq, at, body in rows)
        return [(seq, at, payload) for seq, at, payload in found if payload is not None]

    def ask(self, action: Action, ids: Sequence[int] | None) -> bool | None:
        """Leave a request with the pipeline that owns the journal.

        Args:
            action: "retry" or "discard".
            ids: Which dead letters; None for all.

        Returns:
            Whether a pipeline is running and will see to it within a second or two; otherwise
            the next one does when it starts. None if that cannot be known (see `JournalStatus`).
        """
        asked: list[int | None] = [None] if ids is None else [*ids]
        with self._connected(write=True) as connection:
            connection.executemany(
                "INSERT INTO requests (action, seq) VALUES (?, ?)", [(action, seq) for seq in asked]
            )
        return self._is_running()

    @contextmanager
    def _connected(self, *, write: bool = False) -> Iterator[sqlite3.Connection]:
        uri = f"{self._path.resolve().as_uri()}?mode={'rw' if write else 'ro'}"
        try:
            with closing(sqlite3.connect(uri, uri=True, timeout=30.0)) as connection, connection:
                yield connection
        except sqlite3.Error as error:
            raise JournalError(f"the journal {self._path} cannot be read: {error}") from error

    def _is_running(self) -> bool | None:
        return FileLock(self._path.with_name(self._path.name + ".lock")).is_held()

"""Read access to a journal from another process, and requests to the process that owns it.

Each read opens its own read-only connection and never waits for the writer.
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from autoplay_rag._checks import check_journal_file
from autoplay_rag._filelock import FileLock
from autoplay_rag.errors import JournalError, JournalVersionError
from autoplay_rag.journal.base import Action, DeadLetter, Health, Task
from autoplay_rag.journal.bodies import decoded, unpack
from autoplay_rag.journal.copying import Copy
from autoplay_rag.journal.file import other_version
from autoplay_rag.journal.inflow import TopicStatus
from autoplay_rag.journal.lag import lag_of
from autoplay_rag.journal.ledger import COUNTERS, Ledger
from autoplay_rag.journal.queue import FOLLOWED, dead_letter, first_since, letters
from autoplay_rag.journal.rows import lossy_text
from autoplay_rag.journal.schema import APPLICATION_ID, SCHEMA_VERSION, PayloadState
from autoplay_rag.journal.tasks import ANSWER, encode_task
from autoplay_rag.payloads import Payload

__all__ = ["JournalReader", "JournalStatus"]

_WAITING = f"state = {PayloadState.WAITING:d}"
_PAGE = 10_000


@dataclass(frozen=True, slots=True)
class JournalStatus:
    """The state of a journal.

    Attributes:
        ledger: Its durable counts.
        queue_bytes: Bytes of queued and dead payloads.
        oldest_at: Arrival time of the oldest queued payload, in Unix seconds; None if the queue is
            empty.
        watermark: All payloads up to this sequence number are settled: stored, dead, discarded,
            filtered, refused, lost to overflow, or duplicate.
        health: The health of the pipeline when it last saved it.
        running: Whether a pipeline has the journal open now. None if that is unknown, because the
            lock file belongs to another user.
        model: The model of the stored vectors; "" if unknown.
        copy: The re-embedding that is not complete; None if there is none.
        topic: How far the topic of Kafka is taken in, a few seconds ago; None without one.
    """

    ledger: Ledger
    queue_bytes: int
    oldest_at: float | None
    watermark: int
    health: Health
    running: bool | None
    model: str = ""
    copy: Copy | None = None
    topic: TopicStatus | None = None


class JournalReader:
    """Reads a journal while a pipeline may be writing it.

    Args:
        path: The journal's file.

    Raises:
        JournalError: If the file does not exist, is not a journal, or cannot be read.
        JournalVersionError: If the file has another format than this version reads.

    Example:
        >>> JournalReader("nowhere.db")
        Traceback (most recent call last):
        autoplay_rag.errors.JournalError: no journal found at nowhere.db; check the path
    """

    def __init__(self, path: str | Path) -> None:
        check_journal_file(path)
        self._path = Path(path)
        if not self._path.is_file():
            raise JournalError(f"no journal found at {self._path}; check the path")
        with self._connected() as connection:
            application = connection.execute("PRAGMA application_id").fetchone()[0]
            version = connection.execute("PRAGMA user_version").fetchone()[0]
        if application != APPLICATION_ID:
            raise JournalError(f"{self._path} is not a journal of this package")
        if version > SCHEMA_VERSION:
            raise other_version(self._path, version)
        if version < SCHEMA_VERSION:
            raise JournalVersionError(
                f"the journal {self._path} has format {version}, but this version of autoplay-rag "
                f"reads {SCHEMA_VERSION}: start a pipeline with it once to upgrade it"
            )

    def status(self) -> JournalStatus:
        """Return the state of the journal as of its last commit."""
        with self._connected() as connection:
            connection.execute("BEGIN")  # one snapshot for all queries
            names = (*COUNTERS, "bytes")
            values = connection.execute(f"SELECT {', '.join(names)} FROM counts").fetchone()
            counts = dict(zip(names, values, strict=True))
            oldest = connection.execute(
                f"SELECT min(at) FROM payload INDEXED BY payload_waiting WHERE {_WAITING}"
            ).fetchone()[0]
            watermark = _watermark(connection)
            lag = lag_of(connection, watermark)
            meta = dict(
                connection.execute(
                    "SELECT name, value FROM meta WHERE name IN ('health', 'model', 'copy')"
                ).fetchall()
            )
        return JournalStatus(
            ledger=Ledger(
                **{name: counts[name] for name in COUNTERS},
                oldest_pending=None if oldest is None else max(0.0, time.time() - oldest),
                lag_p50=lag.p50,
                lag_p99=lag.p99,
            ),
            queue_bytes=counts["bytes"],
            oldest_at=oldest,
            watermark=watermark,
            health=msgspec.json.decode(meta["health"], type=Health)
            if "health" in meta
            else Health(),
            running=self._is_running(),
            model=meta.get("model") or "",
            copy=msgspec.json.decode(meta["copy"], type=Copy) if "copy" in meta else None,
        )

    def journal_id(self) -> str:
        """Return the permanent id of the journal."""
        with self._connected() as connection:
            found = connection.execute("SELECT value FROM meta WHERE name = 'journal_id'")
            return str(found.fetchone()[0])

    def dead_letters(self, limit: int = 1000) -> list[DeadLetter]:
        """Return at most `limit` dead letters, oldest first."""
        with self._connected() as connection:
            return [dead_letter(*row) for row in connection.execute(letters(limit))]

    def dead_ids(self) -> list[int]:
        """Return the ids of all dead letters, oldest first, without a limit."""
        with self._connected() as connection:
            rows = connection.execute(
                f"SELECT seq FROM payload WHERE state = {PayloadState.DEAD:d} ORDER BY seq"
            )
            return [seq for (seq,) in rows]

    def payloads(self, after: int, since: float) -> list[tuple[int, float, Payload]]:
        """Return recently accepted payloads, stored or queued, by sequence number.

        Sequence numbers are committed in order, and a retried dead letter keeps its own. A caller
        that continues after the last number it has seen misses no payload and gets none twice.

        Args:
            after: The last sequence number the caller has seen; 0 for none.
            since: Unix seconds. Payloads that arrived earlier are left out.

        Returns:
            Sequence number, arrival time in Unix seconds, and payload; at most 10,000. Stored
            payloads that were not kept because of `keep_payloads=False` are left out, and those
            that a request to forget deletes.
        """
        with self._connected() as connection:
            start = after + 1 if after > 0 else first_since(connection, since)
            rows = connection.execute(
                f"SELECT seq, at, body FROM payload WHERE seq >= ? AND at >= ? AND {FOLLOWED} "
                "AND NOT EXISTS (SELECT 1 FROM forgetting WHERE forgetting.seq = payload.seq) "
                "ORDER BY seq LIMIT ?",
                (start, since, _PAGE),
            ).fetchall()
        found = [(seq, at, decoded(unpack(body))) for seq, at, body in rows]
        return [(seq, at, payload) for seq, at, payload in found if payload is not None]

    def last_request_to_forget(self) -> int:
        """Return the number of the last request to forget; 0 without one."""
        with self._connected() as connection:
            (number,) = connection.execute(
                "SELECT coalesce(max(number), 0) FROM erasure"
            ).fetchone()
        return int(number)

    def ask(self, action: Action, ids: Sequence[int] | None) -> bool | None:
        """Leave a request for the pipeline that owns the journal.

        Args:
            action: "retry" or "discard".
            ids: The dead letters' ids; None for all.

        Returns:
            True if a pipeline is running; it executes the request within one or two seconds. False
            if none is running; the next one executes it when it starts. None if that is unknown
            (see `JournalStatus`).
        """
        asked: list[int | None] = [None] if ids is None else [*ids]
        with self._connected(write=True) as connection:
            connection.executemany(
                "INSERT INTO request (action, seq) VALUES (?, ?)", [(action, seq) for seq in asked]
            )
        return self._is_running()

    def give_task(self, action: str, options: Mapping[str, Any]) -> str:
        """Leave a task for the pipeline that runs now. It takes tasks once a second.

        Args:
            action: "verify", "backup" or "forget".
            options: The arguments.

        Returns:
            The token for `answer_of`.
        """
        task = Task(secrets.token_hex(8), action, options)
        with self._connected(write=True) as connection:
            connection.execute(
                "INSERT INTO request (action, seq) VALUES (?, ?)", (action, encode_task(task))
            )
        return task.token

    def answer_of(self, token: str) -> dict[str, Any] | None:
        """Return the answer to a task and delete it; None if there is none yet."""
        name = ANSWER + token
        with self._connected() as connection:
            row = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        if row is None:
            return None
        with self._connected(write=True) as connection:
            connection.execute("DELETE FROM meta WHERE name = ?", (name,))
        answer: dict[str, Any] = msgspec.json.decode(row[0])
        return answer

    def withdraw_task(self, token: str) -> bool:
        """Remove a task that no pipeline has taken; returns whether there was one."""
        with self._connected(write=True) as connection:
            found = connection.execute("DELETE FROM request WHERE seq LIKE ?", (f'%"{token}"%',))
            return found.rowcount > 0

    @property
    def running(self) -> bool | None:
        """As in `JournalStatus`."""
        return self._is_running()

    @contextmanager
    def _connected(self, *, write: bool = False) -> Iterator[sqlite3.Connection]:
        uri = f"{self._path.resolve().as_uri()}?mode={'rw' if write else 'ro'}"
        try:
            with closing(sqlite3.connect(uri, uri=True, timeout=30.0)) as connection, connection:
                connection.text_factory = lossy_text
                yield connection
        except sqlite3.Error as error:
            verb = "written" if write else "read"
            raise JournalError(f"the journal {self._path} cannot be {verb}: {error}") from error

    def _is_running(self) -> bool | None:
        return FileLock(self._path.with_name(self._path.name + ".lock")).is_held()


def _watermark(connection: sqlite3.Connection) -> int:
    first = connection.execute(
        f"SELECT min(seq) FROM payload INDEXED BY payload_waiting WHERE {_WAITING} AND retried = 0"
    ).fetchone()[0]
    if first is not None:
        return int(first) - 1
    last = connection.execute(
        "SELECT max((SELECT coalesce(max(seq), 0) FROM payload), "
        "coalesce((SELECT value FROM meta WHERE name = 'last_seq'), 0))"
    ).fetchone()[0]
    return int(last)

"""The file of an outbox: opening it, transactions, and what its failures mean.

All functions block. They run on the relay's own thread.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from autoplay_rag._filelock import FileLock
from autoplay_rag.errors import JournalDamagedError, JournalError, JournalLockedError

__all__ = ["OutboxFile"]

_APPLICATION_ID: Final = 0x41505258  # "APRX"
_VERSION: Final = 1
_SHRINK_PAGES: Final = 1000
"""Vacuuming this many pages takes about 10 ms."""
_LOCKED_SECONDS: Final = 5.0

_SCHEMA: Final = """
CREATE TABLE counts (received INT NOT NULL, delivered INT NOT NULL, overflow INT NOT NULL, dead INT NOT NULL);
INSERT INTO counts VALUES (0, 0, 0, 0);
CREATE TABLE message (seq INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, key BLOB,
    value BLOB NOT NULL, size INT NOT NULL, state INT NOT NULL, topic_id TEXT, part INT, place INT);
CREATE INDEX message_place ON message (topic_id, part, place) WHERE state = 1;
CREATE INDEX message_state ON message (state, seq) WHERE state <> 0;
CREATE TABLE session (product TEXT, name TEXT, first REAL NOT NULL, last REAL NOT NULL,
    at REAL NOT NULL, PRIMARY KEY (product, name)) WITHOUT ROWID;
CREATE TABLE action (key INTEGER PRIMARY KEY, at REAL NOT NULL)
"""


class OutboxFile:
    """An SQLite file that one process has, with the tables of an outbox.

    Args:
        path: The file. It is created if there is none, for its owner only.
        durability: What a commit survives: "normal" any end of the process, "full" also a power loss.

    Attributes:
        path: As above.
        connection: The connection to it. Changes belong into `changing`.

    Raises:
        JournalLockedError: If another process has it.
        JournalDamagedError: If it is damaged.
        JournalError: If it is something else, or cannot be opened.
    """

    def __init__(self, path: Path, durability: str) -> None:
        self.path = path
        self._lock = FileLock(path.with_name(path.name + ".lock"))
        try:
            locked = self._lock.acquire()
        except OSError as error:
            raise JournalError(
                f"the outbox {path} cannot be opened: {error.strerror or error}"
            ) from error
        if not locked:
            raise JournalLockedError(
                f"the outbox {path} is in use by process {self._lock.holder()}: give each relay its own"
            )
        try:
            with self.opening():
                self.connection = _opened(path, durability)
        except BaseException:
            self._lock.release()
            raise

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Commit all changes inside, or none."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.connection.execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Raise `JournalError` for a failure of SQLite inside."""
        try:
            yield
        except sqlite3.Error as error:
            raise JournalError(f"the outbox {self.path} cannot be used: {error}") from error

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Raise what a failure inside means for a file that is being opened.

        Raises:
            JournalDamagedError: If it is damaged.
            JournalError: If it cannot be opened.
        """
        try:
            yield
        except (sqlite3.OperationalError, OSError) as error:
            raise JournalError(f"the outbox {self.path} cannot be opened: {error}") from error
        except sqlite3.DatabaseError as error:
            raise JournalDamagedError(
                f"the outbox {self.path} is damaged, or something else ({error}): move it away, and "
                "start again"
            ) from error

    def shrink(self) -> None:
        """Give free pages back to the disk, some at a time. For when nothing waits."""
        with self.failures():
            (free,) = self.connection.execute("PRAGMA freelist_count").fetchone()
            if free > _SHRINK_PAGES:
                self.connection.execute(f"PRAGMA incremental_vacuum({_SHRINK_PAGES})").fetchall()

    def close(self) -> None:
        """Close the file. It may be called more than once."""
        with suppress(sqlite3.Error):
            self.connection.close()
        self._lock.release()


def _opened(path: Path, durability: str) -> sqlite3.Connection:
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    connection = sqlite3.connect(
        path, isolation_level=None, timeout=_LOCKED_SECONDS, check_same_thread=False
    )
    try:
        _prepare(connection, path, durability)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path, durability: str) -> None:
    execute = connection.execute
    (application,) = execute("PRAGMA application_id").fetchone()
    (version,) = execute("PRAGMA user_version").fetchone()
    (tables,) = execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables and (application != _APPLICATION_ID or version != _VERSION):
        raise JournalError(f"{path} is not the outbox of a relay: name another file")
    if not tables:
        execute("PRAGMA auto_vacuum = INCREMENTAL")
    execute("PRAGMA journal_mode = WAL")
    execute(f"PRAGMA synchronous = {'FULL' if durability == 'full' else 'NORMAL'}")
    execute("PRAGMA secure_delete = ON")
    if not tables:
        execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA.split(";\n"):
            execute(statement)
        execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        execute(f"PRAGMA user_version = {_VERSION}")
        execute("COMMIT")

"""The journal's file: opened, refused or set aside; its transactions; its size. SQLite, blocking."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from autoplay_rag.errors import JournalDamagedError, JournalError, JournalVersionError
from autoplay_rag.ingest.journal_rows import COUNTERS, Durability, lossy_text

__all__ = ["APPLICATION_ID", "QUEUE_BYTES", "SCHEMA_VERSION", "JournalFile", "to_json"]

APPLICATION_ID = 0x41505247
"""Marks the file as ours ("APRG"), so that another program's database is never touched."""
SCHEMA_VERSION = 2
_FORGET_EVERY = 500
_LOCKED_SECONDS = 5.0
"""How long one attempt waits for another program that holds the file's lock."""
_SHRINK_EVERY = 50
"""Commits. An idle pipeline makes one a second."""
_SHRINK_PAGES = 1000
"""4 MB: given back in some 10 ms, which is how long a payload may have to wait for it."""


_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
-- What is not stored yet, in the order received. `body` is the payload's JSON.
CREATE TABLE queue (
    seq INTEGER PRIMARY KEY, key TEXT NOT NULL, lane INTEGER NOT NULL, body TEXT NOT NULL
);
-- What was stored in the last minutes, for other processes that show what happens now.
CREATE TABLE recent (seq INTEGER PRIMARY KEY, at REAL NOT NULL, body TEXT NOT NULL);
CREATE INDEX recent_at ON recent (at);
-- Every payload key that is known: which chunk it went into, whose it is, and when it came.
CREATE TABLE catalog (
    key TEXT PRIMARY KEY, chunk TEXT, session TEXT, user TEXT, at REAL, expires REAL
) WITHOUT ROWID;
CREATE INDEX catalog_expires ON catalog (expires) WHERE expires IS NOT NULL;
-- Whose each session is, of what was planned so far: a summary does not say.
CREATE TABLE sessions (
    lane INTEGER PRIMARY KEY, user TEXT, conversation TEXT, at REAL NOT NULL
);
CREATE INDEX sessions_at ON sessions (at);
-- Plans under way and, with "full" durability, those acknowledged in the last minutes.
CREATE TABLE batches (id INTEGER PRIMARY KEY, record BLOB NOT NULL, acknowledged REAL);
CREATE TABLE dead (
    seq INTEGER PRIMARY KEY, key TEXT NOT NULL, lane INTEGER NOT NULL, kind TEXT, session TEXT,
    error TEXT NOT NULL, at REAL NOT NULL, body TEXT
);
-- What other processes ask of the one that owns the journal.
CREATE TABLE requests (id INTEGER PRIMARY KEY, action TEXT NOT NULL, seq INTEGER);
"""


QUEUE_BYTES = (
    "SELECT (SELECT coalesce(sum(length(CAST(body AS BLOB))), 0) FROM queue)"
    " + (SELECT coalesce(sum(length(CAST(body AS BLOB))), 0) FROM dead)"
)
"""Asks for the bytes of payloads waiting or dead: what `journal_max_bytes` bounds."""


class JournalFile:
    """A file with the journal's tables, its counters, and transactions that keep both together.

    `JournalDb` says what happens in a transaction.
    """

    def __init__(self, path: Path | None, durability: Durability, *, known: bool = True) -> None:
        self._path = path
        self._commits = 0
        existed = path is not None and path.exists()
        # Counted, but not saved yet because the disk was full.
        self._owed = dict.fromkeys(COUNTERS, 0)
        try:
            self._connection = sqlite3.connect(
                path or ":memory:",
                isolation_level=None,
                timeout=_LOCKED_SECONDS,
                cached_statements=64,
            )
        except sqlite3.Error as error:
            raise JournalError(f"the journal {path} cannot be opened: {error}") from error
        self._damaged = False
        try:
            self._open(durability, known and existed)
            self.counters = self._load_counters()
            self._bytes = self._count_bytes()
        except sqlite3.DatabaseError as error:
            self._connection.close()
            if isinstance(error, sqlite3.OperationalError):
                raise JournalError(f"the journal {path} cannot be opened: {error}") from error
            if not known and not _is_marked(path):
                raise JournalError(f"{path} is no journal ({error}); name another file") from error
            raise self._set_aside(error) from error
        except JournalError:
            self._connection.close()
            raise
        # What other threads may read: never in the middle of a transaction.
        self.committed = dict(self.counters)

    # -- opening and closing ------------------------------------------------------------------

    def _open(self, durability: Durability, was_in_use: bool) -> None:
        # A flipped byte may cost the one payload it stands in, no other.
        self._connection.text_factory = lossy_text
        execute = self._connection.execute
        application = execute("PRAGMA application_id").fetchone()[0]
        version = execute("PRAGMA user_version").fetchone()[0]
        tables = execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if tables and application != APPLICATION_ID:
            raise JournalError(f"{self._path} is another program's database; name another file")
        if tables and version != SCHEMA_VERSION:
            raise JournalVersionError(
                f"the journal {self._path} has format {version}, this version reads {SCHEMA_VERSION}: "
                "let the version that wrote it drain it, or name another file"
            )
        if not tables and was_in_use:
            # They are made in one transaction: a file of ours without any was cut off.
            raise sqlite3.DatabaseError("it is empty, but was in use before")
        if not tables:
            execute("PRAGMA auto_vacuum = INCREMENTAL")
        execute("PRAGMA journal_mode = WAL")
        execute(f"PRAGMA synchronous = {'FULL' if durability == 'full' else 'NORMAL'}")
        if not tables:
            execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA.split(";\n"):
                execute(statement)
            self._connection.executemany(
                "INSERT INTO counters VALUES (?, 0)", [(name,) for name in COUNTERS]
            )
            execute(f"PRAGMA application_id = {APPLICATION_ID}")
            execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            execute("COMMIT")
        self.unclean = self._meta("open") == 1
        if self.unclean and (found := execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(found)
        self._set_meta("open", 1)

    def _set_aside(self, error: sqlite3.Error) -> JournalDamagedError:
        assert self._path is not None
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        aside = self._path.with_name(f"{self._path.name}.damaged-{stamp}")
        number = 1
        while aside.exists():
            number += 1
            aside = self._path.with_name(f"{self._path.name}.damaged-{stamp}-{number}")
        for suffix in ("", "-wal", "-shm"):
            part = self._path.with_name(self._path.name + suffix)
            if part.exists():
                part.rename(aside.with_name(aside.name + suffix))
        return JournalDamagedError(
            f"the journal {self._path} is damaged ({error}) and was set aside as {aside}; the next "
            "start makes a new one. What was waiting in the old one may be recovered with sqlite3's "
            "`.recover`"
        )

    def close(self) -> None:
        """Close in good order, so that the next start knows nothing was cut off."""
        # On a full disk this fails, and the next start checks the file: no harm is done.
        with suppress(sqlite3.Error), self.transaction():
            self._set_meta("open", int(self._damaged))
        with suppress(sqlite3.Error):
            self._shrink(0)  # all
        self._connection.close()

    # -- transactions -------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is committed together, counters included, or nothing is."""
        before = dict(self.counters), self._bytes
        changes = self._connection.total_changes
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield
            # Whoever only reads must be able to while the disk is full.
            settled = self._connection.total_changes != changes
            if settled:
                self.counters = _sum(self.counters, self._owed)
            changed = [(n, self.counters[n]) for n in COUNTERS if self.counters[n] != before[0][n]]
            if changed:
                self._connection.execute(
                    "REPLACE INTO counters SELECT json_extract(value, '$[0]'), "
                    "json_extract(value, '$[1]') FROM json_each(?)",
                    (to_json(changed),),
                )
            self._connection.execute("COMMIT")
        except BaseException as error:
            self.counters, self._bytes = before
            self._damaged |= _is_damage(error)
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        if settled:
            self._owed = dict.fromkeys(COUNTERS, 0)
        self.committed = _sum(self.counters, self._owed)
        self._commits += 1
        # What was asked for is committed; a disk that is full now will be seen by the next one.
        with suppress(sqlite3.Error):
            if self._commits % _FORGET_EVERY == 0:
                self.forget()
            if self._commits % _SHRINK_EVERY == 0:
                self._shrink(_SHRINK_PAGES)

    def forget(self) -> None:
        """Drop what has expired."""
        raise NotImplementedError

    def owe(self, name: str, count: int) -> None:
        """Count what could not be written; saved as soon as something can be."""
        self._owed[name] += count
        self.committed = _sum(self.counters, self._owed)

    # -- helpers ------------------------------------------------------------------------------

    def _load_counters(self) -> dict[str, int]:
        return dict(self._connection.execute("SELECT name, value FROM counters").fetchall())

    def _count_bytes(self) -> int:
        return self._scalar(QUEUE_BYTES)

    def _scalar(self, sql: str, *args: Any) -> int:
        return int(self._connection.execute(sql, args).fetchone()[0])

    def _meta(self, name: str) -> Any:
        row = self._connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def _set_meta(self, name: str, value: Any) -> None:
        self._connection.execute("REPLACE INTO meta VALUES (?, ?)", (name, value))

    def _shrink(self, pages: int) -> None:
        """Give pages that are no longer used back to the disk; a few are kept for what comes."""
        if self._scalar("PRAGMA freelist_count") > _SHRINK_PAGES:
            # `execute` would take one step, and each step gives one page back.
            self._connection.executescript(f"PRAGMA incremental_vacuum({pages})")


def _sum(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {name: one[name] + other[name] for name in COUNTERS}


def _is_marked(path: Path | None) -> bool:
    """Whether a file has our mark where SQLite keeps it, however damaged the rest is."""
    if path is None:
        return False
    with path.open("rb") as file:
        head = file.read(72)
    return head[68:72] == APPLICATION_ID.to_bytes(4)


def _is_damage(error: BaseException) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def to_json(value: object) -> str:
    """A parameter for SQLite's JSON functions."""
    return msgspec.json.encode(value).decode()

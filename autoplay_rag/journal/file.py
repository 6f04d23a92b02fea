"""The journal's file: opening, upgrades, damage, transactions, and size.

All functions block. They run on the writer thread.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from autoplay_rag._describe import describe
from autoplay_rag.errors import JournalDamagedError, JournalError, JournalVersionError
from autoplay_rag.journal.base import Durability
from autoplay_rag.journal.database import Clock, JournalDatabase, wall_clock
from autoplay_rag.journal.ledger import COUNTERS
from autoplay_rag.journal.migration import OLDEST_VERSION, upgrade
from autoplay_rag.journal.rows import lossy_text
from autoplay_rag.journal.schema import (
    APPLICATION_ID,
    ERASURE_SCHEMA,
    PAGE_SIZE,
    SCHEMA,
    SCHEMA_VERSION,
)

__all__ = ["JournalFile", "other_version"]

_LOCKED_SECONDS = 5.0
"""Seconds that one attempt waits for the file's lock."""
_CHECKPOINT_PAGES = 8192
"""Pages of write-ahead log per checkpoint. With a large log, a page that changes often is copied into
the file once for many changes."""
_SHRINK_EVERY = 50
"""Commits between two vacuums. An idle pipeline commits once a second."""
_SHRINK_PAGES = 1000
"""Vacuuming this many pages takes about 10 ms and blocks intake."""
_COUNTS: Final = (*COUNTERS, "bytes")
_LOAD_COUNTS = f"SELECT {', '.join(_COUNTS)} FROM counts"
_SAVE_COUNTS = f"UPDATE counts SET {', '.join(f'{name} = ?' for name in _COUNTS)}"


class JournalFile(JournalDatabase):
    """A file with the journal's tables and counts. One transaction changes both.

    Args:
        path: The file. A missing file is created. None keeps the journal in memory.
        durability: What a commit survives: "normal" any end of the process, "full" also a power
            loss.
        known: Whether the file is known to be a journal, even if its content does not show it.
        keep_addresses: Whether upgraded payloads of an older format keep their e-mail addresses.
        clock: Returns the time in Unix seconds.

    Attributes:
        connection: The database.
        upgraded_from: The format before this object upgraded the file; None if it did not.

    Raises:
        JournalDamagedError: If the file is damaged. It was renamed; the message has the new name.
        JournalVersionError: If this version cannot read the file's format.
        JournalError: If another program wrote the file, or it cannot be opened.
    """

    def __init__(
        self,
        path: Path | None,
        durability: Durability,
        *,
        known: bool = True,
        keep_addresses: bool = True,
        clock: Clock = wall_clock,
    ) -> None:
        self.path = path
        self.in_memory = path is None
        self.name = "in memory" if path is None else str(path)
        self.clock = clock
        self._keep_addresses = keep_addresses
        self._commits = 0
        existed = path is not None and path.exists()
        # Counted, but not saved yet because the write failed.
        self._unsaved = dict.fromkeys(_COUNTS, 0)
        self.upgraded_from: int | None = None
        try:
            if path is not None and not existed:
                _create_for_owner(path)
            self.connection: sqlite3.Connection = sqlite3.connect(
                path or ":memory:",
                isolation_level=None,
                timeout=_LOCKED_SECONDS,
                cached_statements=128,
            )
        except (sqlite3.Error, OSError) as error:
            raise JournalError(f"the journal {path} cannot be opened: {error}") from error
        self._damaged = False
        self._sync_after_commit = False
        try:
            self._open(durability, known and existed)
            self.counts = self._load_counts()
        except sqlite3.DatabaseError as error:
            self.connection.close()
            if isinstance(error, sqlite3.OperationalError):
                raise JournalError(f"the journal {path} cannot be opened: {error}") from error
            if not known and not _has_application_id(path):
                raise JournalError(
                    f"{path} is not a journal ({error}); use another file"
                ) from error
            raise self._rename_damaged(error) from error
        except BaseException:
            self.connection.close()
            raise
        # Other threads read this copy, so that they never see half a transaction.
        self.committed = dict(self.counts)

    # -- opening and closing ------------------------------------------------------------------

    def _open(self, durability: Durability, was_in_use: bool) -> None:
        # With strict decoding, a flipped byte in a text would make the whole query fail.
        self.connection.text_factory = lossy_text
        execute = self.connection.execute
        application = execute("PRAGMA application_id").fetchone()[0]
        version = execute("PRAGMA user_version").fetchone()[0]
        tables = execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if tables and application != APPLICATION_ID:
            raise JournalError(f"{self.path} is another program's database; use another file")
        if tables and not OLDEST_VERSION <= version <= SCHEMA_VERSION:
            raise other_version(self.path, version)
        if not tables and was_in_use:
            # All tables are created in one transaction, so a journal without tables was truncated.
            raise sqlite3.DatabaseError("the file is empty, but was in use before")
        if not tables:
            execute(f"PRAGMA page_size = {PAGE_SIZE}")
            execute("PRAGMA auto_vacuum = INCREMENTAL")
        execute("PRAGMA journal_mode = WAL")
        execute(f"PRAGMA synchronous = {'FULL' if durability == 'full' else 'NORMAL'}")
        execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        if not tables:
            self._make_tables()
        elif version < SCHEMA_VERSION:
            self.upgraded_from = version
            upgrade(self.connection, self.path, version, keep_addresses=self._keep_addresses)
        for statement in ERASURE_SCHEMA.split(";\n"):  # early files of format 4 lack these tables
            execute(statement)
        self.unclean = self.meta("open") == 1
        if self.unclean and (found := execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(found)
        self.set_meta("open", 1)

    def _make_tables(self) -> None:
        execute = self.connection.execute
        execute("BEGIN IMMEDIATE")
        for statement in SCHEMA.split(";\n"):
            execute(statement)
        execute(f"PRAGMA application_id = {APPLICATION_ID}")
        execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self.set_meta("journal_id", os.urandom(16).hex())
        execute("COMMIT")

    def _rename_damaged(self, error: sqlite3.Error) -> JournalDamagedError:
        assert self.path is not None
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        aside = self.path.with_name(f"{self.path.name}.damaged-{stamp}")
        number = 1
        while aside.exists():
            number += 1
            aside = self.path.with_name(f"{self.path.name}.damaged-{stamp}-{number}")
        for suffix in ("", "-wal", "-shm"):
            part = self.path.with_name(self.path.name + suffix)
            if part.exists():
                part.rename(aside.with_name(aside.name + suffix))
        return JournalDamagedError(
            f"the journal {self.path} is damaged ({error}) and was renamed to {aside}; the next start "
            "creates a new one. Pending payloads of the damaged one may be recovered with sqlite3's "
            "`.recover`"
        )

    def close(self) -> None:
        """Mark an undamaged file as cleanly closed, and close it."""
        # On a full disk this fails, and the next start checks the file.
        with suppress(sqlite3.Error), self.transaction():
            self.set_meta("open", int(self._damaged))
        with suppress(sqlite3.Error):
            self._shrink(0)  # 0: all free pages
        self.connection.close()

    # -- transactions -------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit all changes inside, with the counts, or none."""
        before = dict(self.counts)
        changes = self.connection.total_changes
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            yield
            # A transaction that only reads must not write: it must work on a full disk.
            written = self.connection.total_changes != changes
            if written:
                self.counts = _sum(self.counts, self._unsaved)
            if self.counts != before:
                self.connection.execute(_SAVE_COUNTS, [self.counts[name] for name in _COUNTS])
            self.connection.execute("COMMIT")
        except BaseException as error:
            self.counts = before
            self._damaged |= _is_damage(error)
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise
        if written:
            self._unsaved = dict.fromkeys(_COUNTS, 0)
        self.committed = _sum(self.counts, self._unsaved)
        self._commits += 1
        if self._sync_after_commit:
            self._sync_after_commit = False
            self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        # The caller's changes are committed. If the disk is full now, the next transaction fails.
        with suppress(sqlite3.Error):
            if self._commits % _SHRINK_EVERY == 0:
                self._shrink(_SHRINK_PAGES)

    def count_unsaved(self, name: str, count: int) -> None:
        """Count what could not be written. The next successful write saves the count."""
        self._unsaved[name] += count
        self.committed = _sum(self.counts, self._unsaved)

    def sync_after_commit(self) -> None:
        """Make the current transaction, and all before it, survive a power loss."""
        self._sync_after_commit = self.path is not None

    # -- erasing ------------------------------------------------------------------------------

    def overwrite_deleted(self) -> None:
        """Overwrite what is deleted from now on with zeros. Free pages may still hold older copies."""
        self.connection.execute("PRAGMA secure_delete = ON").fetchone()

    def rewrite(self) -> bool:
        """Write the file anew, without the remains of deleted rows. Call it outside a transaction.

        Returns:
            Whether the write-ahead log was emptied too. A reader of an older state prevents that.
        """
        if self.path is None:
            return True
        self.connection.execute("VACUUM")
        return self.empty_log()

    def empty_log(self) -> bool:
        """Copy the write-ahead log into the file and truncate it; False if a reader prevents it."""
        if self.path is None:
            return True
        busy, *_ = self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy

    # -- errors -------------------------------------------------------------------------------

    def is_failure(self, error: BaseException) -> bool:
        """As in `JournalDatabase`."""
        return isinstance(error, sqlite3.Error)

    def is_full(self, error: BaseException) -> bool:
        """As in `JournalDatabase`."""
        return _code(error) == sqlite3.SQLITE_FULL

    def reason_to_wait(self, error: BaseException) -> str | None:
        """As in `JournalDatabase`."""
        busy = _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
        return f"another program holds the lock of {self.name}" if busy else None

    def describe(self, error: BaseException) -> str:
        """As in `JournalDatabase`."""
        return describe(error)

    # -- helpers ------------------------------------------------------------------------------

    def meta(self, name: str) -> Any:
        """Return the value saved under a name; None if there is none."""
        row = self.connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def set_meta(self, name: str, value: Any) -> None:
        """Save a value under a name."""
        self.connection.execute("REPLACE INTO meta VALUES (?, ?)", (name, value))

    def delete_meta(self, name: str) -> None:
        """Delete what is saved under a name."""
        self.connection.execute("DELETE FROM meta WHERE name = ?", (name,))

    def _load_counts(self) -> dict[str, int]:
        found = self.connection.execute(_LOAD_COUNTS).fetchone()
        if found is None:
            raise sqlite3.DatabaseError("the counts are missing")
        return dict(zip(_COUNTS, found, strict=True))

    def _shrink(self, pages: int) -> None:
        """Return unused pages to the disk. Up to `_SHRINK_PAGES` are kept for later writes."""
        if self.scalar("PRAGMA freelist_count") > _SHRINK_PAGES:
            # `execute` runs one step of the statement, and each step frees one page.
            self.connection.executescript(f"PRAGMA incremental_vacuum({pages})")


def other_version(path: Path | None, version: int) -> JournalVersionError:
    """Return the error for a file format that this version cannot read."""
    if version > SCHEMA_VERSION:
        return JournalVersionError(
            f"the journal {path} has format {version}, but this version of autoplay-rag reads up to "
            f"{SCHEMA_VERSION}: install the newer version that wrote it, or use another file"
        )
    return JournalVersionError(
        f"the journal {path} has format {version}, but this version of autoplay-rag upgrades only "
        f"format {OLDEST_VERSION} or later: drain it with the version that wrote it, or use another "
        "file"
    )


def _create_for_owner(path: Path) -> None:
    """Create the file readable by its owner only. SQLite gives `-wal` and `-shm` the same mode."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def _sum(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {name: one[name] + other[name] for name in _COUNTS}


def _has_application_id(path: Path | None) -> bool:
    """Whether the file's header has the journal's application id, even if the rest is damaged."""
    if path is None:
        return False
    with path.open("rb") as file:
        head = file.read(72)
    return head[68:72] == APPLICATION_ID.to_bytes(4)


def _is_damage(error: BaseException) -> bool:
    return _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _code(error: BaseException) -> int | None:
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF

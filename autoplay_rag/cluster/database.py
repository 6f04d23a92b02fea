"""Transactions of the journal in PostgreSQL, the ledger's counts, errors, and lost connections.

All functions block. They run on the writer thread.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import msgspec
import psycopg
from psycopg import errors

from autoplay_rag._describe import describe
from autoplay_rag.cluster.connection import PostgresConnection
from autoplay_rag.cluster.notices import channel_of
from autoplay_rag.cluster.schema import COUNTS, SLOTS, advisory_key, prepare
from autoplay_rag.content.keys import partition_of
from autoplay_rag.errors import JournalError
from autoplay_rag.journal.database import Clock, JournalDatabase
from autoplay_rag.journal.tasks import ANSWER
from autoplay_rag.stores.postgres.dsn import place_of
from autoplay_rag.stores.postgres.failures import reason_of
from autoplay_rag.stores.postgres.remains import remains_in
from autoplay_rag.stores.postgres.tables import quoted

__all__ = ["PostgresDatabase"]

_WAIT_SECONDS: Final = 0.25
"""The pause before another attempt to reach a server that did not answer."""
_SHOWN: Final = ", ".join(COUNTS)
_LOAD_COUNTS: Final = f"SELECT {_SHOWN} FROM counts"
_LOAD_META: Final = f"SELECT name, value FROM meta WHERE name NOT LIKE '{ANSWER}%'"
_TIMEOUT: Final = "SET LOCAL idle_in_transaction_session_timeout = '5s'"
"""A process that is paused in a transaction does not hold up the others for longer."""
_OUTAGES: Final = ("08", "53", "57P", "25006")
"""The first characters of codes of errors that may pass: connection, resources, shutdown, and a
replica that does not write yet."""
_COLLISIONS: Final = (errors.DeadlockDetected, errors.SerializationFailure)


class PostgresDatabase(JournalDatabase):
    """The schema with the journal's tables. One transaction changes them and the counts.

    Several processes may have it open. A change that must not meet a change of another process
    calls `lock_out_others` first.

    Args:
        parameters: The parameters of a connection, by libpq's names.
        schema: The name of the schema. It is created if it is missing.
        clock: Returns the time in Unix seconds.

    Raises:
        ConfigurationError: If the role may not create what is missing.
        JournalVersionError: If a newer version of this package made the tables.
        JournalError: If the server cannot be reached.
    """

    alone = False

    def __init__(self, parameters: Mapping[str, str], schema: str, *, clock: Clock) -> None:
        self.clock = clock
        self.name = f"in PostgreSQL ({place_of(parameters)})"
        self.schema = schema
        self.in_memory = False
        self.unclean = False
        self.remains = remains_in(parameters)
        self.connection: PostgresConnection = PostgresConnection(parameters, schema)
        self.on_begin: Callable[[], None] | None = None
        """Called at the start of each transaction, once `meta` is up to date."""
        self._slot = random.randrange(SLOTS)  # noqa: S311
        self._lock = advisory_key(schema, "journal")
        self._meta: dict[str, Any] = {}
        self._unsaved = dict.fromkeys(COUNTS, 0)
        self._in_doubt: str | None = None
        self._counts_in_doubt = dict.fromkeys(COUNTS, 0)
        self._failed_at: float | None = None
        self.counts = dict.fromkeys(COUNTS, 0)
        self.committed = dict(self.counts)
        try:
            prepare(self.connection, schema, os.urandom(16).hex())
            self.connection.load_columns()
            with self.transaction():
                pass
        except psycopg.Error as error:
            self.connection.close()
            raise JournalError(
                f"the journal {self.name} cannot be opened: {reason_of(error)}"
            ) from None
        except BaseException:
            self.connection.close()
            raise

    def close(self) -> None:
        """As in `JournalDatabase`."""
        self.connection.close()

    # -- transactions -------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """As in `JournalDatabase`."""
        self._in_doubt = None
        self._begin()
        before = dict(self.counts)
        try:
            if self.on_begin is not None:
                self.on_begin()
            yield
            written = self._save_counts(before)
            self._in_doubt = written
            self.connection.commit()
        except BaseException as error:
            self._counts_in_doubt, self.counts = self.counts, before
            if not self._is_outage(error):
                self._in_doubt = None
            self.connection.rollback()
            raise
        self._in_doubt = None
        self._keep_counts(saved=written is not None)

    def _begin(self) -> None:
        self._pause()
        try:
            *_, counts, meta = self.connection.begin(
                _TIMEOUT,
                f"SELECT pg_advisory_xact_lock_shared({self._lock})",
                _LOAD_COUNTS,
                _LOAD_META,
            )
        except psycopg.Error:
            self._failed_at = time.monotonic()
            self.connection.rollback()
            raise
        self._failed_at = None
        self.counts = dict(zip(COUNTS, counts[0], strict=True))
        self._meta = dict(meta)

    def _pause(self) -> None:
        if self._failed_at is not None:
            time.sleep(max(0.0, self._failed_at + _WAIT_SECONDS - time.monotonic()))

    def _save_counts(self, before: Mapping[str, int]) -> str | None:
        """Add this transaction's counts. Returns its id; None if it changes nothing."""
        changed = {name: self.counts[name] - before[name] for name in COUNTS}
        transaction = "SELECT pg_current_xact_id_if_assigned()::text"
        if any(changed.values()) or self._has_written():
            changed = {name: changed[name] + self._unsaved[name] for name in COUNTS}
            self.counts = {name: before[name] + changed[name] for name in COUNTS}
        if any(changed.values()):
            sums = ", ".join(f"{name} = {name} + {n:d}" for name, n in changed.items() if n)
            add = f"UPDATE count_slot SET {sums} WHERE slot = {self._slot:d}"
            return str(self.connection.run_all(add, transaction)[1][0][0])
        ((found,),) = self.connection.run_all(transaction)[0]
        return None if found is None else str(found)

    def _has_written(self) -> bool:
        if not any(self._unsaved.values()):
            return False
        ((found,),) = self.connection.run_all("SELECT pg_current_xact_id_if_assigned()::text")[0]
        return found is not None

    def _keep_counts(self, *, saved: bool) -> None:
        if saved:
            self._unsaved = dict.fromkeys(COUNTS, 0)
        self.committed = {name: self.counts[name] + self._unsaved[name] for name in COUNTS}

    def was_committed(self) -> bool:
        """As in `JournalDatabase`.

        The connection was lost while the server may have committed. It still knows.
        """
        if self._in_doubt is None:
            return False
        self._pause()
        try:
            while True:
                ((state,),) = self.connection.run_all(
                    f"SELECT pg_xact_status('{int(self._in_doubt)}'::xid8)"
                )[0]
                if state != "in progress":
                    break
                time.sleep(_WAIT_SECONDS)  # the server has yet to notice the lost connection
        except psycopg.Error:
            self._failed_at = time.monotonic()
            raise
        self._failed_at = None
        self._in_doubt = None
        if state != "committed":
            return False
        self.counts = self._counts_in_doubt
        self._keep_counts(saved=True)
        return True

    def lock_out_others(self) -> None:
        """Let no other process change the journal until this transaction ends."""
        self.connection.run_all(f"SELECT pg_advisory_xact_lock({self._lock})")
        self._meta = dict(self.connection.run_all(_LOAD_META)[0])

    def announce(self, lanes: Iterable[int]) -> None:
        """Tell the processes that listen that payloads of sessions wait, once this is committed."""
        parts = sorted({partition_of(lane) for lane in lanes})
        if parts:
            message = ",".join(map(str, parts))
            self.connection.run_all(f"SELECT pg_notify('{channel_of(self.schema)}', '{message}')")

    def count_unsaved(self, name: str, count: int) -> None:
        """As in `JournalDatabase`."""
        self._unsaved[name] += count
        self.committed = {name: self.counts[name] + self._unsaved[name] for name in COUNTS}

    def sync_after_commit(self) -> None:
        """As in `JournalDatabase`. The server's own setting decides what a commit survives."""

    # -- erasing ------------------------------------------------------------------------------

    def overwrite_deleted(self) -> None:
        """As in `JournalDatabase`. PostgreSQL overwrites nothing; see `rewrite`."""

    def rewrite(self) -> bool:
        """Free the space of deleted rows, which later rows overwrite.

        What still holds the bytes is in `remains`.
        """
        try:
            self._vacuum()
        except psycopg.Error as error:
            raise JournalError(
                f"the journal {self.name} could not be vacuumed: {reason_of(error)}"
            ) from None
        return True

    def _vacuum(self) -> None:
        for table in ("payload", "chunk", "chunk_payload", "passage", "visit", "belongs", "plan"):
            self.connection.run_all(f"VACUUM {quoted(self.schema)}.{table}")

    def empty_log(self) -> bool:
        """As in `JournalDatabase`. The server empties its log by itself."""
        return True

    # -- errors -------------------------------------------------------------------------------

    def is_failure(self, error: BaseException) -> bool:
        """As in `JournalDatabase`."""
        return isinstance(error, psycopg.Error)

    def is_full(self, error: BaseException) -> bool:
        """As in `JournalDatabase`."""
        return isinstance(error, errors.DiskFull)

    def reason_to_wait(self, error: BaseException) -> str | None:
        """As in `JournalDatabase`. "" if another attempt may follow at once."""
        if not isinstance(error, psycopg.Error) or isinstance(error, errors.DiskFull):
            return None
        if isinstance(error, _COLLISIONS):
            return ""
        if self._is_outage(error):
            return f"the journal {self.name} cannot be reached: {reason_of(error)}"
        return None

    def _is_outage(self, error: BaseException) -> bool:
        if not isinstance(error, psycopg.Error):
            return False
        return not self.connection.is_open or (error.sqlstate or "").startswith(_OUTAGES)

    def describe(self, error: BaseException) -> str:
        """As in `JournalDatabase`."""
        return reason_of(error) if isinstance(error, psycopg.Error) else describe(error)

    # -- meta ---------------------------------------------------------------------------------

    def meta(self, name: str) -> Any:
        """As in `JournalDatabase`, as of the start of the transaction."""
        return self._meta.get(name)

    def set_meta(self, name: str, value: Any) -> None:
        """As in `JournalDatabase`."""
        self.connection.execute(
            "INSERT INTO meta VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (name, msgspec.json.encode(value).decode()),
        )
        self._meta[name] = value

    def raise_meta(self, name: str, value: int) -> None:
        """As in `JournalDatabase`. The highest number of all processes stays."""
        if value <= (self._meta.get(name) or 0):
            return
        self.connection.execute(
            "INSERT INTO meta VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = "
            "to_json(greatest((meta.value::text)::bigint, ?))",
            (name, str(value), value),
        )
        self._meta[name] = value

    def delete_meta(self, name: str) -> None:
        """As in `JournalDatabase`."""
        self.connection.execute("DELETE FROM meta WHERE name = ?", (name,))
        self._meta.pop(name, None)

"""What the journal's tables need of the database that has them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

from autoplay_rag.journal.rows import Connection

__all__ = ["Clock", "JournalDatabase", "wall_clock"]

Clock: TypeAlias = Callable[[], float]


def wall_clock() -> float:
    """Return the time in Unix seconds."""
    return time.time()


class JournalDatabase(ABC):
    """The database with the journal's tables and counts. One transaction changes both.

    Attributes:
        connection: Runs statements.
        clock: Returns the time in Unix seconds.
        counts: The ledger's durable counts and `bytes`, as of the current transaction.
        committed: The same as of the last commit. May be read from any thread.
        unclean: True if the last run did not close the journal.
        in_memory: Whether nothing is left of it after the process.
        name: What messages call it.
        alone: Whether no other process writes it.
        remains: What may hold deleted payloads even after `rewrite`, a sentence each.
    """

    connection: Connection
    clock: Clock
    counts: dict[str, int]
    committed: dict[str, int]
    unclean: bool
    in_memory: bool
    name: str
    alone: bool = True
    remains: tuple[str, ...] = ()

    @abstractmethod
    def transaction(self) -> AbstractContextManager[None]:
        """Commit all changes inside, with the counts, or none."""

    @abstractmethod
    def count_unsaved(self, name: str, count: int) -> None:
        """Count what could not be written. The next successful write saves the count."""

    @abstractmethod
    def sync_after_commit(self) -> None:
        """Make the current transaction, and all before it, survive a power loss."""

    @abstractmethod
    def overwrite_deleted(self) -> None:
        """Overwrite what is deleted from now on, where the database can."""

    @abstractmethod
    def rewrite(self) -> bool:
        """Remove the remains of deleted rows; False if a reader of an older state prevents it."""

    @abstractmethod
    def empty_log(self) -> bool:
        """Empty the write-ahead log; False if a reader of an older state prevents it."""

    @abstractmethod
    def meta(self, name: str) -> Any:
        """Return the value saved under a name; None if there is none."""

    @abstractmethod
    def set_meta(self, name: str, value: Any) -> None:
        """Save a value under a name."""

    @abstractmethod
    def delete_meta(self, name: str) -> None:
        """Delete what is saved under a name."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""

    # -- errors -------------------------------------------------------------------------------

    @abstractmethod
    def is_failure(self, error: BaseException) -> bool:
        """Whether an error comes from the database."""

    @abstractmethod
    def is_full(self, error: BaseException) -> bool:
        """Whether the disk is full."""

    @abstractmethod
    def reason_to_wait(self, error: BaseException) -> str | None:
        """Return why the same transaction may succeed later; None if it fails for good."""

    @abstractmethod
    def describe(self, error: BaseException) -> str:
        """Return an error as one line, without the values of rows."""

    def was_committed(self) -> bool:
        """Whether the transaction whose commit was interrupted was committed."""
        return False

    # -- helpers ------------------------------------------------------------------------------

    def scalar(self, sql: str, *parameters: Any) -> int:
        """Return the single number that a query selects."""
        return int(self.connection.execute(sql, parameters).fetchone()[0])

    def raise_meta(self, name: str, value: int) -> None:
        """Save a number, unless a higher one is saved under the name."""
        if value > (self.meta(name) or 0):
            self.set_meta(name, value)

"""Copies a whole journal from a file into PostgreSQL, or back.

Both have the same tables, so their rows are copied as they are: sequence numbers, ids of chunks,
keys, refusals, requests to forget and counts stay. The copy is one transaction of the target.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import psycopg

from autoplay_rag._filelock import FileLock
from autoplay_rag.cluster.address import JournalAddress
from autoplay_rag.cluster.database import PostgresDatabase
from autoplay_rag.cluster.fulltext import PostgresFullText
from autoplay_rag.content.passages import Passage
from autoplay_rag.content.words import index_text
from autoplay_rag.errors import ConfigurationError, JournalError, JournalLockedError
from autoplay_rag.journal.base import IndexEntry
from autoplay_rag.journal.database import wall_clock
from autoplay_rag.journal.file import JournalFile
from autoplay_rag.journal.fulltext import FullTextTables
from autoplay_rag.journal.rows import insert
from autoplay_rag.journal.tasks import ANSWER
from autoplay_rag.stores.postgres.dsn import parameters_of
from autoplay_rag.stores.postgres.failures import reason_of

__all__ = ["JournalCopyReport", "copy_journal"]

_File: TypeAlias = JournalFile | PostgresDatabase

_PAGE: Final = 2000
_TABLES: Final[Mapping[str, tuple[str, str]]] = {
    # Columns, and those of the primary key.
    "payload": (
        (
            "seq, key, lane, kind, session, at, actions, claimed, state, retried, size, ended, error, "
            "body"
        ),
        "seq",
    ),
    "model": ("number, name", "number"),
    "chunk": (
        (
            "number, id, lane, product, session, user, conversation, kind, started, ended, forwarded, "
            "actions, text, metadata, model, state, linked"
        ),
        "number",
    ),
    "chunk_payload": ("seq, chunk", "seq, chunk"),
    "plan": ("number, lane, record, acknowledged", "number"),
    # After `chunk`, which says of which partition a deletion is.
    "deletion": ("chunk, reason, at", "chunk"),
    "refused": ("scope, hash, happened_until", "scope, hash"),
    "visit": (
        (
            "lane, product, session, first, last, payloads, actions, user, conversation, email, "
            "ambiguous, seen"
        ),
        "lane",
    ),
    "belongs": ("field, value, lane", "field, value, lane"),
    "outdated": ("chunk, version", "chunk"),
    "claim": ("seq, lane, until, remaining", "seq"),
    "erasure": ("number, asked, record, deleted, erased", "number"),
    "forgetting": ("seq, erasure", "seq"),
}
_PASSAGE: Final = ("seq, lane, started, ended, actions, text", "seq")
_NOT_COPIED: Final = ("format", "open", "health", "copying", "last_seq", "removed_texts")
"""What `meta` has of the file or the schema itself, or of the process that used it last."""
_REEMBEDDING: Final = "copy"


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalCopyReport:
    """What was copied of a journal.

    Attributes:
        payloads: Payloads, in any state.
        chunks: Chunks of the catalog.
        waiting: Payloads that wait to be stored.
    """

    payloads: int
    chunks: int
    waiting: int

    def __str__(self) -> str:
        return (
            f"{self.payloads:,} payloads and {self.chunks:,} chunks copied into the other journal, "
            f"{self.waiting:,} payloads wait"
        )


async def copy_journal(
    source: Path | JournalAddress, target: Path | JournalAddress
) -> JournalCopyReport:
    """Copy a journal from a file into PostgreSQL, or back. No pipeline may use either of them.

    The copy has the id of the source: a store takes both for the same journal. So do not use the
    source afterwards.

    Not copied: requests of other processes that nobody has answered, and the register of erasures,
    which is a file of its own. NUL characters in texts become U+FFFD in PostgreSQL.

    Args:
        source: The journal.
        target: A journal without payloads. It is created if it is missing.

    Raises:
        ConfigurationError: If both are files or both are in PostgreSQL, or if the target has
            content.
        JournalError: If one of them is in use or cannot be used, or is being re-embedded.
    """
    if isinstance(source, JournalAddress) is isinstance(target, JournalAddress):
        raise ConfigurationError(
            "a journal is copied from a file into PostgreSQL, or back; a file is copied with "
            "`autoplay-rag backup`, and a schema with the tools of PostgreSQL"
        )
    return await asyncio.to_thread(_copy_all, source, target)


def _copy_all(source: Path | JournalAddress, target: Path | JournalAddress) -> JournalCopyReport:
    if isinstance(source, Path) and not source.is_file():
        raise ConfigurationError(f"no journal found at {source}; check the path")
    try:
        with (
            _opened(source) as old,
            _opened(target) as new,
            old.transaction(),
            new.transaction(),
        ):
            for file in (old, new):
                if isinstance(file, PostgresDatabase):
                    _lock_out(file)
            _check(old, new)
            for table, (columns, key) in _TABLES.items():
                for page in _pages(old, table, columns, key):
                    insert(new.connection, f"{table} ({columns})", page)
            _copy_passages(old, new)
            _copy_meta(old, new)
            _copy_numbers(old, new)
            for name, count in old.counts.items():
                new.counts[name] += count
            return JournalCopyReport(
                payloads=_one(new, "SELECT count(*) FROM payload"),
                chunks=_one(new, "SELECT count(*) FROM chunk"),
                waiting=old.counts["pending"],
            )
    except psycopg.Error as error:
        raise JournalError(f"the journal was not copied: {reason_of(error)}") from None


@contextmanager
def _opened(place: Path | JournalAddress) -> Iterator[_File]:
    if isinstance(place, JournalAddress):
        parameters = parameters_of(place.dsn)
        with closing(PostgresDatabase(parameters, place.schema, clock=wall_clock)) as database:
            yield database
        return
    lock = FileLock(place.with_name(place.name + ".lock"))
    known = lock.path.exists()
    if not lock.acquire():
        raise JournalLockedError(
            f"the journal {place} is in use by process {lock.holder()}: stop that process first"
        )
    try:
        with closing(JournalFile(place, "full", known=known)) as file:
            yield file
    finally:
        lock.release()


def _lock_out(file: PostgresDatabase) -> None:
    file.lock_out_others()
    # This waits longer between two statements than a pipeline does.
    file.connection.run_all("SET LOCAL idle_in_transaction_session_timeout = 0")
    if _one(file, "SELECT count(*) FROM worker WHERE expires > clock_timestamp()"):
        raise JournalLockedError(
            f"the journal {file.name} is in use by other processes: stop them first"
        )


def _check(old: _File, new: _File) -> None:
    for table in ("payload", "chunk", "erasure", "refused"):
        if _one(new, f"SELECT count(*) FROM (SELECT 1 FROM {table} LIMIT 1) AS one"):
            raise ConfigurationError(
                f"the journal {new.name} has content already: name a new file or another schema"
            )
    if old.meta(_REEMBEDDING) is not None:
        raise JournalError(
            f"the store of the journal {old.name} is being re-embedded: let the pipeline complete "
            "that first"
        )


def _pages(file: _File, table: str, columns: str, key: str) -> Iterator[list[tuple[Any, ...]]]:
    """Yield the rows of a table in the order of its key."""
    # Quoted: `user` alone is a function of PostgreSQL.
    selected = ", ".join(f'"{name}"' for name in columns.split(", "))
    places = [columns.split(", ").index(name) for name in key.split(", ")]
    marks = ", ".join("?" * len(places))
    after: list[Any] = []
    while True:
        where = f"WHERE ({key}) > ({marks})" if after else ""
        page = file.connection.execute(
            f"SELECT {selected} FROM {table} {where} ORDER BY {key} LIMIT {_PAGE:d}", after
        ).fetchall()
        if page:
            yield page
        if len(page) < _PAGE:
            return
        after = [page[-1][place] for place in places]


def _copy_passages(old: _File, new: _File) -> None:
    texts = PostgresFullText(new) if isinstance(new, PostgresDatabase) else FullTextTables(new)
    for page in _pages(old, "passage", *_PASSAGE):
        texts.add_texts(
            [
                IndexEntry(
                    seq,
                    lane,
                    "",
                    None,
                    Passage(text, index_text(text), started, ended, actions, None, None),
                )
                for seq, lane, started, ended, actions, text in page
            ]
        )


def _copy_meta(old: _File, new: _File) -> None:
    for (name,) in old.connection.execute("SELECT name FROM meta").fetchall():
        if name not in _NOT_COPIED and not name.startswith(ANSWER):
            new.set_meta(name, old.meta(name))


def _copy_numbers(old: _File, new: _File) -> None:
    """Let the target go on after the last numbers of the source."""
    highest = _one(old, "SELECT coalesce(max(seq), 0) FROM payload")
    if isinstance(old, PostgresDatabase):
        new.set_meta("last_seq", max(highest, _one(old, "SELECT last_seq FROM progress")))
        return
    assert isinstance(new, PostgresDatabase)
    last = max(highest, old.meta("last_seq") or 0)
    plan = max(
        _one(old, "SELECT coalesce(max(number), 0) FROM plan"), old.meta("acknowledged") or 0
    )
    new.connection.run_all(f"UPDATE progress SET last_seq = {last:d}")
    for sequence, number in (
        ("'chunk_number'", _one(old, "SELECT coalesce(max(number), 0) FROM chunk")),
        ("'plan_number'", plan),
        *(
            (
                f"pg_get_serial_sequence('{table}', 'number')",
                _one(old, f"SELECT coalesce(max(number), 0) FROM {table}"),
            )
            for table in ("model", "erasure")
        ),
    ):
        if number > 0:
            new.connection.run_all(f"SELECT setval({sequence}, {number:d})")


def _one(file: _File, statement: str) -> Any:
    """Return the only value of the only row."""
    ((value,),) = file.connection.execute(statement).fetchall()
    return value

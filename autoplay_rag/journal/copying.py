"""Tracks which chunks a second collection still lacks, while chunks go on to change.

The tables exist only while a copy is made. Triggers note every change of a chunk, whichever code
makes it. So a copy that was interrupted for days goes on where it stopped, and misses nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

import msgspec

from autoplay_rag.content.chunks import Chunk
from autoplay_rag.journal.base import Waiting
from autoplay_rag.journal.bodies import unpack
from autoplay_rag.journal.catalog import CHUNK_COLUMNS, CatalogTables, read_chunk
from autoplay_rag.journal.rows import delete_in, insert, json_list
from autoplay_rag.journal.schema import ChunkState
from autoplay_rag.journal.writer import Writer

__all__ = ["AsyncCopies", "Changed", "Copy", "CopyTables", "Phase", "Sources"]

_META: Final = "copy"
_PRESENT: Final = f"IN ({ChunkState.STORED:d}, {ChunkState.QUEUED:d})"
_NOTE_NEW: Final = "INSERT OR REPLACE INTO copying (chunk) VALUES (NEW.id);"
_NOTE_OLD: Final = (
    "INSERT OR REPLACE INTO copying (chunk) VALUES (OLD.id); "
    # No text of a deleted chunk may stay.
    "DELETE FROM rendered WHERE chunk = OLD.id;"
)
_TABLES: Final = (
    # AUTOINCREMENT: a number is never used twice, so it tells whether a chunk changed again.
    "CREATE TABLE copying (number INTEGER PRIMARY KEY AUTOINCREMENT, chunk TEXT NOT NULL UNIQUE)",
    # Texts that replace those of the catalog once the copy is complete.
    "CREATE TABLE rendered (chunk TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID",
    *(
        f"CREATE TRIGGER copying_{event} AFTER {event} ON chunk "
        f"WHEN NEW.state <> {ChunkState.PLANNED:d} BEGIN {_NOTE_NEW} END"
        for event in ("INSERT", "UPDATE")
    ),
    f"CREATE TRIGGER copying_DELETE AFTER DELETE ON chunk BEGIN {_NOTE_OLD} END",
)
_NO_TABLES: Final = (
    *(f"DROP TRIGGER IF EXISTS copying_{event}" for event in ("INSERT", "UPDATE", "DELETE")),
    "DROP TABLE IF EXISTS copying",
    "DROP TABLE IF EXISTS rendered",
)


class Phase(StrEnum):
    """How far a copy is."""

    FILLING = "filling"
    EXCHANGING = "exchanging"
    """The collections may be exchanged, or not yet: the id of the store tells."""
    DROPPING = "dropping"
    """Nothing in the other collection is needed any more: the copy is in place, or given up."""


class Copy(msgspec.Struct, frozen=True, kw_only=True):
    """A copy of the store's content for another model, and its progress.

    Attributes:
        model: The model of the new vectors.
        collection: The name of the collection beside the store's own.
        store_id: The id that the store has once the copy took its place.
        render: Whether texts are rendered again.
        total: The number of chunks when it began.
        last: The highest chunk number when it began. Later changes are noted one by one.
        filled: The chunks up to this number are copied.
        done: How many those are.
        phase: How far it is.
    """

    model: str
    collection: str
    store_id: str
    render: bool
    total: int
    last: int
    filled: int = 0
    done: int = 0
    phase: Phase = Phase.FILLING


class Changed(NamedTuple):
    """A chunk that changed during the copy.

    Attributes:
        number: Names this change.
        id: The chunk's id.
        chunk: The chunk; None if the store must not have it any more.
    """

    number: int
    id: str
    chunk: Chunk | None


class Sources(NamedTuple):
    """What a chunk was made of.

    Attributes:
        payloads: All of its payloads, in order. The body is None if it was not kept.
        parts: How many chunks its first payload is divided into.
    """

    payloads: list[Waiting]
    parts: int


class CopyTables:
    """The operations on the tables of a copy. All block, and run on the writer thread.

    Args:
        catalog: The catalog's tables.
    """

    def __init__(self, catalog: CatalogTables) -> None:
        self._catalog = catalog
        self._file = catalog.file
        self._connection = catalog.file.connection

    def current(self) -> Copy | None:
        """Return the copy that is not complete; None if there is none."""
        found = self._file.meta(_META)
        return None if found is None else msgspec.json.decode(found, type=Copy)

    def begin(self, model: str, collection: str, render: bool) -> Copy:
        """Begin a copy, and note changes from now on. Another one that is not complete ends."""
        self._remove_tables()
        self._add_tables()
        return self._save(
            Copy(
                model=model,
                collection=collection,
                store_id=os.urandom(16).hex(),
                render=render,
                total=self._file.scalar(f"SELECT count(*) FROM chunk WHERE state {_PRESENT}"),
                last=self._file.scalar("SELECT coalesce(max(number), 0) FROM chunk"),
            )
        )

    def page(self, limit: int) -> list[tuple[int, Chunk]]:
        """Return the next chunks to copy of those that were there at the beginning, by number."""
        copy = self._open()
        rows = self._connection.execute(
            f"SELECT number, {CHUNK_COLUMNS} FROM chunk WHERE number > ? AND number <= ? "
            f"AND state {_PRESENT} AND text IS NOT NULL ORDER BY number LIMIT ?",
            (copy.filled, copy.last, limit),
        )
        return [(number, read_chunk(*values)) for number, *values in rows]

    def filled(self, numbers: Sequence[int], texts: Mapping[str, str]) -> Copy:
        """Record that a page is copied.

        Args:
            numbers: The numbers of its chunks; none if all pages are copied.
            texts: New texts, by chunk id.
        """
        copy = self._open()
        self._save_texts(texts)
        return self._save(
            msgspec.structs.replace(
                copy,
                filled=max(numbers, default=copy.last),
                done=copy.done + len(numbers),
            )
        )

    def changed(self, limit: int) -> list[Changed]:
        """Return changes that are not copied yet, oldest first."""
        rows = self._connection.execute(
            f"SELECT copying.number, copying.chunk, state, {CHUNK_COLUMNS} FROM copying "
            "LEFT JOIN chunk ON chunk.id = copying.chunk ORDER BY copying.number LIMIT ?",
            (limit,),
        )
        return [
            Changed(
                number,
                found,
                read_chunk(*values)
                if state in (ChunkState.STORED, ChunkState.QUEUED) and values[1] is not None
                else None,
            )
            # A planned chunk is noted again once it is stored. Until then the copy must not have it.
            for number, found, state, *values in rows
        ]

    def gone(self, limit: int) -> list[Changed]:
        """Return changes that are not copied yet, of chunks that the catalog has deleted."""
        copy = self.current()
        if copy is None or copy.phase is Phase.DROPPING:
            return []
        rows = self._connection.execute(
            "SELECT number, chunk FROM copying WHERE NOT EXISTS "
            "(SELECT 1 FROM chunk WHERE id = copying.chunk) LIMIT ?",
            (limit,),
        )
        return [Changed(number, found, None) for number, found in rows]

    def copied(self, numbers: Sequence[int], texts: Mapping[str, str]) -> int:
        """Record that changes are copied, and return how many are left.

        Args:
            numbers: Their numbers. A chunk that changed again has another number.
            texts: New texts, by chunk id.
        """
        delete_in(self._connection, "copying", "number", numbers)
        self._save_texts(texts)
        return self._file.scalar("SELECT count(*) FROM copying")

    def payloads(self, ids: Sequence[str]) -> dict[str, Sources]:
        """Return the payloads of chunks."""
        found: dict[str, Sources] = {}
        for chunk, parts, seq, key, lane, body in self._connection.execute(
            "SELECT chunk.id, "
            "(SELECT count(*) FROM chunk_payload AS other WHERE other.seq = payload.seq), "
            "payload.seq, payload.key, payload.lane, payload.body FROM chunk JOIN chunk_payload ON chunk_payload.chunk = chunk.number "
            "JOIN payload ON payload.seq = chunk_payload.seq "
            "WHERE chunk.id IN (SELECT value FROM json_each(?)) ORDER BY payload.seq",
            (json_list(ids),),
        ):
            sources = found.setdefault(chunk, Sources([], parts))
            sources.payloads.append(Waiting(seq, key.hex(), lane, unpack(body), False))
        return found

    # -- the exchange -------------------------------------------------------------------------

    def exchanging(self) -> bool:
        """Record that the collections are about to be exchanged; False if changes came."""
        if self._file.scalar("SELECT count(*) FROM copying"):
            return False
        self._save(msgspec.structs.replace(self._open(), phase=Phase.EXCHANGING))
        return True

    def not_exchanged(self) -> None:
        """Record that the exchange did not happen."""
        self._save(msgspec.structs.replace(self._open(), phase=Phase.FILLING))

    def exchanged(self, batch: int) -> int:
        """Record that the copy took the place of the store's content.

        Args:
            batch: The last batch that the store confirmed.

        Returns:
            The number of chunks that changed meanwhile. They are queued to be stored again.
        """
        copy = self._open()
        changed = [one.id for one in self.changed(-1)]
        self._connection.execute(
            "UPDATE chunk SET text = rendered.text FROM rendered WHERE rendered.chunk = chunk.id "
            "AND NOT EXISTS (SELECT 1 FROM copying WHERE copying.chunk = chunk.id)"
        )
        self._remove_tables()
        # All chunks have vectors of the new model now. One row tells it for all.
        before = self._catalog.notes().model
        self._connection.execute("DELETE FROM model WHERE name = ?", (copy.model,))
        self._connection.execute("UPDATE model SET name = ? WHERE name = ?", (copy.model, before))
        self._catalog.note_store(copy.store_id, batch, copy.model)
        self._save(msgspec.structs.replace(copy, phase=Phase.DROPPING))
        return self._catalog.queue(list(self._catalog.numbers(changed).values()))

    def give_up(self) -> None:
        """Note no more changes: the copy is not to be completed."""
        copy = self._open()
        self._remove_tables()
        self._save(msgspec.structs.replace(copy, phase=Phase.DROPPING))

    def end(self) -> None:
        """Forget the copy. The caller has deleted the other collection."""
        self._remove_tables()
        self._file.delete_meta(_META)

    # -- helpers ------------------------------------------------------------------------------

    def _open(self) -> Copy:
        copy = self.current()
        assert copy is not None
        return copy

    def _save(self, copy: Copy) -> Copy:
        self._file.set_meta(_META, msgspec.json.encode(copy).decode())
        return copy

    def _save_texts(self, texts: Mapping[str, str]) -> None:
        # A chunk may have been forgotten since it was read.
        rows = self._connection.execute(
            "SELECT id FROM chunk WHERE id IN (SELECT value FROM json_each(?))", (json_list(texts),)
        ).fetchall()
        insert(
            self._connection,
            "rendered (chunk, text)",
            [(known, texts[known]) for (known,) in rows],
            verb="INSERT OR REPLACE",
        )

    def _add_tables(self) -> None:
        for statement in _TABLES:
            self._connection.execute(statement)

    def _remove_tables(self) -> None:
        for statement in _NO_TABLES:
            self._connection.execute(statement)


class AsyncCopies:
    """The asynchronous interface of `CopyTables`.

    Args:
        writer: Runs the operations.
        tables: The tables; known once the journal is open.
    """

    def __init__(self, writer: Writer, tables: Callable[[], CopyTables]) -> None:
        self._writer = writer
        self._tables = tables

    async def current(self) -> Copy | None:
        """As in `CopyTables`."""
        return await self._writer.run(self._tables().current)

    async def begin(self, model: str, collection: str, *, render: bool) -> Copy:
        """As in `CopyTables`."""
        return await self._writer.run(self._tables().begin, model, collection, render)

    async def page(self, limit: int) -> list[tuple[int, Chunk]]:
        """As in `CopyTables`."""
        return await self._writer.run(self._tables().page, limit)

    async def filled(self, numbers: Sequence[int], texts: Mapping[str, str]) -> Copy:
        """As in `CopyTables`."""
        return await self._writer.run(self._tables().filled, numbers, texts)

    async def changed(self, limit: int) -> list[Changed]:
        """As in `CopyTables`."""
        return await self._writer.run(self._tables().changed, limit)

    async def gone(self, limit: int) -> list[Changed]:
        """As in `CopyTables`."""
        return await self._writer.run(self._tables().gone, limit)

    async def copied(self, numbers: Sequence[int], texts: Mapping[str, str]) -> int:
        """As in `CopyTables`."""
        return await self._writer.run(self._tables().copied, numbers, texts)

    async def payloads(self, ids: Sequence[str]) -> dict[str, Sources]:
        """As in `CopyTables`."""
        return await self._writer.run(self._tables().payloads, ids)

    async def exchanging(self) -> bool:
        """As in `CopyTables`."""
        return await self._writer.run(self._tables().exchanging)

    async def not_exchanged(self) -> None:
        """As in `CopyTables`."""
        await self._writer.run(self._tables().not_exchanged)

    async def exchanged(self, batch: int) -> int:
        """As in `CopyTables`."""
        return await self._writer.run(self._tables().exchanged, batch)

    async def give_up(self) -> None:
        """As in `CopyTables`."""
        await self._writer.run(self._tables().give_up)

    async def end(self) -> None:
        """As in `CopyTables`."""
        await self._writer.run(self._tables().end)

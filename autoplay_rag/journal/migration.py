"""Upgrades of older journal files, in place.

Format 2 is the oldest format in use. It kept neither stored payloads nor the texts of chunks, only
the key of each stored payload and the id of its chunk. If the store can be scanned, the texts are
read from it after the upgrade.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from autoplay_rag.content.redaction import without_addresses
from autoplay_rag.journal.bodies import decoded, pack
from autoplay_rag.journal.rows import insert
from autoplay_rag.journal.schema import (
    FULLTEXT_SCHEMA,
    SCHEMA,
    SCHEMA_VERSION,
    START_INDEXING,
    ChunkState,
    PayloadState,
)
from autoplay_rag.payloads import ActionsPayload

__all__ = ["OLDEST_VERSION", "upgrade"]

_log = logging.getLogger(__name__)

OLDEST_VERSION: Final = 2
_OLD_TABLES: Final = (
    "queue",
    "recent",
    "catalog",
    "batches",
    "dead",
    "requests",
    "counters",
    "sessions",
)
_PAGE: Final = 1000
_KEPT_SECONDS: Final = 24 * 3600.0
"""How long format 2 kept the key of a discarded payload: until `expires`."""


class _OldChunk(msgspec.Struct):
    id: str
    text: str
    metadata: dict[str, Any]
    sources: list[tuple[int, str]]
    tokens: int


class _OldBatch(msgspec.Struct):
    """A plan as format 2 recorded it."""

    id: int
    lane: int
    model: str
    chunks: list[_OldChunk]
    unplanned: list[tuple[int, str]] = []
    replayed: bool = False


def upgrade(
    connection: sqlite3.Connection, path: Path | None, version: int, *, keep_addresses: bool = True
) -> None:
    """Bring a file of an older format to the present one, in one transaction.

    Format 3 only lacked full text, which a pipeline fills in the background. For format 2 a copy
    is kept beside the file until the upgrade is done.

    Args:
        connection: The open file, outside any transaction.
        path: The file.
        version: Its format.
        keep_addresses: Whether payloads keep their e-mail addresses.

    Raises:
        sqlite3.Error: If the upgrade fails. The file is then unchanged.
    """
    if version > OLDEST_VERSION:
        _log.warning("upgrading the journal %s from format %d to %d", path, version, SCHEMA_VERSION)
        connection.execute("BEGIN IMMEDIATE")
        for statement in FULLTEXT_SCHEMA.split(";\n"):
            connection.execute(statement)
        connection.execute(
            "INSERT INTO visit (lane, product, session, first, last, user, conversation, "
            "ambiguous, seen) SELECT lane, product, session, first, last, user, conversation, "
            "ambiguous, seen FROM session"
        )
        connection.execute("DROP TABLE session")
        for column in ("linked INTEGER NOT NULL DEFAULT 0", "forwarded REAL", "actions INTEGER"):
            connection.execute(f"ALTER TABLE chunk ADD COLUMN {column}")
        connection.execute(
            f"CREATE INDEX chunk_retired ON chunk (number) WHERE state = {ChunkState.RETIRED:d}"
        )
        connection.execute(START_INDEXING)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")
        return
    assert path is not None
    for suffix in ("", "-wal", "-shm"):
        with suppress(OSError):  # another user's file; its mode stays as it was
            path.with_name(path.name + suffix).chmod(0o600)
    # Format 2 kept payloads as plain text. No remains of it may stay in free pages.
    connection.execute("PRAGMA secure_delete = ON").fetchone()
    copy = path.with_name(f"{path.name}.format-{version}")
    _copy_to(connection, copy)
    _log.warning("upgrading the journal %s from format %d to %d", path, version, SCHEMA_VERSION)
    connection.execute("BEGIN IMMEDIATE")
    try:
        _Upgrade(connection, keep_addresses=keep_addresses).run()
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    connection.execute("PRAGMA secure_delete = OFF").fetchone()
    copy.unlink(missing_ok=True)


def _copy_to(connection: sqlite3.Connection, copy: Path) -> None:
    copy.unlink(missing_ok=True)  # of an interrupted upgrade
    os.close(os.open(copy, os.O_RDWR | os.O_CREAT, 0o600))
    with closing(sqlite3.connect(copy)) as target:
        connection.backup(target)


class _Upgrade:
    def __init__(self, connection: sqlite3.Connection, *, keep_addresses: bool) -> None:
        self._connection = connection
        self._keep_addresses = keep_addresses
        self._model: dict[str, int] = {}
        self._next_chunk = 1
        # Chunks of recently acknowledged batches, by the key of each payload in them.
        self._chunks_of: dict[str, set[int]] = {}

    def run(self) -> None:
        execute = self._connection.execute
        for table in _OLD_TABLES:
            execute(f"ALTER TABLE {table} RENAME TO old_{table}")
        for index in ("recent_at", "catalog_expires", "sessions_at"):
            execute(f"DROP INDEX IF EXISTS {index}")
        for statement in SCHEMA.split(";\n"):
            # `meta` is the same in both formats.
            if "CREATE TABLE meta" not in statement:
                execute(statement)
        execute("REPLACE INTO meta VALUES ('journal_id', ?)", (os.urandom(16).hex(),))
        self._counts()
        self._sessions()
        plans, acknowledged = self._batches()
        self._waiting()
        self._dead()
        for batch in plans:
            self._plan(batch, None)
        for batch, at in acknowledged:
            self._plan(batch, at)
        self._stored()
        execute(
            "INSERT INTO request (action, seq) SELECT action, seq FROM old_requests ORDER BY id"
        )
        for table in _OLD_TABLES:
            execute(f"DROP TABLE old_{table}")
        execute(START_INDEXING)

    def _counts(self) -> None:
        for name, value in self._rows("SELECT name, value FROM old_counters"):
            self._connection.execute(f"UPDATE counts SET {name} = ?", (value,))
        self._connection.execute("DELETE FROM meta WHERE name IN ('health')")

    def _sessions(self) -> None:
        # Format 2 kept lanes and people, but not the product and session ids of a lane. They stay
        # empty until a payload of the session arrives.
        self._connection.execute(
            "INSERT INTO visit (lane, product, session, user, conversation, seen) "
            "SELECT lane, '', '', user, conversation, at FROM old_sessions"
        )

    def _batches(self) -> tuple[list[_OldBatch], list[tuple[_OldBatch, float]]]:
        plans, acknowledged = [], []
        for record, at in self._rows("SELECT record, acknowledged FROM old_batches ORDER BY id"):
            try:
                batch = msgspec.msgpack.decode(record, type=_OldBatch)
            except msgspec.DecodeError:
                _log.warning("dropped a damaged plan; its payloads will be planned again")
                continue
            if at is None:
                plans.append(batch)
            else:
                acknowledged.append((batch, at))
        return plans, acknowledged

    def _waiting(self) -> None:
        rows = self._rows(
            "SELECT seq, key, lane, body, at FROM old_queue LEFT JOIN old_catalog USING (key) "
            "ORDER BY seq"
        )
        size = self._payloads(
            (seq, key, lane, body, at, PayloadState.WAITING, None, None, None)
            for seq, key, lane, body, at in rows
        )
        self._connection.execute("UPDATE counts SET bytes = bytes + ?", (size,))

    def _dead(self) -> None:
        rows = self._rows(
            "SELECT d.seq, d.key, d.lane, d.body, c.at, d.at, d.error, d.session FROM old_dead d "
            "LEFT JOIN old_catalog c ON c.key = d.key ORDER BY d.seq"
        )
        size = self._payloads(
            (seq, key, lane, body, at, PayloadState.DEAD, died, error, session)
            for seq, key, lane, body, at, died, error, session in rows
        )
        self._connection.execute("UPDATE counts SET bytes = bytes + ?", (size,))

    def _payloads(self, rows: Iterator[tuple[Any, ...]]) -> int:
        total = 0
        names: dict[int, tuple[str, str]] = {}
        for seq, key, lane, body, at, state, ended, error, session in rows:
            data = body.encode() if body is not None else None
            payload = decoded(data)
            if payload is not None and not self._keep_addresses:
                bare = without_addresses(payload)
                if bare is not payload:
                    payload, data = bare, msgspec.json.encode(bare)
            total += len(data or b"")
            insert(
                self._connection,
                "payload (seq, key, lane, kind, session, at, actions, state, size, "
                "ended, error, body)",
                [
                    (
                        seq,
                        bytes.fromhex(key),
                        lane,
                        payload.kind if payload else None,
                        session,
                        at or time.time(),
                        len(payload.actions) if isinstance(payload, ActionsPayload) else 0,
                        int(state),
                        len(data or b""),
                        ended,
                        error,
                        pack(data) if data is not None else None,
                    )
                ],
            )
            if payload and payload.session_id:
                names[lane] = (payload.product_id, payload.session_id)
        self._name_sessions(names)
        return total

    def _name_sessions(self, names: dict[int, tuple[str, str]]) -> None:
        self._connection.executemany(
            "UPDATE visit SET product = ?, session = ? WHERE lane = ?",
            [(*given, lane) for lane, given in names.items()],
        )

    def _plan(self, batch: _OldBatch, acknowledged: float | None) -> None:
        """Record a plan. Chunks of an acknowledged plan go into the catalog with their texts."""
        state = ChunkState.PLANNED if acknowledged is None else ChunkState.STORED
        numbers = []
        for chunk in batch.chunks if acknowledged is None else self._stored_of(batch):
            number = self._chunk(
                chunk.id, batch.lane, chunk.text, chunk.metadata, state, batch.model
            )
            numbers.append(number)
            if acknowledged is None:
                links = [(seq, number) for seq, _ in chunk.sources]
                insert(self._connection, "chunk_payload (seq, chunk)", links)
            for _, key in chunk.sources if acknowledged is not None else ():
                self._chunks_of.setdefault(key, set()).add(number)
        record = msgspec.msgpack.encode((numbers, dict(batch.unplanned)))
        self._connection.execute(
            "INSERT INTO plan VALUES (?, ?, ?, ?)", (batch.id, batch.lane, record, acknowledged)
        )
        if acknowledged is None:
            metadata = batch.chunks[0].metadata if batch.chunks else {}
            if session := metadata.get("session_id"):
                self._name_sessions({batch.lane: (metadata.get("product_id", ""), session)})

    def _stored_of(self, batch: _OldBatch) -> list[_OldChunk]:
        """Return the chunks of an acknowledged batch, without those of dead payloads."""
        return [
            chunk
            for chunk in batch.chunks
            if self._connection.execute(
                "SELECT chunk FROM old_catalog WHERE key = ?", (chunk.sources[0][1],)
            ).fetchone()
            not in {None, (None,)}
        ]

    def _stored(self) -> None:
        """Copy the keys of stored and discarded payloads. They get sequence numbers below 0."""
        after = ""
        seq = 0
        while True:
            rows = self._connection.execute(
                "SELECT key, chunk, session, at, expires FROM old_catalog WHERE key > ? "
                "AND key NOT IN (SELECT key FROM old_queue) "
                f"AND key NOT IN (SELECT key FROM old_dead) ORDER BY key LIMIT {_PAGE}",
                (after,),
            ).fetchall()
            # A key without a chunk that is not in the queue was discarded.
            payloads, links = [], []
            for key, chunk, session, at, expires in rows:
                seq -= 1
                state = PayloadState.DISCARDED if chunk is None else PayloadState.STORED
                ended = at if chunk is not None else (expires or time.time()) - _KEPT_SECONDS
                payloads.append((seq, bytes.fromhex(key), seq, at or 0.0, int(state), ended))
                if chunk is not None:
                    metadata = {"session_id": session} if session else {}
                    number = self._chunk(chunk, None, None, metadata, ChunkState.STORED, "")
                    links += [(seq, one) for one in {number} | self._chunks_of.pop(key, set())]
                after = key
            insert(
                self._connection,
                "payload (seq, key, lane, at, state, size, ended)",
                [
                    (seq, key, lane, at, state, 0, ended)
                    for seq, key, lane, at, state, ended in payloads
                ],
            )
            insert(self._connection, "chunk_payload (seq, chunk)", links, verb="INSERT OR IGNORE")
            if len(rows) < _PAGE:
                return

    def _chunk(  # noqa: PLR0917 - a row
        self,
        id: str,
        lane: int | None,
        text: str | None,
        metadata: dict[str, Any],
        state: ChunkState,
        model: str,
    ) -> int:
        known = self._connection.execute("SELECT number FROM chunk WHERE id = ?", (id,)).fetchone()
        if known:
            return int(known[0])
        rest = {
            key: value
            for key, value in metadata.items()
            if key
            not in (
                "product_id",
                "session_id",
                "user_id",
                "conversation_id",
                "kind",
                "started_at",
                "ended_at",
            )
        }
        number = self._next_chunk
        self._next_chunk += 1
        self._connection.execute(
            "INSERT INTO chunk (number, id, lane, product, session, user, conversation, kind, "
            "started, ended, text, metadata, model, state) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                number,
                id,
                lane,
                metadata.get("product_id"),
                metadata.get("session_id"),
                metadata.get("user_id"),
                metadata.get("conversation_id"),
                metadata.get("kind"),
                metadata.get("started_at"),
                metadata.get("ended_at"),
                text,
                msgspec.json.encode(rest).decode() if rest else None,
                self._number_of(model) if model else None,
                int(state),
            ),
        )
        return number

    def _number_of(self, model: str) -> int:
        if model not in self._model:
            self._connection.execute("INSERT OR IGNORE INTO model (name) VALUES (?)", (model,))
            row = self._connection.execute(
                "SELECT number FROM model WHERE name = ?", (model,)
            ).fetchone()
            self._model[model] = row[0]
        return self._model[model]

    def _rows(self, sql: str, *parameters: Any) -> Iterator[Any]:
        """Read row by row, because the bodies of a queue may not fit into memory."""
        return iter(self._connection.execute(sql, parameters))

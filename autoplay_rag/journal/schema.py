"""The tables of the journal's file."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

__all__ = [
    "APPLICATION_ID",
    "ERASURE_SCHEMA",
    "EXPIRED_COUNT",
    "FULLTEXT_SCHEMA",
    "INDEX_BELOW",
    "PAGE_SIZE",
    "SCHEMA",
    "SCHEMA_VERSION",
    "START_INDEXING",
    "ChunkState",
    "PayloadState",
]

APPLICATION_ID: Final = 0x41505247
"""Marks the file as a journal ("APRG"), so that another program's database is never changed."""
SCHEMA_VERSION: Final = 4
PAGE_SIZE: Final = 2048
"""In bytes. Each commit writes whole pages, and keys are spread at random over their index, so small
pages write less. Measured at 200 events a second: pages of 4096, 2048 and 1024 bytes write 21, 13
and 8 KB per event and take the same CPU time. Most chunks still fit into one page of 2048 bytes."""


class PayloadState(IntEnum):
    """The state of a payload."""

    WAITING = 0
    """In the queue: not planned yet, or its plan is not acknowledged yet."""
    STORED = 1
    DEAD = 2
    DISCARDED = 3
    ADOPTED = 4
    """A placeholder for the unknown payload that an adopted chunk begins with. Not counted."""
    EXPIRED = 5
    """Was stored, dead or adopted, and is older than the retention: only its key is left."""


class ChunkState(IntEnum):
    """The state of a chunk."""

    PLANNED = 0
    """Part of a plan that is not acknowledged yet."""
    STORED = 1
    QUEUED = 2
    """Was stored, and must be embedded and stored again."""
    RETIRED = 3
    """Replaced by a summary: not in the store any more, but still found by its words."""


INDEX_BELOW: Final = "index_below"
"""The key in `meta` for the indexing progress. Payloads below its value are not indexed yet."""
EXPIRED_COUNT: Final = "expired"
"""The key in `meta` for the number of stored payloads whose content was deleted by age."""
START_INDEXING: Final = (
    f"REPLACE INTO meta SELECT '{INDEX_BELOW}', coalesce(max(seq), 0) + 1 FROM payload"
)

FULLTEXT_SCHEMA: Final = """
-- The text of each payload, for full-text search. `text` is the package's own rendering. A payload
-- can be found before it is embedded. A `seq` below 0 may stand for a chunk with unknown payloads.
CREATE TABLE passage (
    seq INTEGER PRIMARY KEY, lane INTEGER NOT NULL, started REAL, ended REAL,
    actions INTEGER NOT NULL, text TEXT NOT NULL
);
CREATE INDEX passage_lane ON passage (lane);
-- Contentless: `rowid` is `passage.seq`. The `delete` command needs the indexed text of the row.
CREATE VIRTUAL TABLE words USING fts5 (
    text, content = '', tokenize = 'porter unicode61 remove_diacritics 2'
);
-- All received sessions. A payload without a session has its own row. The columns up to `actions`
-- sum up its passages. `user` and the columns after it are set when a batch is planned; `seen` is
-- the time of that.
CREATE TABLE visit (
    lane INTEGER PRIMARY KEY, product TEXT NOT NULL, session TEXT, first REAL, last REAL,
    payloads INTEGER NOT NULL DEFAULT 0, actions INTEGER NOT NULL DEFAULT 0,
    user TEXT, conversation TEXT, email TEXT, ambiguous INTEGER NOT NULL DEFAULT 0, seen REAL
);
CREATE INDEX visit_last ON visit (last);
CREATE INDEX visit_product ON visit (product, last);
CREATE INDEX visit_session ON visit (session) WHERE session IS NOT NULL;
-- The people and chat threads that a session's payloads name.
CREATE TABLE belongs (
    field TEXT NOT NULL, value TEXT NOT NULL, lane INTEGER NOT NULL,
    PRIMARY KEY (field, value, lane)
) WITHOUT ROWID;
CREATE INDEX belongs_lane ON belongs (lane);
-- Chunks whose metadata changed in the catalog but not yet in the store. `version` grows with each
-- change, so that a change during an update is not lost.
CREATE TABLE outdated (chunk TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID;
-- Summaries that replace actions: how many they still claim, of those that are not later.
CREATE TABLE claim (
    seq INTEGER PRIMARY KEY, lane INTEGER NOT NULL, until REAL NOT NULL, remaining INTEGER NOT NULL
);
CREATE INDEX claim_lane ON claim (lane)"""

ERASURE_SCHEMA: Final = """
-- Requests to forget. `record` is JSON of keyed hashes and counts; it holds no id. `deleted` and
-- `erased` are the times when the two stages were complete.
CREATE TABLE IF NOT EXISTS erasure (
    number INTEGER PRIMARY KEY, asked REAL NOT NULL, record TEXT NOT NULL, deleted REAL, erased REAL
);
-- Payloads that are to be deleted for an erasure and are still here.
CREATE TABLE IF NOT EXISTS forgetting (seq INTEGER PRIMARY KEY, erasure INTEGER NOT NULL)"""

SCHEMA: Final = f"""
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
-- The ledger's durable counts, and `bytes`: the size of the bodies of queued and dead payloads.
CREATE TABLE counts (
    received INTEGER NOT NULL DEFAULT 0, stored INTEGER NOT NULL DEFAULT 0,
    pending INTEGER NOT NULL DEFAULT 0, duplicate INTEGER NOT NULL DEFAULT 0,
    dead INTEGER NOT NULL DEFAULT 0, discarded INTEGER NOT NULL DEFAULT 0,
    filtered INTEGER NOT NULL DEFAULT 0, refused INTEGER NOT NULL DEFAULT 0,
    overflow INTEGER NOT NULL DEFAULT 0, bytes INTEGER NOT NULL DEFAULT 0
);
INSERT INTO counts DEFAULT VALUES;
-- All known payloads, by sequence number. The numbers of stored and discarded payloads of an older
-- format and of placeholders are below 0. `size` is the size of the JSON. `ended` is the time when
-- the payload was settled.
CREATE TABLE payload (
    seq INTEGER PRIMARY KEY, key BLOB NOT NULL, lane INTEGER NOT NULL, kind TEXT, session TEXT,
    at REAL NOT NULL, actions INTEGER, claimed INTEGER NOT NULL DEFAULT 0,
    state INTEGER NOT NULL, retried INTEGER NOT NULL DEFAULT 0, size INTEGER NOT NULL,
    ended REAL, error TEXT, body BLOB
);
CREATE UNIQUE INDEX payload_key ON payload (key);
CREATE INDEX payload_waiting ON payload (lane, seq) WHERE state = {PayloadState.WAITING:d};
CREATE INDEX payload_dead ON payload (seq) WHERE state = {PayloadState.DEAD:d};
CREATE INDEX payload_discarded ON payload (ended) WHERE state = {PayloadState.DISCARDED:d};
-- `linked` has a bit for each field of `People` that a later payload named. `metadata` is JSON of
-- the metadata without a column. `text` is NULL if an older format did not keep it and the store
-- could not be read.
CREATE TABLE chunk (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, lane INTEGER, product TEXT, session TEXT,
    user TEXT, conversation TEXT, kind TEXT, started REAL, ended REAL, forwarded REAL,
    actions INTEGER, text TEXT, metadata TEXT, model INTEGER, state INTEGER NOT NULL,
    linked INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX chunk_lane ON chunk (lane);
CREATE INDEX chunk_queued ON chunk (number) WHERE state = {ChunkState.QUEUED:d};
CREATE INDEX chunk_retired ON chunk (number) WHERE state = {ChunkState.RETIRED:d};
CREATE TABLE chunk_payload (
    seq INTEGER NOT NULL, chunk INTEGER NOT NULL, PRIMARY KEY (seq, chunk)
) WITHOUT ROWID;
CREATE INDEX chunk_payload_chunk ON chunk_payload (chunk, seq);
-- Names of embedders, for `chunk.model`.
CREATE TABLE model (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
-- Plans that are not acknowledged yet. With "full" durability, also those acknowledged in the last
-- minutes. The record has the chunks' numbers.
CREATE TABLE plan (
    number INTEGER PRIMARY KEY, lane INTEGER NOT NULL, record BLOB NOT NULL, acknowledged REAL
);
-- The deletion outbox: chunks whose deletion the store has not confirmed.
CREATE TABLE deletion (chunk TEXT PRIMARY KEY, reason TEXT NOT NULL, at REAL NOT NULL) WITHOUT ROWID;
-- Forgotten scopes and payload keys, as keyed hashes. Payloads of a scope up to `happened_until` are
-- refused.
CREATE TABLE refused (
    scope TEXT NOT NULL, hash BLOB NOT NULL, happened_until REAL NOT NULL, PRIMARY KEY (scope, hash)
) WITHOUT ROWID;
{FULLTEXT_SCHEMA};
{ERASURE_SCHEMA};
-- Requests of other processes to the process that owns the journal.
CREATE TABLE request (number INTEGER PRIMARY KEY, action TEXT NOT NULL, seq INTEGER)
"""

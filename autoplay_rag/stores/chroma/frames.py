"""The requests of `ChromaStore`, and the replies of its worker process.

The worker sends `Done` when it is ready, or `Failed`. After that, each request gets one reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import msgspec

from autoplay_rag.stores.base import Condition, StoreIdentity
from autoplay_rag.stores.workers.pipe import Timed

__all__ = [
    "Answer",
    "Chunks",
    "Clear",
    "Compact",
    "Copy",
    "Count",
    "Delete",
    "Done",
    "Drop",
    "Erase",
    "Exchange",
    "Failed",
    "Found",
    "FoundChunk",
    "Get",
    "Identity",
    "Kept",
    "Open",
    "Query",
    "Reply",
    "Request",
    "SaveIdentity",
    "Scan",
    "Score",
    "Scores",
    "Step",
    "StoredChunk",
    "UpdateMetadata",
    "Upsert",
]


class _Request(Timed, tag=True, kw_only=True):
    """The base of the requests. It has all that a restarted worker needs."""

    collection: str
    model: str | None


class Open(_Request, tag=True, kw_only=True):
    """Create a missing collection, and check the model of its vectors.

    `sync_threshold` is how many changes the index may lack on disk; None for a number by its size.
    """

    sync_threshold: int | None


class Upsert(_Request, tag=True, kw_only=True):
    """Store a batch, given as columns. `vectors` are float32 in the machine's byte order.

    `sync_threshold` is that of `Open`.
    """

    ids: list[str]
    texts: list[str]
    metadatas: list[dict[str, Any]]
    vectors: bytes
    dimension: int
    sync_threshold: int | None = None


class Delete(_Request, tag=True, kw_only=True):
    """Delete the chunks with these ids. Unknown ids are ignored."""

    ids: Sequence[str]


class Query(_Request, tag=True, kw_only=True):
    """Ask for the `k` nearest chunks. `where` has the conditions in Chroma's form."""

    vector: bytes
    k: int
    conditions: list[Condition]
    where: dict[str, Any] | None


class Score(_Request, tag=True, kw_only=True):
    """Ask for the cosine similarity of chunks. Unknown ids are ignored."""

    vector: bytes
    ids: Sequence[str]


class Count(_Request, tag=True, kw_only=True):
    """Ask for the number of chunks."""


class Get(_Request, tag=True, kw_only=True):
    """Ask for the chunks with these ids."""

    ids: Sequence[str]


class Scan(_Request, tag=True, kw_only=True):
    """Ask for the next page of chunks, in the order of Chroma's row numbers.

    `after` is 0 for the first page, then `after` of the previous reply.
    """

    after: int
    limit: int


class UpdateMetadata(_Request, tag=True, kw_only=True):
    """Set metadata keys; None removes a key. Unknown ids are ignored."""

    ids: Sequence[str]
    metadatas: Sequence[dict[str, Any]]


class Drop(_Request, tag=True, kw_only=True):
    """Remove the collection, whatever the model of its vectors is. `Clear` deletes the rest."""


class Clear(_Request, tag=True, kw_only=True):
    """Delete some of what dropped and rewritten collections leave. The reply is `Step`."""


class Compact(_Request, tag=True, kw_only=True):
    """Do one step of a rewrite of the collection, and begin it if it is due. The reply is `Step`.

    If `may_end` is False, the last step waits: a scan is under way, which goes by row numbers.
    """

    may_end: bool


class Exchange(_Request, tag=True, kw_only=True):
    """Exchange the names of the collection and of `other`, whatever the models are."""

    other: str


class Identity(_Request, tag=True, kw_only=True):
    """Ask for the identity, without creating the collection."""


class Copy(_Request, tag=True, kw_only=True):
    """Copy the whole folder, with all collections, into an empty folder."""

    target: str


class Erase(_Request, tag=True, kw_only=True):
    """Remove the remains of deleted chunks from the files of the folder."""


class SaveIdentity(_Request, tag=True, kw_only=True):
    """Save an identity in the collection's metadata."""

    identity: StoreIdentity


Request: TypeAlias = (
    Open
    | Upsert
    | Delete
    | Query
    | Score
    | Count
    | Get
    | Scan
    | UpdateMetadata
    | Drop
    | Clear
    | Compact
    | Exchange
    | Identity
    | Copy
    | Erase
    | SaveIdentity
)


StoredChunk: TypeAlias = tuple[str, str, dict[str, Any]]
"""Id, text, metadata."""

FoundChunk: TypeAlias = tuple[str, str, float, dict[str, Any]]
"""Id, text, score, metadata."""


class Done(msgspec.Struct, tag=True):
    """The request is done. `count` answers `Count`."""

    count: int = 0


class Found(msgspec.Struct, tag=True):
    """The matches, best first."""

    hits: list[FoundChunk]


class Scores(msgspec.Struct, tag=True):
    """The cosine similarity by id."""

    scores: dict[str, float]


class Chunks(msgspec.Struct, tag=True):
    """The requested chunks. `after` is the start of the next page of a scan; None at the end."""

    chunks: list[StoredChunk]
    after: int | None = None


class Kept(msgspec.Struct, tag=True):
    """The identity of the collection; None if there is none.

    `own` is True if this package created the collection.
    """

    identity: StoreIdentity | None
    own: bool = False


class Step(msgspec.Struct, tag=True):
    """One step of a longer work is done.

    `more` is True if there may be further steps. `rewritten` is True if the collection has just
    been replaced by its rewrite.
    """

    more: bool
    rewritten: bool = False


class Failed(msgspec.Struct, tag=True):
    """The request failed. `kind` selects the exception that is raised for it."""

    kind: Literal["locked", "mismatch", "missing", "rejected", "unavailable"]
    message: str


Answer: TypeAlias = Done | Found | Scores | Chunks | Kept | Step
Reply: TypeAlias = Answer | Failed

"""The requests of `ProcessStore`, and the replies of its worker process.

The first frame is `Make`. The worker replies `Done` when the store is made, or `Failed`. After that, each
request gets one reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import msgspec

from autoplay_rag.stores.base import Capability, StoreIdentity
from autoplay_rag.stores.workers.pipe import Timed

__all__ = [
    "Add",
    "Chunks",
    "Count",
    "Delete",
    "Done",
    "Drop",
    "EndScan",
    "Failed",
    "Found",
    "FoundChunk",
    "Get",
    "Identity",
    "IsOwn",
    "Kept",
    "Make",
    "NextPage",
    "Opened",
    "Reply",
    "Request",
    "SaveIdentity",
    "Search",
    "Start",
    "StoredChunk",
    "UpdateMetadata",
]

StoredChunk: TypeAlias = tuple[str, str, dict[str, Any]]
"""Id, text, metadata."""

FoundChunk: TypeAlias = tuple[str, str, float, dict[str, Any]]
"""Id, text, score, metadata."""


class Make(msgspec.Struct, tag=True):
    """Make the store. `call` is of `calls.pack_call`."""

    call: bytes


class _Request(Timed, tag=True, kw_only=True):
    """The base of the requests. It has the model, so that a restarted worker needs no state."""

    model: str | None


class Start(_Request, tag=True, kw_only=True):
    """Start the store with the model, also if it is started. The reply is `Opened`."""


class Add(_Request, tag=True, kw_only=True):
    """Embed and store chunks."""

    chunks: Sequence[StoredChunk]


class Search(_Request, tag=True, kw_only=True):
    """Ask for the `k` best chunks. `filter` has the arguments of `Filter`."""

    text: str
    k: int
    filter: dict[str, Any]


class Count(_Request, tag=True, kw_only=True):
    """Ask for the number of chunks."""


class Delete(_Request, tag=True, kw_only=True):
    """Delete the chunks with these ids."""

    ids: Sequence[str]


class Get(_Request, tag=True, kw_only=True):
    """Ask for the chunks with these ids."""

    ids: Sequence[str]


class NextPage(_Request, tag=True, kw_only=True):
    """Ask for the next page of a scan. `begin` is True for the first page."""

    scan: int
    page: int
    begin: bool


class EndScan(_Request, tag=True, kw_only=True):
    """End a scan before its last page."""

    scan: int


class UpdateMetadata(_Request, tag=True, kw_only=True):
    """Set metadata keys; None removes a key."""

    changes: dict[str, dict[str, Any]]


class Drop(_Request, tag=True, kw_only=True):
    """Delete the whole collection."""


class Identity(_Request, tag=True, kw_only=True):
    """Ask for the identity."""


class SaveIdentity(_Request, tag=True, kw_only=True):
    """Save an identity."""

    identity: StoreIdentity


class IsOwn(_Request, tag=True, kw_only=True):
    """Ask whether this package created the collection. The reply is `Done` with 0 or 1."""


Request: TypeAlias = (
    Start
    | Add
    | Search
    | Count
    | Delete
    | Get
    | NextPage
    | EndScan
    | UpdateMetadata
    | Drop
    | Identity
    | SaveIdentity
    | IsOwn
)


class Done(msgspec.Struct, tag=True):
    """The request is done. `value` answers `Count` and `IsOwn`."""

    value: int = 0


class Opened(msgspec.Struct, tag=True):
    """The store is started."""

    capabilities: frozenset[Capability]
    data_source: str


class Found(msgspec.Struct, tag=True):
    """The matches, best first."""

    hits: list[FoundChunk]


class Chunks(msgspec.Struct, tag=True):
    """The requested chunks. `ended` is True after the last page of a scan."""

    chunks: list[StoredChunk]
    ended: bool = False


class Kept(msgspec.Struct, tag=True):
    """The identity; None if there is none."""

    identity: StoreIdentity | None


class Failed(msgspec.Struct, tag=True, kw_only=True):
    """The request failed. `kind` selects the exception that is raised for it.

    `status` and `retry_after` are those of the service behind the store, if it gave them.
    """

    kind: Literal["capability", "configuration", "filter", "mismatch", "rejected", "unavailable"]
    message: str
    status: int | None = None
    retry_after: float | None = None


Reply: TypeAlias = Done | Opened | Found | Chunks | Kept | Failed

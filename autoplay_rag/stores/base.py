"""The interfaces of stores, and their optional capabilities.

There are two kinds of store. A `VectorStore` takes vectors from the pipeline. A `TextStore` embeds
texts itself. To add a store, inherit from one of them and write its abstract methods. Nothing else
in the package needs a change. `autoplay_rag.testing` has the contract tests for stores.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, date, datetime, time
from typing import Any, Literal, Self, TypeAlias, get_args

from autoplay_rag.content.chunks import Chunk, Metadata, Vector
from autoplay_rag.errors import ConfigurationError, MissingCapabilityError

__all__ = [
    "Capability",
    "Changes",
    "Chunk",
    "Condition",
    "Filter",
    "Match",
    "Metadata",
    "Moment",
    "Store",
    "StoreIdentity",
    "TextStore",
    "Vector",
    "VectorStore",
]

Changes: TypeAlias = Mapping[str, str | int | float | None]
"""Metadata to set on a chunk, by key; None removes the key."""

Capability: TypeAlias = Literal[
    "delete", "get", "scan", "update_metadata", "sibling", "drop", "identity"
]
"""Optional capabilities of a store. Each is named after the method of `Store` that implements it."""

_PAGE = 500


@dataclass(frozen=True, slots=True)
class Match:
    """A chunk that a store found.

    Attributes:
        id: The chunk's id.
        text: The chunk's stored text.
        score: The store's score; higher is better. A `VectorStore` gives the cosine similarity.
        metadata: As in `Chunk`.
    """

    id: str
    text: str
    score: float
    metadata: Metadata = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoreIdentity:
    """A record in the store that shows if the store was replaced or restored from an older copy.

    Attributes:
        store_id: The permanent id of this store, chosen when a journal first uses it.
        journal_id: The id of its journal.
        batch: The last acknowledged batch of the journal when this record was saved.
    """

    store_id: str
    journal_id: str
    batch: int = 0


Condition: TypeAlias = tuple[str, Literal["==", ">=", "<="], str | float]
"""Metadata key, comparison, value. A chunk without the key does not match."""

Moment: TypeAlias = float | date
"""A time: Unix seconds, a `datetime` with a time zone, or a `date` (midnight UTC)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """A filter on the chunks that a search returns. A chunk must meet all given conditions.

    Attributes:
        session_id: One session.
        user_id: One person.
        product_id: One product.
        conversation_id: One chat thread.
        kind: "actions", "summary" or "chat".
        since: Chunks that ended at this time or later: Unix seconds, a `datetime` with a time
            zone, or a `date`, which means midnight UTC. Kept as Unix seconds.
        until: Chunks that started at this time or earlier. Same types as `since`.

    Raises:
        ConfigurationError: If a time is a `datetime` without a time zone, a number that is not
            finite, or of another type.

    Example:
        >>> Filter(user_id="u1", since=100).conditions()
        [('user_id', '==', 'u1'), ('ended_at', '>=', 100.0)]
        >>> Filter(since=date(1970, 1, 2)).since
        86400.0
    """

    session_id: str | None = None
    user_id: str | None = None
    product_id: str | None = None
    conversation_id: str | None = None
    kind: str | None = None
    since: Moment | None = None
    until: Moment | None = None

    def __post_init__(self) -> None:
        for name in ("since", "until"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, _seconds(name, value))

    def conditions(self) -> list[Condition]:
        """Return the conditions, for a store to translate; empty without any condition."""
        found: list[Condition] = [
            (f.name, "==", value)
            for f in fields(self)
            if f.name not in ("since", "until") and (value := getattr(self, f.name)) is not None
        ]
        if self.since is not None:
            found.append(("ended_at", ">=", _seconds("since", self.since)))
        if self.until is not None:
            found.append(("started_at", "<=", _seconds("until", self.until)))
        return found

    def matches(self, metadata: Mapping[str, Any]) -> bool:
        """Return whether a chunk with this metadata passes the filter."""
        return all(_holds(metadata.get(key), op, value) for key, op, value in self.conditions())


def _seconds(name: str, value: Any) -> float:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ConfigurationError(
                f"{name} is a datetime without a time zone; add one, as in "
                "datetime.now(timezone.utc)"
            )
        return value.timestamp()
    if isinstance(value, date):
        return datetime.combine(value, time(), UTC).timestamp()
    try:
        seconds = math.nan if isinstance(value, str | bytes | bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if math.isfinite(seconds):
        return seconds
    raise ConfigurationError(
        f"{name} must be Unix seconds, a datetime with a time zone, or a date, not {value!r}"
    )


def _holds(found: Any, op: str, wanted: str | float) -> bool:
    if found is None:
        return False
    if op == "==":
        return bool(found == wanted)
    return bool(found >= wanted if op == ">=" else found <= wanted)


class Store(ABC):
    """The base of both kinds of store. Inherit from `VectorStore` or `TextStore`.

    A store declares a capability by overriding its method. The methods named in `Capability` raise
    `MissingCapabilityError` here. `identity` needs `save_identity` as well. A feature that needs a
    missing capability raises an error when it starts. If the capabilities depend on a wrapped
    store, override `capabilities` too.

    Every method may be called from more than one event loop. Raise `StoreUnavailableError` (or an
    `OSError` or `TimeoutError`) if the same call may succeed later. Raise `StoreRejectedError` (or
    a `ValueError`) if the input will never be accepted.

    Attributes:
        max_batch: The most chunks that the pipeline passes in one call.
        persistent: Whether the chunks outlive the process. If not, an empty store is filled again
            from the journal when it starts.
    """

    max_batch: int = 1000
    persistent: bool = True

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The optional capabilities of this store."""
        return frozenset(
            capability for capability in get_args(Capability) if _overrides(type(self), capability)
        )

    async def start(self, model: str) -> None:  # noqa: B027 - opening nothing is fine
        """Open the store. Called before the first use.

        Args:
            model: The name of the embedder and its settings. A store that keeps vectors must not
                mix vectors of two models.

        Raises:
            StoreMismatchError: If the store holds vectors of another model.
        """

    async def aclose(self) -> None:  # noqa: B027 - closing nothing is fine
        """Release what `start` opened. May be called more than once."""

    async def count(self) -> int:
        """Return the number of stored chunks.

        Raises:
            MissingCapabilityError: If the store cannot count.
        """
        raise _missing(self, "count")

    async def delete(self, ids: Sequence[str]) -> None:
        """Delete chunks. An unknown id is not an error."""
        raise _missing(self, "delete")

    async def get(self, ids: Sequence[str]) -> list[Chunk]:
        """Return the chunks with these ids, in any order. Unknown ids are left out."""
        raise _missing(self, "get")

    def scan(self, page: int = _PAGE) -> AsyncIterator[list[Chunk]]:
        """Yield all chunks, in pages.

        Chunks that are stored or deleted during the scan may be missing or not.

        Args:
            page: The most chunks in one page.
        """
        raise _missing(self, "scan")

    async def update_metadata(self, changes: Mapping[str, Changes]) -> None:
        """Change metadata without touching text and vector.

        Args:
            changes: For each chunk id the keys to set; None removes a key. Other keys stay. At most
                `max_batch` chunks. An unknown id is not an error.
        """
        raise _missing(self, "update_metadata")

    def sibling(self, name: str) -> Self:
        """Return another collection beside this one, for vectors of another model. Not started.

        Args:
            name: The name of the collection. The same name returns the same collection.
        """
        raise _missing(self, "sibling")

    async def drop(self) -> None:
        """Delete the whole collection, its identity and its model. `start` creates it again."""
        raise _missing(self, "drop")

    async def identity(self) -> StoreIdentity | None:
        """Return the identity saved by `save_identity`; None if there is none."""
        raise _missing(self, "identity")

    async def save_identity(self, identity: StoreIdentity) -> None:
        """Save an identity in the store. Searches must not find it. Needs `identity` as well."""
        raise _missing(self, "identity")


class VectorStore(Store):
    """A store that takes vectors."""

    @abstractmethod
    async def upsert(self, chunks: Sequence[Chunk], vectors: Sequence[Vector]) -> None:
        """Store chunks. A chunk with a known id replaces text, metadata and vector of the old one.

        Args:
            chunks: At most `max_batch`, with different ids.
            vectors: One for each chunk, all of the same dimension.
        """

    @abstractmethod
    async def query(self, vector: Vector, k: int, filter: Filter) -> list[Match]:
        """Return the `k` nearest chunks that pass the filter, best first.

        Raises:
            UnsupportedFilterError: If the store cannot translate the filter.
        """


class TextStore(Store):
    """A store that embeds texts itself."""

    @abstractmethod
    async def add(self, chunks: Sequence[Chunk]) -> None:
        """Embed and store chunks. A chunk with a known id replaces text and metadata of the old one.

        Args:
            chunks: At most `max_batch`, with different ids.
        """

    @abstractmethod
    async def search(self, text: str, k: int, filter: Filter) -> list[Match]:
        """Return the `k` best chunks for `text` that pass the filter, best first.

        Raises:
            UnsupportedFilterError: If the store cannot translate the filter.
        """


def _overrides(cls: type[Store], name: str) -> bool:
    return getattr(cls, name) is not getattr(Store, name)


def _missing(store: Store, capability: str) -> MissingCapabilityError:
    return MissingCapabilityError(type(store).__name__, capability)

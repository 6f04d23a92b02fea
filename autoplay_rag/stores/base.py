"""What a store is, and what it may be able to do beyond storing and searching.

A store is one of two kinds: a `VectorStore` takes the vectors the pipeline made, a `TextStore`
embeds for itself. To add one, inherit from either and write its abstract methods; nothing else
in the package needs to know of it. `autoplay_rag.testing` has the contract that a store passes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Self, TypeAlias, get_args

from autoplay_rag.content.chunks import Chunk, Metadata, Vector
from autoplay_rag.content.filters import Condition, Filter, Moment
from autoplay_rag.errors import MissingCapabilityError

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
"""What a store can do beyond storing and searching; each names the method of `Store` that does it."""

_PAGE = 500


@dataclass(frozen=True, slots=True)
class Match:
    """A chunk that a store found.

    Attributes:
        id: The chunk's id.
        text: What was stored as its text.
        score: The store's own score, higher is better: for a `VectorStore` the cosine similarity.
        metadata: As in `Chunk`.
    """

    id: str
    text: str
    score: float
    metadata: Metadata = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoreIdentity:
    """A note that a store keeps beside its chunks, so that an exchanged or older copy is noticed.

    Attributes:
        store_id: Names this store for good; chosen when a journal first uses it.
        journal_id: The journal it belongs to.
        batch: The journal's number of the last acknowledged batch, as of the last note.
    """

    store_id: str
    journal_id: str
    batch: int = 0


class Store(ABC):
    """What both kinds of store share; inherit from `VectorStore` or `TextStore`.

    A store declares a capability by overriding its method: each method that raises
    `MissingCapabilityError` here is one `Capability` (`identity` needs `save_identity` as well). A
    feature that needs a capability says so when it starts. A store whose capabilities depend on
    what it wraps overrides `capabilities` too.

    Every method may be called from more than one event loop. Failures that may pass later are
    raised as `StoreUnavailableError` (or an `OSError` or `TimeoutError`), input that will never
    be accepted as `StoreRejectedError` (or a `ValueError`).

    Attributes:
        max_batch: The most chunks the pipeline hands over in one call.
        persistent: Whether the chunks outlive the process. A store that does not is filled
            again from the journal when it starts empty.
    """

    max_batch: int = 1000
    persistent: bool = True

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What this store can do beyond storing and searching."""
        return frozenset(
            capability for capability in get_args(Capability) if _overrides(type(self), capability)
        )

    async def start(self, model: str) -> None:  # noqa: B027 - opening nothing is fine
        """Open what needs opening. Called before the first use.

        Args:
            model: Names the embedder and its settings. A store that keeps vectors refuses to mix
                those of two models.

        Raises:
            StoreMismatchError: If the store holds vectors of another model.
        """

    async def aclose(self) -> None:  # noqa: B027 - closing nothing is fine
        """Release what `start` opened. May be called more than once."""

    async def count(self) -> int:
        """The number of chunks stored.

        Raises:
            MissingCapabilityError: If the store cannot count.
        """
        raise _missing(self, "count")

    async def delete(self, ids: Sequence[str]) -> None:
        """Delete chunks; an unknown id is not an error."""
        raise _missing(self, "delete")

    async def get(self, ids: Sequence[str]) -> list[Chunk]:
        """The chunks with these ids, in any order; unknown ids are left out."""
        raise _missing(self, "get")

    def scan(self, page: int = _PAGE) -> AsyncIterator[list[Chunk]]:
        """All chunks, in pages. What is stored or deleted meanwhile may be missing or not.

        Args:
            page: The most chunks in one page.
        """
        raise _missing(self, "scan")

    async def update_metadata(self, changes: Mapping[str, Changes]) -> None:
        """Change metadata without touching text and vector.

        Args:
            changes: By chunk id, the keys to set, or to remove by None. Other keys stay. At most
                `max_batch` chunks; an unknown id is not an error.
        """
        raise _missing(self, "update_metadata")

    def sibling(self, name: str) -> Self:
        """Another collection beside this one, not started yet; for vectors of another model.

        Args:
            name: Names the collection. The same name gives the same collection again.
        """
        raise _missing(self, "sibling")

    async def drop(self) -> None:
        """Delete the whole collection, its identity and its model; `start` makes it anew."""
        raise _missing(self, "drop")

    async def identity(self) -> StoreIdentity | None:
        """The note that `save_identity` left; None if there is none."""
        raise _missing(self, "identity")

    async def save_identity(self, identity: StoreIdentity) -> None:
        """Keep a note in the store itself, where no search finds it. Needs `identity` as well."""
        raise _missing(self, "identity")


class VectorStore(Store):
    """A store that takes vectors."""

    @abstractmethod
    async def upsert(self, chunks: Sequence[Chunk], vectors: Sequence[Vector]) -> None:
        """Store chunks, replacing those with the same id whole (text, metadata and vector).

        Args:
            chunks: At most `max_batch`, with different ids.
            vectors: One for each chunk, all of the same dimension.
        """

    @abstractmethod
    async def query(self, vector: Vector, k: int, filter: Filter) -> list[Match]:
        """The `k` nearest chunks that pass the filter, best first.

        Raises:
            UnsupportedFilterError: If the store cannot translate the filter.
        """


class TextStore(Store):
    """A store that embeds for itself."""

    @abstractmethod
    async def add(self, chunks: Sequence[Chunk]) -> None:
        """Embed and store chunks, replacing those with the same id whole.

        Args:
            chunks: At most `max_batch`, with different ids.
        """

    @abstractmethod
    async def search(self, text: str, k: int, filter: Filter) -> list[Match]:
        """The `k` best chunks for `text` that pass the filter, best first.

        Raises:
            UnsupportedFilterError: If the store cannot translate the filter.
        """


def _overrides(cls: type[Store], name: str) -> bool:
    return getattr(cls, name) is not getattr(Store, name)


def _missing(store: Store, capability: str) -> MissingCapabilityError:
    return MissingCapabilityError(type(store).__name__, capability)

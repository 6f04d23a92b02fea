"""The interfaces of stores, and their optional capabilities.

There are two kinds of store. A `VectorStore` takes vectors from the pipeline. A `TextStore` embeds
texts itself. To add a store, inherit from one of them and write its abstract methods. Nothing else
in the package needs a change. `autoplay_rag.testing` has the contract tests for stores.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
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
    "delete", "get", "scan", "update_metadata", "score", "sibling", "exchange", "drop", "identity"
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

    @property
    def data_source(self) -> str:
        """What the store is called in traces: the class, unless the store has a better name."""
        return type(self).__name__

    @property
    def data_folder(self) -> Path | None:
        """The folder on this machine with the store's own files; None if it has none."""
        return None

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

    async def score(self, vector: Vector, ids: Sequence[str]) -> dict[str, float]:
        """Return the exact cosine similarity of stored vectors, by chunk id.

        Only a `VectorStore` can have this capability. The search uses it for chunks that it found
        without the store: those of one user or session, and those that full-text search found.

        Args:
            vector: The question, of the same dimension as the stored vectors.
            ids: Ids of chunks, any number. Unknown ids are left out.
        """
        raise _missing(self, "score")

    def sibling(self, name: str) -> Self:
        """Return another collection beside this one, for vectors of another model. Not started.

        Args:
            name: The name of the collection. The same name returns the same collection.
        """
        raise _missing(self, "sibling")

    async def exchange(self, name: str) -> None:
        """Exchange this collection with its sibling of this name, in one step.

        Afterwards this store leads to what the sibling held, and the sibling to what this store
        held: chunks, vectors, identity and model. Nothing is deleted. A missing collection counts
        as an empty one. A kill at any time leaves both names in place, exchanged or not.

        Both stores keep the model that they were started with. Unless the new content has the same
        model or is empty, their calls raise `StoreMismatchError` until `start` was called with the
        model of the new content. So a call that still has vectors of the old model mixes nothing.

        Args:
            name: As for `sibling`, which this capability needs as well.

        Raises:
            StoreMismatchError: If this package did not create one of the two.
            StoreUnavailableError: It is unknown whether they were exchanged. Compare the
                identities, or call `start` with the model, before calling this again.
        """
        raise _missing(self, "exchange")

    async def drop(self) -> None:
        """Delete the whole collection, its identity and its model. `start` creates it again."""
        raise _missing(self, "drop")

    async def identity(self) -> StoreIdentity | None:
        """Return the identity saved by `save_identity`; None if there is none."""
        raise _missing(self, "identity")

    async def save_identity(self, identity: StoreIdentity) -> None:
        """Save an identity in the store. Searches must not find it. Needs `identity` as well."""
        raise _missing(self, "identity")

    async def is_own(self) -> bool:
        """Whether this package created the collection, so that all of its chunks are a pipeline's.

        Chunks that the journal does not know are deleted only from such a collection. False by
        default: the rest of the collection may be somebody else's.
        """
        return False

    async def copy_to(self, folder: Path) -> bool:
        """Write a consistent copy of the store's files into an empty folder, for a backup.

        Args:
            folder: It exists. The copy is complete when this returns.

        Returns:
            False by default: the store has no files of its own that can be copied.
        """
        del folder
        return False

    async def erase(self) -> bool:
        """Remove the remains of deleted chunks from the store's files, however long it takes.

        Returns:
            Whether no file of the store holds anything of them afterwards. False by default: the
            store decides itself what its files keep.
        """
        return False

    @property
    def remains(self) -> tuple[str, ...]:
        """What may hold deleted chunks even after `erase`, a sentence each, for receipts."""
        return ()

    async def compact(self) -> bool:
        """Write the collection anew from its own vectors if most of its index are deleted chunks.

        Other calls go on meanwhile. A kill at any time leaves the collection as it was, or
        complete.

        Returns:
            Whether it was written anew. False by default: the store reuses the space itself.
        """
        return False


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

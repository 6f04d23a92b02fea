"""What a store is, and what is asked of one.

A store is one of two kinds: a `VectorStore` takes the vectors the pipeline made, a `TextStore`
embeds for itself. To add one, inherit from either and write its methods; nothing else in the
package needs to know of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from autoplay_rag._html import table_html

__all__ = ["Chunk", "Condition", "Filter", "Hit", "Metadata", "TextStore", "Vector", "VectorStore"]

Vector: TypeAlias = Sequence[float]
"""One embedding; `array.array("f")` is what the package itself makes."""

Metadata: TypeAlias = Mapping[str, str | int | float]
"""Flat: no nesting, no None; an unknown value is absent."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The text, id and metadata that become one vector.

    Attributes:
        id: Deterministic: the same payloads give the same id.
        text: What is embedded and shown; never empty.
        metadata: Flat. `product_id`, `session_id`, `user_id`, `conversation_id`, `kind`
            ("actions", "summary" or "chat"), `started_at`, `ended_at`, `forwarded_at` (Unix
            seconds), `action_count`, `urls` (one string, space-separated). Unknown ones are absent.
    """

    id: str
    text: str
    metadata: Metadata


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that a search found.

    Attributes:
        id: The chunk's id.
        session_id: The visit it belongs to; None where there is none.
        text: What was embedded.
        score: Cosine similarity to the question: 1 is the same, 0 unrelated.
        metadata: As in `Chunk`.
    """

    id: str
    session_id: str | None
    text: str
    score: float
    metadata: Metadata = field(default_factory=dict)

    @classmethod
    def of(cls, id: str, text: str, score: float, metadata: Metadata) -> Hit:
        """Build a hit; the session comes from the metadata."""
        session_id = metadata.get("session_id")
        return cls(id, None if session_id is None else str(session_id), text, score, metadata)

    def _repr_html_(self) -> str:
        rows = [
            ("score", f"{self.score:.3f}"),
            ("session", self.session_id or ""),
            ("text", self.text),
        ]
        return table_html(("field", "value"), rows)


Condition: TypeAlias = tuple[str, Literal["==", ">=", "<="], str | float]
"""Metadata key, comparison, value. A chunk without the key does not match."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which chunks a search may return: all conditions given must hold.

    Attributes:
        session_id: One visit.
        user_id: One person.
        product_id: One product.
        conversation_id: One chat thread.
        kind: "actions", "summary" or "chat".
        since: Unix seconds; chunks that ended at this time or later.
        until: Unix seconds; chunks that started at this time or earlier.

    Example:
        >>> Filter(user_id="u1", since=100.0).conditions()
        [('user_id', '==', 'u1'), ('ended_at', '>=', 100.0)]
    """

    session_id: str | None = None
    user_id: str | None = None
    product_id: str | None = None
    conversation_id: str | None = None
    kind: str | None = None
    since: float | None = None
    until: float | None = None

    def conditions(self) -> list[Condition]:
        """The filter as comparisons for a store to translate; empty where nothing is asked."""
        found: list[Condition] = [
            (f.name, "==", value)
            for f in fields(self)
            if f.name not in ("since", "until") and (value := getattr(self, f.name)) is not None
        ]
        if self.since is not None:
            found.append(("ended_at", ">=", self.since))
        if self.until is not None:
            found.append(("started_at", "<=", self.until))
        return found

    def matches(self, metadata: Mapping[str, Any]) -> bool:
        """Whether a chunk with this metadata passes."""
        return all(_holds(metadata.get(key), op, value) for key, op, value in self.conditions())


def _holds(found: Any, op: str, wanted: str | float) -> bool:
    if found is None:
        return False
    if op == "==":
        return bool(found == wanted)
    return bool(found >= wanted if op == ">=" else found <= wanted)


class _Store(Protocol):
    """What both kinds of store share.

    Attributes:
        max_batch: The most chunks the pipeline hands over in one call.
    """

    max_batch: int = 1000

    async def start(self, model: str) -> None:  # noqa: ARG002 - what the protocol offers
        """Open what needs opening. Called once before the first use.

        Args:
            model: Names the embedder and its settings. A store that keeps vectors refuses
                to mix those of two models.

        Raises:
            StoreMismatchError: If the store holds another model's vectors.
        """
        return None  # noqa: RET501 - an empty body would make it abstract

    async def delete(self, ids: Sequence[str]) -> None:
        """Delete chunks; an unknown id is no error."""
        raise NotImplementedError

    async def count(self) -> int:
        """The number of chunks stored."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Let go of what `start` opened. May be called more than once."""
        return None  # noqa: RET501 - an empty body would make it abstract


@runtime_checkable
class VectorStore(_Store, Protocol):
    """A store that takes vectors. Inherit from it to get its defaults.

    Every method may be called from more than one event loop. Failures that may pass later are
    raised as `StoreUnavailableError` (or an `OSError` or `TimeoutError`), input that never will
    be taken as `StoreRejectedError` (or a `ValueError`).
    """

    async def upsert(self, chunks: Sequence[Chunk], vectors: Sequence[Vector]) -> None:
        """Store chunks, replacing those with the same id whole (text, metadata and vector).

        Args:
            chunks: At most `max_batch`, with different ids.
            vectors: One for each chunk, all of the same dimension.
        """
        raise NotImplementedError

    async def query(self, vector: Vector, k: int, filter: Filter) -> list[Hit]:
        """The `k` nearest chunks that pass the filter, best first.

        Raises:
            UnsupportedFilterError: If the store cannot translate the filter.
        """
        raise NotImplementedError


@runtime_checkable
class TextStore(_Store, Protocol):
    """A store that embeds for itself. Inherit from it to get its defaults.

    What is said of `VectorStore` about loops and failures holds here too.
    """

    async def add(self, chunks: Sequence[Chunk]) -> None:
        """Embed and store chunks, replacing those with the same id whole.

        Args:
            chunks: At most `max_batch`, with different ids.
        """
        raise NotImplementedError

    async def search(self, text: str, k: int, filter: Filter) -> list[Hit]:
        """The `k` best chunks for `text` that pass the filter, best first.

        Raises:
            UnsupportedFilterError: If the store cannot translate the filter.
        """
        raise NotImplementedError

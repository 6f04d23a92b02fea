"""Chunks and their vectors, checked and packed for a store (pure).

A pipeline may hand over what a user's own code rendered and embedded. What no store could take
is refused here, before anything of the batch is stored, in words that name the chunk.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from autoplay_rag.errors import StoreRejectedError
from autoplay_rag.stores.base import Chunk, Metadata, Vector

__all__ = ["Rows", "pack", "pack_vector"]

_INT64 = 2**63
_FLOAT32 = array("f").itemsize


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch as columns: at each position the parts of one chunk.

    Attributes:
        ids: All different.
        texts: What was embedded.
        metadatas: Copies, so that a caller may go on using its own.
        vectors: float32 values in the machine's byte order, row after row.
        dimension: Values in a row.
    """

    ids: list[str]
    texts: list[str]
    metadatas: list[dict[str, str | int | float]]
    vectors: bytes
    dimension: int


def pack(chunks: Sequence[Chunk], vectors: Sequence[Vector]) -> Rows:
    """Check a batch and turn it into columns. Of chunks with the same id the last one stays.

    Args:
        chunks: At least one.
        vectors: One for each chunk.

    Raises:
        StoreRejectedError: If the numbers differ, if vectors are empty, of different
            dimensions or not finite, or if a text or a metadata value is of a wrong type.

    Example:
        >>> rows = pack([Chunk("c1", "Opened billing", {"user_id": "u1"})], [[0.6, 0.8]])
        >>> rows.ids, rows.dimension, len(rows.vectors)
        (['c1'], 2, 8)
    """
    if len(chunks) != len(vectors):
        raise StoreRejectedError(
            f"{len(chunks)} chunks came with {len(vectors)} vectors; each needs one of its own"
        )
    for chunk in chunks:
        if not _is_name(chunk.id):
            raise StoreRejectedError(f"the id of a chunk is {chunk.id!r}, which is no name")
    kept = {chunk.id: (chunk, vector) for chunk, vector in zip(chunks, vectors, strict=True)}
    packed = [pack_vector(vector, f"chunk {chunk.id!r}") for chunk, vector in kept.values()]
    width = len(packed[0])
    for chunk_id, row in zip(kept, packed, strict=True):
        if len(row) != width:
            raise StoreRejectedError(
                f"chunk {chunk_id!r} came with a vector of dimension {len(row) // _FLOAT32}, "
                f"the first of its batch with {width // _FLOAT32}; a batch has one dimension"
            )
    return Rows(
        ids=list(kept),
        texts=[_checked_text(chunk) for chunk, _ in kept.values()],
        metadatas=[_checked_metadata(chunk.id, chunk.metadata) for chunk, _ in kept.values()],
        vectors=b"".join(packed),
        dimension=width // _FLOAT32,
    )


def pack_vector(vector: Vector, owner: str) -> bytes:
    """One vector as float32 bytes in the machine's byte order.

    Args:
        vector: Any sequence of numbers.
        owner: Whose it is, for the error.

    Raises:
        StoreRejectedError: If it is empty, holds what is no number, or is not finite.
    """
    try:
        row = vector if isinstance(vector, array) and vector.typecode == "f" else array("f", vector)
    except (TypeError, ValueError, OverflowError) as error:
        raise StoreRejectedError(
            f"the vector of {owner} is no sequence of numbers: {error}"
        ) from None
    if not row:
        raise StoreRejectedError(f"the vector of {owner} is empty")
    # Finite float32 values never overflow the double they are summed in, so one sum tells.
    if not math.isfinite(sum(row)):
        raise StoreRejectedError(f"the vector of {owner} holds NaN or infinity")
    return row.tobytes()


def _checked_text(chunk: Chunk) -> str:
    text: object = chunk.text
    problem = _problem_of(text) if isinstance(text, str) else _wrong_type(text)
    if problem:
        raise StoreRejectedError(f"the text of chunk {chunk.id!r} {problem}")
    return chunk.text


def _checked_metadata(id: str, metadata: Metadata) -> dict[str, str | int | float]:
    for key, value in metadata.items():
        if not _is_name(key):
            raise StoreRejectedError(f"a metadata key of chunk {id!r} is {key!r}, which is no name")
        if problem := _problem_of(value):
            raise StoreRejectedError(f"metadata {key!r} of chunk {id!r} {problem}")
    return dict(metadata)


def _problem_of(value: object) -> str | None:
    """Why a store cannot keep this value, if so; the value itself is not told."""
    if isinstance(value, str):
        return None if _is_unicode(value) else "holds a lone surrogate"
    if isinstance(value, int):
        return None if -_INT64 <= value < _INT64 else "is an integer of more than 64 bits"
    if isinstance(value, float):
        return None if math.isfinite(value) else "is not a finite number"
    return _wrong_type(value)


def _wrong_type(value: object) -> str:
    return f"is a {type(value).__name__}, which no store keeps"


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name != "" and _is_unicode(name)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

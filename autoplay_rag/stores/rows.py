"""Checks of what goes into a store, and its packing into columns (pure).

A pipeline may hand over texts and vectors of a user's own code. Values that no store can keep are
refused here, before any part of the batch is stored; the message names the chunk.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autoplay_rag.errors import StoreRejectedError
from autoplay_rag.stores.base import Changes, Chunk, Metadata, Vector

__all__ = ["Rows", "checked_changes", "pack", "pack_vector"]

_INT64 = 2**63
_FLOAT32 = array("f").itemsize


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch as columns: at each position the parts of one chunk.

    Attributes:
        ids: All different.
        texts: What was embedded.
        metadatas: Copies; the caller may change its own afterwards.
        vectors: float32 values in the machine's byte order, row after row.
        dimension: Values in a row.
    """

    ids: list[str]
    texts: list[str]
    metadatas: list[dict[str, str | int | float]]
    vectors: bytes
    dimension: int


def pack(chunks: Sequence[Chunk], vectors: Sequence[Vector]) -> Rows:
    """Check a batch and turn it into columns. Of chunks with the same id the last one is kept.

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
        _check_id(chunk.id)
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
        owner: What it belongs to, for the error message.

    Raises:
        StoreRejectedError: If it is empty, or holds a value that is not a finite number.
    """
    try:
        row = vector if isinstance(vector, array) and vector.typecode == "f" else array("f", vector)
    except (TypeError, ValueError, OverflowError) as error:
        raise StoreRejectedError(
            f"the vector of {owner} is not a sequence of numbers: {error}"
        ) from None
    if not row:
        raise StoreRejectedError(f"the vector of {owner} is empty")
    # Finite float32 values never overflow the double they are summed in, so one sum tells.
    if not math.isfinite(sum(row)):
        raise StoreRejectedError(f"the vector of {owner} holds NaN or infinity")
    return row.tobytes()


def checked_changes(
    changes: Mapping[str, Changes],
) -> dict[str, dict[str, str | int | float | None]]:
    """Check changes of metadata and copy them; chunks without a change are left out.

    Raises:
        StoreRejectedError: If an id or a key is not a name, or a value is of a wrong type.

    Example:
        >>> checked_changes({"c1": {"user_id": "u1", "email": None}, "c2": {}})
        {'c1': {'user_id': 'u1', 'email': None}}
    """
    for chunk_id, wanted in changes.items():
        _check_id(chunk_id)
        _check_metadata(chunk_id, wanted, removable=True)
    return {chunk_id: dict(wanted) for chunk_id, wanted in changes.items() if wanted}


def _check_id(id: object) -> None:
    if not _is_name(id):
        raise StoreRejectedError(f"the id of a chunk is {id!r}, which is not a name")


def _checked_text(chunk: Chunk) -> str:
    text: object = chunk.text
    problem = _problem_of(text) if isinstance(text, str) else _wrong_type(text)
    if problem:
        raise StoreRejectedError(f"the text of chunk {chunk.id!r} {problem}")
    return chunk.text


def _checked_metadata(id: str, metadata: Metadata) -> dict[str, str | int | float]:
    _check_metadata(id, metadata)
    return dict(metadata)


def _check_metadata(id: str, metadata: Mapping[str, object], *, removable: bool = False) -> None:
    for key, value in metadata.items():
        if not _is_name(key):
            raise StoreRejectedError(
                f"a metadata key of chunk {id!r} is {key!r}, which is not a name"
            )
        if removable and value is None:
            continue
        if problem := _problem_of(value):
            raise StoreRejectedError(f"metadata {key!r} of chunk {id!r} {problem}")


def _problem_of(value: object) -> str | None:
    """Why a store cannot keep this value, or None. The value itself is left out: it is private."""
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

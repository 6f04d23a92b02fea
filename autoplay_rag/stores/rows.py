"""Checks of batches for a store, and their packing into columns (pure functions).

Texts and vectors may come from the user's code. Values that no store can keep are rejected here,
before any part of the batch is stored. The error message names the chunk.
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
_NAME = "it must be a string, not empty, without lone surrogates"


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch as columns. The same position in each column belongs to the same chunk.

    Attributes:
        ids: All different.
        texts: The embedded texts.
        metadatas: Copies; later changes of the caller's mappings do not affect them.
        vectors: float32 values in the machine's byte order, row after row.
        dimension: The number of values in a row.
    """

    ids: list[str]
    texts: list[str]
    metadatas: list[dict[str, str | int | float]]
    vectors: bytes
    dimension: int


def pack(chunks: Sequence[Chunk], vectors: Sequence[Vector]) -> Rows:
    """Check a batch and convert it to columns. The last of several chunks with the same id is kept.

    Args:
        chunks: At least one.
        vectors: One for each chunk.

    Raises:
        StoreRejectedError: If the numbers of chunks and vectors differ, if vectors are empty, of
            different dimensions or not finite, or if an id, a text or a metadata entry cannot be
            stored.

    Example:
        >>> rows = pack([Chunk("c1", "Opened billing", {"user_id": "u1"})], [[0.6, 0.8]])
        >>> rows.ids, rows.dimension, len(rows.vectors)
        (['c1'], 2, 8)
    """
    if len(chunks) != len(vectors):
        raise StoreRejectedError(
            f"the batch has {len(chunks)} chunks and {len(vectors)} vectors; each chunk needs one "
            "vector"
        )
    for chunk in chunks:
        _check_id(chunk.id)
    kept = {chunk.id: (chunk, vector) for chunk, vector in zip(chunks, vectors, strict=True)}
    packed = [pack_vector(vector, f"chunk {chunk.id!r}") for chunk, vector in kept.values()]
    width = len(packed[0])
    for chunk_id, row in zip(kept, packed, strict=True):
        if len(row) != width:
            raise StoreRejectedError(
                f"the vector of chunk {chunk_id!r} has dimension {len(row) // _FLOAT32}, but the "
                f"first of its batch has {width // _FLOAT32}; all vectors of a batch must have the "
                "same dimension"
            )
    return Rows(
        ids=list(kept),
        texts=[_checked_text(chunk) for chunk, _ in kept.values()],
        metadatas=[_checked_metadata(chunk.id, chunk.metadata) for chunk, _ in kept.values()],
        vectors=b"".join(packed),
        dimension=width // _FLOAT32,
    )


def pack_vector(vector: Vector, owner: str) -> bytes:
    """Convert a vector to float32 bytes in the machine's byte order.

    Args:
        vector: Any sequence of numbers.
        owner: The vector's chunk or question, for the error message.

    Raises:
        StoreRejectedError: If it is empty, or has a value that is not a finite number.
    """
    try:
        row = vector if isinstance(vector, array) and vector.typecode == "f" else array("f", vector)
    except (TypeError, ValueError, OverflowError) as error:
        raise StoreRejectedError(
            f"the vector of {owner} is not a sequence of numbers: {error}"
        ) from None
    if not row:
        raise StoreRejectedError(f"the vector of {owner} is empty")
    # A sum of finite float32 values never overflows a double, so the sum is finite if all are.
    if not math.isfinite(sum(row)):
        raise StoreRejectedError(f"the vector of {owner} has NaN or infinity")
    return row.tobytes()


def checked_changes(
    changes: Mapping[str, Changes],
) -> dict[str, dict[str, str | int | float | None]]:
    """Check and copy metadata changes. Chunks without a change are left out.

    Raises:
        StoreRejectedError: If an id, a key or a value cannot be stored.

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
        raise StoreRejectedError(f"the id of a chunk is {id!r}; {_NAME}")


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
            raise StoreRejectedError(f"a metadata key of chunk {id!r} is {key!r}; {_NAME}")
        if removable and value is None:
            continue
        if problem := _problem_of(value):
            raise StoreRejectedError(f"metadata {key!r} of chunk {id!r} {problem}")


def _problem_of(value: object) -> str | None:
    """Say why a store cannot keep this value, or return None. Does not quote it: it may be private."""
    if isinstance(value, str):
        return None if _is_unicode(value) else "has a lone surrogate"
    if isinstance(value, int):
        return None if -_INT64 <= value < _INT64 else "is an integer of more than 64 bits"
    if isinstance(value, float):
        return None if math.isfinite(value) else "is not a finite number"
    return _wrong_type(value)


def _wrong_type(value: object) -> str:
    return f"is a {type(value).__name__}, which stores cannot keep"


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name != "" and _is_unicode(name)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

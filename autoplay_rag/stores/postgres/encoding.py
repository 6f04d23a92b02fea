"""Chunks and vectors in the form in which PostgreSQL keeps them (pure functions).

Vectors are scaled to length 1 and kept in half precision. So the inner product is the cosine
similarity, and a vector of zeros, for which PostgreSQL has no cosine, is similar to nothing.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autoplay_rag.errors import StoreRejectedError
from autoplay_rag.stores.base import Chunk
from autoplay_rag.stores.rows import Rows

__all__ = [
    "MOST_DIMENSIONS",
    "Binary",
    "decoded_metadata",
    "decoded_text",
    "encoded_changes",
    "encoded_metadata",
    "encoded_text",
    "half_vector",
    "half_vectors",
    "made_chunk",
]

MOST_DIMENSIONS = 16_000
"""The limit of pgvector's type `halfvec`."""

_ESCAPE = "\x1a"
_ESCAPED = re.compile(f"{_ESCAPE}(.)", re.DOTALL)
_TO_ESCAPE = re.compile(f"[\0{_ESCAPE}]")
_CODES = {"\0": "0", _ESCAPE: _ESCAPE}
_CHARACTERS = {code: character for character, code in _CODES.items()}
_WHOLE_FLOAT = 1e15
"""From here on, Python may write a float with an exponent, and PostgreSQL would make it whole."""


@dataclass(frozen=True, slots=True)
class Binary:
    """A parameter in PostgreSQL's binary form.

    Attributes:
        value: The bytes.
    """

    value: bytes


def encoded_text(text: str) -> str:
    r"""Escape NUL, which PostgreSQL cannot store in a text. Other texts stay as they are.

    Example:
        >>> encoded_text("a\0b"), decoded_text(encoded_text("a\0b\x1a")) == "a\0b\x1a"
        ('a\x1a0b', True)
    """
    if "\0" not in text and _ESCAPE not in text:
        return text
    return _TO_ESCAPE.sub(lambda found: _ESCAPE + _CODES[found[0]], text)


def decoded_text(text: str) -> str:
    """Reverse `encoded_text`."""
    if _ESCAPE not in text:
        return text
    return _ESCAPED.sub(lambda found: _CHARACTERS.get(found[1], found[0]), text)


def encoded_metadata(metadata: Mapping[str, str | int | float]) -> str:
    """Return metadata as JSON that keeps integers and floats apart in PostgreSQL's `jsonb`.

    Example:
        >>> encoded_metadata({"count": 3, "at": 10.0, "large": 1e16})
        '{"count": 3, "at": 10.0, "large": 10000000000000000.0}'
    """
    return _encoded(metadata)


def encoded_changes(changes: Mapping[str, str | int | float | None]) -> str:
    """Return changes of metadata as JSON; null removes a key."""
    return _encoded(changes)


def decoded_metadata(text: str) -> dict[str, str | int | float]:
    """Reverse `encoded_metadata`, from the text of the `jsonb` value."""
    found: dict[str, str | int | float] = json.loads(text)
    if _ESCAPE in text or "\\u001a" in text:
        return {
            decoded_text(key): decoded_text(value) if isinstance(value, str) else value
            for key, value in found.items()
        }
    return found


def made_chunk(row: tuple[Any, ...]) -> Chunk:
    """Make a chunk of a row with id, text and metadata."""
    return Chunk(decoded_text(row[0]), decoded_text(row[1]), decoded_metadata(row[2]))


def half_vectors(rows: Rows, type_oid: int) -> Binary:
    """Return the vectors of a batch as PostgreSQL's binary form of an array of `halfvec`.

    Args:
        rows: The batch.
        type_oid: The number of the type `halfvec` in this database.

    Raises:
        StoreRejectedError: If the vectors have too many dimensions.
    """
    import numpy as np

    matrix = np.frombuffer(rows.vectors, np.float32).reshape(-1, rows.dimension)
    _check_dimension(rows.dimension)
    elements = np.zeros(
        len(matrix),
        [("size", ">i4"), ("dim", ">i2"), ("unused", ">i2"), ("values", ">f2", (rows.dimension,))],
    )
    elements["size"] = elements.dtype.itemsize - 4
    elements["dim"] = rows.dimension
    elements["values"] = _unit(matrix)
    # One dimension, no nulls, the type, the number of elements, the first index.
    head = struct.pack(">iiIii", 1, 0, type_oid, len(matrix), 1)
    return Binary(head + elements.tobytes())


def half_vector(packed: bytes) -> tuple[Binary, int]:
    """Return a vector in PostgreSQL's binary form, and its dimension.

    Args:
        packed: float32 values, as `pack_vector` returns them.

    Raises:
        StoreRejectedError: If it has too many dimensions.
    """
    import numpy as np

    vector = np.frombuffer(packed, np.float32)
    _check_dimension(len(vector))
    values = _unit(vector).astype(">f2")
    return Binary(struct.pack(">hh", len(vector), 0) + values.tobytes()), len(vector)


def _check_dimension(dimension: int) -> None:
    if dimension > MOST_DIMENSIONS:
        raise StoreRejectedError(
            f"the vectors have {dimension} dimensions, and pgvector keeps at most "
            f"{MOST_DIMENSIONS}: use an embedder with fewer dimensions"
        )


def _unit(vectors: Any) -> Any:
    """Scale to length 1. A vector of zeros stays as it is."""
    import numpy as np

    wide = vectors.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=-1, keepdims=True)
    return wide / np.where(lengths > 0, lengths, 1)


def _encoded(values: Mapping[str, str | int | float | None]) -> str:
    text = json.dumps(dict(values), ensure_ascii=False)
    if "\\u0000" in text or "\\u001a" in text:
        values = {
            encoded_text(key): encoded_text(value) if isinstance(value, str) else value
            for key, value in values.items()
        }
        text = json.dumps(values, ensure_ascii=False)
    if any(isinstance(value, float) and abs(value) >= _WHOLE_FLOAT for value in values.values()):
        parts = (
            f"{json.dumps(key, ensure_ascii=False)}: {_number_or_json(value)}"
            for key, value in values.items()
        )
        return "{" + ", ".join(parts) + "}"
    return text


def _number_or_json(value: str | float | None) -> str:
    if isinstance(value, float) and abs(value) >= _WHOLE_FLOAT:
        return format(float(value), ".1f")
    return json.dumps(value, ensure_ascii=False)

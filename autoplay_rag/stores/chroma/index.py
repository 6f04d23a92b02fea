"""Reads and edits the files of one of Chroma's vector indexes, which Chroma does not have open.

`data_level0.bin` has a place for each chunk ever added: its links, its vector and its label. A
deletion only marks the place. `index_metadata.pickle` has the label of each chunk that is left.

Statements about Chroma apply to chromadb 1.5.9, on a machine with little-endian numbers.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Any, Final, Self

__all__ = ["IndexHeader", "clear_unused", "clear_vectors"]

_HEADER: Final = Struct("<iQQQQQQ")
_HEADER_VERSION: Final = 1
_LABEL_BYTES: Final = 8
_CLEARED_AT_ONCE: Final = 2**20


@dataclass(frozen=True, slots=True)
class IndexHeader:
    """What `header.bin` says of the places in `data_level0.bin`.

    Attributes:
        places: The number of places in use, those of deleted chunks as well.
        width: The bytes of one place.
        label: The position of the label in a place.
        vector: The position of the vector, which ends where the label begins.
    """

    places: int
    width: int
    label: int
    vector: int

    @classmethod
    def read(cls, index: Path) -> Self | None:
        """Read the header of an index.

        Returns:
            None if the index was never written, or has an unknown format.
        """
        try:
            header = (index / "header.bin").read_bytes()
        except FileNotFoundError:
            return None
        if len(header) < _HEADER.size:
            return None
        version, start, _, places, width, label, vector = _HEADER.unpack_from(header)
        found = cls(places, width, label, vector)
        fits = vector < label and label + _LABEL_BYTES == width
        return found if fits and (version, start) == (_HEADER_VERSION, 0) else None


def clear_vectors(index: Path, kept: Collection[str]) -> bool:
    """Overwrite the vectors of all chunks but some with zeros, in place.

    The marks and the links of a deleted chunk stay, so Chroma needs no other change. An interrupted
    call leaves a valid index.

    Args:
        index: The folder of the index. Chroma must not have it open: it would write the vectors
            that it has in memory.
        kept: The ids of chunks that keep their vectors.

    Returns:
        False if the format of the files is unknown. Then nothing was changed.

    Raises:
        OSError: If files cannot be read or written.
    """
    import numpy as np

    header = IndexHeader.read(index)
    clear_unused(index)
    if header is not None and not header.places:
        return True  # as Chroma creates it; the vectors are in its log
    labels = _labels(index / "index_metadata.pickle")
    file = index / "data_level0.bin"
    if header is None or labels is None or file.stat().st_size < header.places * header.width:
        return False
    data = np.memmap(file, np.uint8, "r+", shape=(header.places, header.width))
    held = np.ascontiguousarray(data[:, header.label :]).view("<u8")[:, 0]
    wanted = [label for chunk_id, label in labels.items() if chunk_id in kept]
    for place in np.flatnonzero(~np.isin(held, np.array(wanted, np.uint64))):
        data[place, header.vector : header.label] = 0
    data.flush()
    return True


def clear_unused(index: Path) -> None:
    """Overwrite the part of `data_level0.bin` that has no place of a chunk.

    Chroma writes memory there that it has not initialised. It may hold anything, texts too. It does
    not read it, so Chroma may have the index open.

    Args:
        index: The folder of the index. One of unknown format is left as it is.

    Raises:
        OSError: If the file cannot be written.
    """
    header = IndexHeader.read(index)
    file = index / "data_level0.bin"
    if header is None or not file.exists():
        return
    with file.open("r+b") as opened:
        opened.seek(header.places * header.width)
        while part := opened.read(_CLEARED_AT_ONCE):
            if any(part):
                opened.seek(-len(part), os.SEEK_CUR)
                opened.write(bytes(len(part)))
        opened.flush()
        os.fsync(opened.fileno())


class _PlainUnpickler(pickle.Unpickler):
    """Reads dictionaries, strings and numbers, and nothing that would run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"unexpected {module}.{name}")


def _labels(file: Path) -> dict[str, int] | None:
    """Return the label of each chunk in an index; None if the file has another form."""
    try:
        with file.open("rb") as opened:
            metadata = _PlainUnpickler(opened).load()
        labels = metadata["id_to_label"]
    except (FileNotFoundError, pickle.UnpicklingError, EOFError, KeyError, TypeError):
        return None
    return labels if isinstance(labels, dict) else None

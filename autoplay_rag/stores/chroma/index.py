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
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["PLACES", "IndexHeader", "clear_unused", "clear_vectors", "restore_places"]

PLACES: Final = "data_level0.bin"
"""The name of the file with a place for each chunk."""

_HEADER: Final = Struct("<iQQQQQQ")
_HEADER_VERSION: Final = 1
_LABEL_BYTES: Final = 8
_LENGTHS: Final = "length.bin"
"""The name of the file with the length of each place's vector."""
_LENGTH_BYTES: Final = 4
_CLEARED_AT_ONCE: Final = 2**20
_RESTORED_AT_ONCE: Final = 2**16
_MARK: Final = 2
"""The position in a place of the byte that marks a deleted chunk. The number of links precedes it."""
_LINKS: Final = 4
"""The position of the links, each the number of a place in four bytes."""


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
    labels = _labels(index)
    if header is None or labels is None or (data := _mapped(index, header)) is None:
        return False
    held = _labels_of(data, header)
    wanted = [label for chunk_id, label in labels.items() if chunk_id in kept]
    for place in np.flatnonzero(~np.isin(held, np.array(wanted, np.uint64))):
        data[place, header.vector : header.label] = 0
    data.flush()
    return True


def _mapped(index: Path, header: IndexHeader) -> np.memmap[Any, np.dtype[np.uint8]] | None:
    """Return the places in use, to be changed in place; None if the file is too short for them."""
    import numpy as np

    file = index / PLACES
    if file.stat().st_size < header.places * header.width:
        return None
    return np.memmap(file, np.uint8, "r+", shape=(header.places, header.width))


def _labels_of(data: NDArray[np.uint8], header: IndexHeader) -> NDArray[np.uint64]:
    """Return the label in each place."""
    import numpy as np

    return np.ascontiguousarray(data[:, header.label :]).view("<u8")[:, 0].astype(np.uint64)


def clear_unused(index: Path) -> None:
    """Overwrite the parts of the files that belong to no chunk.

    Chroma writes memory there that it has not initialised. It may hold anything, texts too. It does
    not read it, so Chroma may have the index open.

    Args:
        index: The folder of the index. One of unknown format is left as it is.

    Raises:
        OSError: If a file cannot be written.
    """
    header = IndexHeader.read(index)
    if header is None:
        return
    _clear_from(index / PLACES, header.places * header.width)
    _clear_from(index / _LENGTHS, header.places * _LENGTH_BYTES)


def _clear_from(file: Path, position: int) -> None:
    """Overwrite a file with zeros from a position on, if it exists."""
    if not file.exists():
        return
    with file.open("r+b") as opened:
        opened.seek(position)
        cleared = False
        while part := opened.read(_CLEARED_AT_ONCE):
            if part.strip(b"\0"):
                opened.seek(-len(part), os.SEEK_CUR)
                opened.write(bytes(len(part)))
                cleared = True
        if cleared:
            opened.flush()
            os.fsync(opened.fileno())


def restore_places(index: Path) -> None:
    """Make `data_level0.bin` fit the older other files of an index, in place.

    Links to later places are removed, and the deletion marks become those of the labels in
    `index_metadata.pickle`. Chroma connects the later chunks again when it applies its log. An
    interrupted call can be repeated.

    Args:
        index: The folder of the index. Chroma must not have it open.

    Raises:
        OSError: If files cannot be read or written.
        ValueError: If their format is unknown.
    """
    import numpy as np

    header = IndexHeader.read(index)
    labels = _labels(index)
    if labels == {}:
        return  # Chroma begins such an index anew, with empty files
    if header is None or labels is None or (data := _mapped(index, header)) is None:
        raise ValueError(f"the index in {index} cannot be restored: its files have an unknown form")
    live = np.fromiter(labels.values(), np.uint64, len(labels))
    for start in range(0, header.places, _RESTORED_AT_ONCE):
        places = data[start : start + _RESTORED_AT_ONCE]
        places[:, _MARK] = ~np.isin(_labels_of(places, header), live)
        _cut_links(places[:, : header.vector], header.places)
    data.flush()


def _cut_links(places: NDArray[np.uint8], end: int) -> None:
    """Remove links to places from `end` on."""
    import numpy as np

    counts = places[:, :_MARK].view("<u2")[:, 0]
    links = places[:, _LINKS:].view("<u4")
    wrong = (links >= end) & (np.arange(links.shape[1]) < counts[:, None])
    for row in np.flatnonzero(wrong.any(axis=1)):
        kept = [link for link in links[row, : counts[row]] if link < end]
        links[row] = 0
        links[row, : len(kept)] = kept
        counts[row] = len(kept)


class _PlainUnpickler(pickle.Unpickler):
    """Reads dictionaries, strings and numbers, and nothing that would run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"unexpected {module}.{name}")


def _labels(index: Path) -> dict[str, int] | None:
    """Return the label of each chunk in an index; None if the file has another form."""
    try:
        with (index / "index_metadata.pickle").open("rb") as opened:
            metadata = _PlainUnpickler(opened).load()
        labels = metadata["id_to_label"]
    except (FileNotFoundError, pickle.UnpicklingError, EOFError, KeyError, TypeError):
        return None
    return labels if isinstance(labels, dict) else None

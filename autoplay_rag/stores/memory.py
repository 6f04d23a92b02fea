"""A store in memory: for notebooks, for tests, and for what need not outlive the process."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from itertools import islice, starmap
from typing import TYPE_CHECKING

from autoplay_rag.errors import MissingExtraError, StoreMismatchError, StoreRejectedError
from autoplay_rag.stores.base import Chunk, Filter, Match, Vector, VectorStore
from autoplay_rag.stores.rows import Rows, pack, pack_vector
from autoplay_rag.stores.serial import SerialThread

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["MemoryStore"]

_FIRST_CAPACITY = 256


class MemoryStore(VectorStore):
    """Keeps chunks in memory and searches all of them, exactly, by cosine similarity.

    A chunk takes 4 bytes for each dimension beside its text and metadata. Closing the store
    keeps what it holds: a notebook can go on searching after its pipeline has ended.

    Raises:
        MissingExtraError: If NumPy is not installed.

    Example:
        >>> import asyncio
        >>> async def main():
        ...     store = MemoryStore()
        ...     await store.start("example-model")
        ...     await store.upsert([Chunk("c1", "Opened billing", {})], [[0.6, 0.8]])
        ...     return await store.query([0.6, 0.8], k=1, filter=Filter())
        >>> asyncio.run(main())[0].id
        'c1'
    """

    def __init__(self) -> None:
        if find_spec("numpy") is None:
            raise MissingExtraError("MemoryStore", "local")
        self._thread = SerialThread("autoplay-memory-store")
        self._table = _Table()

    def __repr__(self) -> str:
        return f"<MemoryStore: {len(self._table.chunks)} chunks>"

    async def start(self, model: str) -> None:
        """Note whose vectors these are.

        Raises:
            StoreMismatchError: If the store holds vectors of another model.
        """
        await self._thread.run(self._table.adopt, model)

    async def upsert(self, chunks: Sequence[Chunk], vectors: Sequence[Vector]) -> None:
        """Store chunks, replacing those with the same id whole.

        Raises:
            StoreRejectedError: If the batch cannot be stored by any store.
            StoreMismatchError: If the store holds vectors of another dimension.
        """
        if len(chunks) or len(vectors):
            await self._thread.run(self._table.upsert, chunks, vectors)

    async def query(self, vector: Vector, k: int, filter: Filter) -> list[Match]:
        """The `k` nearest chunks that pass the filter, best first.

        Raises:
            StoreRejectedError: If `k` is less than 1, or the vector is no vector.
            StoreMismatchError: If the store holds vectors of another dimension.
        """
        return await self._thread.run(self._table.query, vector, k, filter)

    async def delete(self, ids: Sequence[str]) -> None:
        """Delete chunks; an unknown id is no error."""
        await self._thread.run(self._table.delete, ids)

    async def count(self) -> int:
        """The number of chunks stored."""
        return len(self._table.chunks)


class _Table:
    """Unit vectors as the first rows of a matrix that grows by doubling.

    A deleted row is overwritten by the last one, so rows stay dense and neither storing nor
    deleting ever moves more than a row (but for the doubling).
    """

    def __init__(self) -> None:
        self.model: str | None = None
        self.chunks: list[Chunk] = []
        self._row_of: dict[str, int] = {}
        self._matrix: NDArray[np.float32] | None = None

    def adopt(self, model: str) -> None:
        if self.chunks and self.model not in (None, model):
            raise StoreMismatchError(
                f"this MemoryStore holds {len(self.chunks)} vectors of the model {self.model!r}, "
                f"but {model!r} was asked for; use one MemoryStore for each model"
            )
        self.model = model

    def upsert(self, chunks: Sequence[Chunk], vectors: Sequence[Vector]) -> None:
        rows = pack(chunks, vectors)
        matrix = self._room_for(rows)
        parts = zip(rows.ids, rows.texts, rows.metadatas, strict=True)
        for chunk, vector in zip(starmap(Chunk, parts), _unit_rows(rows), strict=True):
            row = self._row_of.setdefault(chunk.id, len(self.chunks))
            if row == len(self.chunks):
                self.chunks.append(chunk)
            else:
                self.chunks[row] = chunk
            matrix[row] = vector

    def query(self, vector: Vector, k: int, filter: Filter) -> list[Match]:
        import numpy as np

        question = pack_vector(vector, "the question")
        if k < 1:
            raise StoreRejectedError(f"k is {k}; a search asks for at least 1 hit")
        if self._matrix is None or not self.chunks:
            return []
        unit = _unit(np.frombuffer(question, np.float32))
        self._check_dimension(len(unit))
        scores = self._matrix[: len(self.chunks)] @ unit
        # Walking down the ranking tests no more chunks against the filter than it takes.
        ranking = np.argsort(-scores, kind="stable").tolist()
        passing = (row for row in ranking if filter.matches(self.chunks[row].metadata))
        return [
            Match(chunk.id, chunk.text, float(scores[row]), dict(chunk.metadata))
            for row in islice(passing, k)
            for chunk in (self.chunks[row],)
        ]

    def delete(self, ids: Sequence[str]) -> None:
        for chunk_id in ids:
            row = self._row_of.pop(chunk_id, None)
            if row is None:
                continue
            last = self.chunks.pop()
            if row < len(self.chunks):
                assert self._matrix is not None
                self.chunks[row] = last
                self._matrix[row] = self._matrix[len(self.chunks)]
                self._row_of[last.id] = row

    def _room_for(self, rows: Rows) -> NDArray[np.float32]:
        import numpy as np

        if self._matrix is None or not self.chunks:
            # An empty store takes any dimension.
            self._matrix = np.empty((_FIRST_CAPACITY, rows.dimension), np.float32)
        self._check_dimension(rows.dimension)
        wanted = len(self.chunks) + len(rows.ids)
        if wanted > len(self._matrix):
            grown = np.empty((max(wanted, 2 * len(self._matrix)), rows.dimension), np.float32)
            grown[: len(self.chunks)] = self._matrix[: len(self.chunks)]
            self._matrix = grown
        return self._matrix

    def _check_dimension(self, dimension: int) -> None:
        assert self._matrix is not None
        held = self._matrix.shape[1]
        if dimension != held:
            raise StoreMismatchError(
                f"this MemoryStore holds vectors of dimension {held}, but one of {dimension} came; "
                "use one MemoryStore for each model and dimension"
            )


def _unit_rows(rows: Rows) -> NDArray[np.float32]:
    import numpy as np

    return _unit(np.frombuffer(rows.vectors, np.float32).reshape(-1, rows.dimension))


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale to length 1 along the last axis; a zero vector stays as it is, similar to nothing."""
    import numpy as np

    lengths = np.linalg.norm(vectors.astype(np.float64), axis=-1, keepdims=True)
    unit: NDArray[np.float32] = (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return unit

"""A store in memory, for notebooks, tests, and data that need not outlive the process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import islice, starmap
from typing import TYPE_CHECKING, Self

from autoplay_rag._checks import check_at_least
from autoplay_rag._serial import SerialThread
from autoplay_rag.errors import MissingExtraError, StoreMismatchError, StoreRejectedError
from autoplay_rag.stores.base import (
    Changes,
    Chunk,
    Filter,
    Match,
    StoreIdentity,
    Vector,
    VectorStore,
)
from autoplay_rag.stores.rows import Rows, checked_changes, pack, pack_vector

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["MemoryStore"]

_FIRST_CAPACITY = 256
_REMEDY = (
    "start once with IngestPipeline(rebuild=True) (command: --rebuild) to embed everything again "
    "with the new model, or use the old model, or another MemoryStore"
)


class MemoryStore(VectorStore):
    """Keeps chunks in memory, and searches by exact comparison of all vectors (cosine similarity).

    A chunk takes 4 bytes per dimension, plus its text and metadata. `aclose` keeps the chunks, so a
    notebook can search after its pipeline has ended.

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

    persistent = False

    def __init__(self) -> None:
        if find_spec("numpy") is None:
            raise MissingExtraError("MemoryStore", "local")
        self._thread = SerialThread("autoplay-memory-store")
        self._table = _Table()
        self._siblings: dict[str, Self] = {}

    def __repr__(self) -> str:
        return f"<MemoryStore: {len(self._table.chunks)} chunks>"

    async def start(self, model: str) -> None:
        """Set the model of the vectors.

        Args:
            model: The name of the embedder and its settings.

        Raises:
            StoreMismatchError: If the store holds vectors of another model.
        """
        await self._thread.run(self._table.adopt, model)

    async def upsert(self, chunks: Sequence[Chunk], vectors: Sequence[Vector]) -> None:
        """Store chunks. A chunk with a known id replaces text, metadata and vector of the old one.

        Args:
            chunks: Any number.
            vectors: One for each chunk, all of the same dimension.

        Raises:
            StoreRejectedError: If the batch is invalid (see `pack`).
            StoreMismatchError: If the store holds vectors of another dimension.
        """
        if len(chunks) or len(vectors):
            await self._thread.run(self._table.upsert, chunks, vectors)

    async def query(self, vector: Vector, k: int, filter: Filter) -> list[Match]:
        """Return the `k` nearest chunks that pass the filter, best first.

        Args:
            vector: The vector of the question, with the stored dimension.
            k: The most matches; at least 1.
            filter: The filter on the chunks.

        Raises:
            StoreRejectedError: If `k` is less than 1, or the vector is invalid.
            StoreMismatchError: If the store holds vectors of another dimension.
        """
        return await self._thread.run(self._table.query, vector, k, filter)

    async def count(self) -> int:
        """Return the number of stored chunks."""
        return len(self._table.chunks)

    async def delete(self, ids: Sequence[str]) -> None:
        """Delete chunks. An unknown id is not an error."""
        await self._thread.run(self._table.delete, ids)

    async def get(self, ids: Sequence[str]) -> list[Chunk]:
        """Return the chunks with these ids. Unknown ids are left out."""
        return await self._thread.run(self._table.get, ids)

    async def scan(self, page: int = 500) -> AsyncIterator[list[Chunk]]:
        """Yield all chunks stored when the scan starts, in pages, except those deleted during it.

        Args:
            page: The most chunks in one page.

        Raises:
            ConfigurationError: If `page` is less than 1.
        """
        check_at_least("page", page, 1, whole=True)
        # Deletions move rows, so the scan goes by ids.
        ids = await self._thread.run(self._table.ids)
        for start in range(0, len(ids), page):
            if chunks := await self.get(ids[start : start + page]):
                yield chunks

    async def update_metadata(self, changes: Mapping[str, Changes]) -> None:
        """Change metadata without touching text and vector.

        Args:
            changes: For each chunk id the keys to set; None removes a key. Other keys stay. An
                unknown id is not an error.

        Raises:
            StoreRejectedError: If a key or a value is invalid.
        """
        await self._thread.run(self._table.update_metadata, changes)

    def sibling(self, name: str) -> Self:
        """Return another store in memory. The same name returns the same object.

        Example:
            >>> store = MemoryStore()
            >>> store.sibling("large") is store.sibling("large")
            True
        """
        if name not in self._siblings:
            self._siblings[name] = type(self)()
        return self._siblings[name]

    async def drop(self) -> None:
        """Delete all chunks, the identity and the model. Siblings stay."""
        await self._thread.run(self._table.clear)

    async def identity(self) -> StoreIdentity | None:
        """Return the identity saved by `save_identity`; None if there is none."""
        return self._table.identity

    async def save_identity(self, identity: StoreIdentity) -> None:
        """Save an identity. It lives as long as this object."""
        await self._thread.run(setattr, self._table, "identity", identity)


class _Table:
    """Chunks, and their unit vectors in a matrix that grows by doubling.

    A deleted row is overwritten by the last row, so the rows stay dense. Each deleted chunk moves at
    most one row.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.model: str | None = None
        self.identity: StoreIdentity | None = None
        self.chunks: list[Chunk] = []
        self._row_of: dict[str, int] = {}
        self._matrix: NDArray[np.float32] | None = None

    def adopt(self, model: str) -> None:
        if self.chunks and self.model not in (None, model):
            raise StoreMismatchError(
                f"this MemoryStore holds {len(self.chunks)} vectors of the model {self.model!r}, "
                f"but {model!r} was asked for; {_REMEDY}"
            )
        self.model = model

    def upsert(self, chunks: Sequence[Chunk], vectors: Sequence[Vector]) -> None:
        rows = pack(chunks, vectors)
        matrix = self._matrix_for(rows)
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
            raise StoreRejectedError(f"k is {k}; it must be at least 1")
        if self._matrix is None or not self.chunks:
            return []
        unit = _unit(np.frombuffer(question, np.float32))
        self._check_dimension(len(unit))
        scores = self._matrix[: len(self.chunks)] @ unit
        # Filtering in the order of the ranking stops after `k` matches.
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

    def ids(self) -> list[str]:
        return [chunk.id for chunk in self.chunks]

    def get(self, ids: Sequence[str]) -> list[Chunk]:
        rows = map(self._row_of.get, dict.fromkeys(ids))
        found = [self.chunks[row] for row in rows if row is not None]
        return [Chunk(chunk.id, chunk.text, dict(chunk.metadata)) for chunk in found]

    def update_metadata(self, changes: Mapping[str, Changes]) -> None:
        for chunk_id, wanted in checked_changes(changes).items():
            row = self._row_of.get(chunk_id)
            if row is None:
                continue
            chunk = self.chunks[row]
            merged = {**chunk.metadata, **wanted}
            metadata = {key: value for key, value in merged.items() if value is not None}
            self.chunks[row] = Chunk(chunk.id, chunk.text, metadata)

    def _matrix_for(self, rows: Rows) -> NDArray[np.float32]:
        import numpy as np

        if self._matrix is None or not self.chunks:
            # An empty store accepts any dimension.
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
                f"this MemoryStore holds vectors of dimension {held}, but was given one of dimension "
                f"{dimension}; {_REMEDY}"
            )


def _unit_rows(rows: Rows) -> NDArray[np.float32]:
    import numpy as np

    return _unit(np.frombuffer(rows.vectors, np.float32).reshape(-1, rows.dimension))


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale vectors to length 1. A zero vector stays zero, so its similarity to any vector is 0."""
    import numpy as np

    lengths = np.linalg.norm(vectors.astype(np.float64), axis=-1, keepdims=True)
    unit: NDArray[np.float32] = (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return unit

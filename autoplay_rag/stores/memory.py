"""A store in memory, for notebooks, tests, and data that need not outlive the process."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from importlib.util import find_spec
from itertools import islice, starmap
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Self, TypeVar

from autoplay_rag._checks import check_at_least
from autoplay_rag._serial import SerialThread
from autoplay_rag.errors import MissingExtraError, StoreMismatchError, StoreRejectedError
from autoplay_rag.stores.base import (
    Changes,
    Chunk,
    Filter,
    Match,
    Metadata,
    StoreIdentity,
    Vector,
    VectorStore,
)
from autoplay_rag.stores.rows import Rows, checked_changes, pack, pack_vector

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["MemoryStore"]

P = ParamSpec("P")
T = TypeVar("T")

_FIRST_CAPACITY = 256
_EQUAL_KEYS = {
    name: row
    for row, name in enumerate(("session_id", "user_id", "product_id", "conversation_id", "kind"))
}
"""The metadata keys that a `Filter` compares for equality, and their rows in `_Columns`."""
_TIME_KEYS = {"started_at": 0, "ended_at": 1}
_GATHER = 8
"""If at most one in this many rows is a candidate, only the vectors of candidates are compared."""
_REMEDY = (
    "start once with IngestPipeline(rebuild=True) (command: --rebuild) to embed everything again "
    "with the new model, or use the old model, or another MemoryStore"
)


class MemoryStore(VectorStore):
    """Keeps chunks in memory, and searches by exact comparison of all vectors (cosine similarity).

    A chunk takes 4 bytes per dimension and 56 bytes for filters, plus its text and metadata.
    `aclose` keeps the chunks, so a notebook can search after its pipeline has ended.

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
        self._model: str | None = None
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
        await self._thread.run(self._start, model)

    async def erase(self) -> bool:
        """There are no files, so nothing remains of deleted chunks."""
        return True

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
            await self._run(_Table.upsert, chunks, vectors)

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
        return await self._run(_Table.query, vector, k, filter)

    async def score(self, vector: Vector, ids: Sequence[str]) -> dict[str, float]:
        """Return the cosine similarity of stored vectors, by chunk id. Unknown ids are left out.

        Args:
            vector: The question, of the same dimension as the stored vectors.
            ids: Ids of chunks.

        Raises:
            StoreRejectedError: If the vector is invalid.
            StoreMismatchError: If the store holds vectors of another dimension.
        """
        return await self._run(_Table.score, vector, ids)

    async def count(self) -> int:
        """Return the number of stored chunks."""
        return len(self._table.chunks)

    async def delete(self, ids: Sequence[str]) -> None:
        """Delete chunks. An unknown id is not an error."""
        await self._run(_Table.delete, ids)

    async def get(self, ids: Sequence[str]) -> list[Chunk]:
        """Return the chunks with these ids. Unknown ids are left out."""
        return await self._run(_Table.get, ids)

    async def scan(self, page: int = 500) -> AsyncIterator[list[Chunk]]:
        """Yield all chunks stored when the scan starts, in pages, except those deleted during it.

        Args:
            page: The most chunks in one page.

        Raises:
            ConfigurationError: If `page` is less than 1.
        """
        check_at_least("page", page, 1, whole=True)
        # Deletions move rows, so the scan goes by ids.
        ids = await self._run(_Table.ids)
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
        await self._run(_Table.update_metadata, changes)

    def sibling(self, name: str) -> Self:
        """Return another store in memory. The same name returns the same object.

        Example:
            >>> store = MemoryStore()
            >>> store.sibling("large") is store.sibling("large")
            True
        """
        if name not in self._siblings:
            sibling = self._siblings[name] = type(self)()
            # With one thread, no call of either is under way while they are exchanged.
            sibling._thread = self._thread  # noqa: SLF001 - of the same class
        return self._siblings[name]

    async def exchange(self, name: str) -> None:
        """Exchange all that this store and its sibling of this name hold.

        Their calls raise `StoreMismatchError` until `start` was called with the model of the new
        content, unless the store has that model already.
        """
        await self._thread.run(self._exchange, self.sibling(name))

    async def drop(self) -> None:
        """Delete all chunks, the identity and the model. Siblings stay."""
        await self._thread.run(self._clear)

    async def identity(self) -> StoreIdentity | None:
        """Return the identity saved by `save_identity`; None if there is none."""
        return self._table.identity

    async def save_identity(self, identity: StoreIdentity) -> None:
        """Save an identity. It lives as long as this object."""
        await self._run(_Table.save_identity, identity)

    async def is_own(self) -> bool:
        """True: a store in memory holds only what a pipeline stored."""
        return True

    async def _run(
        self, work: Callable[Concatenate[_Table, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call a method of the table, unless it holds vectors of another model since `exchange`."""

        def on_table() -> T:
            if self._model is not None:
                self._table.adopt(self._model)
            return work(self._table, *args, **kwargs)

        return await self._thread.run(on_table)

    def _start(self, model: str) -> None:
        self._table.adopt(model)
        self._model = model

    def _exchange(self, other: Self) -> None:
        self._table, other._table = other._table, self._table

    def _clear(self) -> None:
        self._table.clear()
        self._model = None


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
        self._columns: _Columns | None = None

    def save_identity(self, identity: StoreIdentity) -> None:
        self.identity = identity

    def adopt(self, model: str) -> None:
        if self.chunks and self.model not in (None, model):
            raise StoreMismatchError(
                f"this MemoryStore holds {len(self.chunks)} vectors of the model {self.model!r}, "
                f"but {model!r} was asked for; {_REMEDY}"
            )
        self.model = model

    def upsert(self, chunks: Sequence[Chunk], vectors: Sequence[Vector]) -> None:
        rows = pack(chunks, vectors)
        matrix, columns = self._make_space(rows)
        parts = zip(rows.ids, rows.texts, rows.metadatas, strict=True)
        for chunk, vector in zip(starmap(Chunk, parts), _unit_rows(rows), strict=True):
            row = self._row_of.setdefault(chunk.id, len(self.chunks))
            if row == len(self.chunks):
                self.chunks.append(chunk)
            else:
                self.chunks[row] = chunk
            matrix[row] = vector
            columns.put(row, chunk.metadata)

    def query(self, vector: Vector, k: int, filter: Filter) -> list[Match]:
        import numpy as np

        question = pack_vector(vector, "the question")
        if k < 1:
            raise StoreRejectedError(f"k is {k}; it must be at least 1")
        if self._matrix is None or self._columns is None or not self.chunks:
            return []
        unit = self._unit_question(question)
        rows = self._columns.candidates(filter, len(self.chunks))
        if rows is None or len(rows) * _GATHER > len(self.chunks):
            scores = self._matrix[: len(self.chunks)] @ unit
            scores = scores if rows is None else scores[rows]
        else:
            scores = self._matrix[rows] @ unit
        if rows is None:
            rows = np.arange(len(self.chunks))
        found = self._passing(_best(scores, k), rows, filter, k)
        if len(found) < min(k, len(rows)):
            # Candidates may fail the filter itself. Then all candidates are tested in order.
            found = self._passing(np.argsort(-scores, kind="stable"), rows, filter, k)
        return [
            Match(chunk.id, chunk.text, float(scores[at]), dict(chunk.metadata))
            for at in found
            for chunk in (self.chunks[rows[at]],)
        ]

    def _passing(
        self, ranking: NDArray[np.intp], rows: NDArray[np.intp], filter: Filter, k: int
    ) -> list[int]:
        passing = (at for at in ranking.tolist() if filter.matches(self.chunks[rows[at]].metadata))
        return list(islice(passing, k))

    def score(self, vector: Vector, ids: Sequence[str]) -> dict[str, float]:
        question = pack_vector(vector, "the question")
        if self._matrix is None or not self.chunks:
            return {}
        unit = self._unit_question(question)
        known = {
            chunk_id: row for chunk_id in ids if (row := self._row_of.get(chunk_id)) is not None
        }
        scores = self._matrix[list(known.values())] @ unit
        return dict(zip(known, scores.tolist(), strict=True))

    def delete(self, ids: Sequence[str]) -> None:
        for chunk_id in ids:
            row = self._row_of.pop(chunk_id, None)
            if row is None:
                continue
            last = self.chunks.pop()
            if row < len(self.chunks):
                assert self._matrix is not None
                assert self._columns is not None
                self.chunks[row] = last
                self._matrix[row] = self._matrix[len(self.chunks)]
                self._columns.put(row, last.metadata)
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
            assert self._columns is not None
            self._columns.put(row, metadata)

    def _make_space(self, rows: Rows) -> tuple[NDArray[np.float32], _Columns]:
        import numpy as np

        if self._matrix is None or self._columns is None or not self.chunks:
            # An empty store accepts any dimension.
            self._matrix = np.empty((_FIRST_CAPACITY, rows.dimension), np.float32)
            self._columns = _Columns(_FIRST_CAPACITY)
        self._check_dimension(rows.dimension)
        wanted = len(self.chunks) + len(rows.ids)
        if wanted > len(self._matrix):
            capacity = max(wanted, 2 * len(self._matrix))
            grown = np.empty((capacity, rows.dimension), np.float32)
            grown[: len(self.chunks)] = self._matrix[: len(self.chunks)]
            self._matrix = grown
            self._columns.grow(capacity)
        return self._matrix, self._columns

    def _unit_question(self, question: bytes) -> NDArray[np.float32]:
        import numpy as np

        unit = _unit(np.frombuffer(question, np.float32))
        self._check_dimension(len(unit))
        return unit

    def _check_dimension(self, dimension: int) -> None:
        assert self._matrix is not None
        held = self._matrix.shape[1]
        if dimension != held:
            raise StoreMismatchError(
                f"this MemoryStore holds vectors of dimension {held}, but was given one of dimension "
                f"{dimension}; {_REMEDY}"
            )


class _Columns:
    """The metadata that filters compare, by row: hashes of names, and times.

    A hash takes 8 bytes, and needs no table of names. Rows with equal hashes are only candidates,
    and the caller must apply the filter itself.

    Args:
        capacity: The number of rows.
    """

    def __init__(self, capacity: int) -> None:
        import numpy as np

        self._hashes: NDArray[np.int64] = np.zeros((len(_EQUAL_KEYS), capacity), np.int64)
        self._times: NDArray[np.float64] = np.full((len(_TIME_KEYS), capacity), np.nan)

    def grow(self, capacity: int) -> None:
        """Add capacity; existing rows stay."""
        grown = _Columns(capacity)
        held = self._hashes.shape[1]
        grown._hashes[:, :held] = self._hashes
        grown._times[:, :held] = self._times
        self._hashes, self._times = grown._hashes, grown._times

    def put(self, row: int, metadata: Metadata) -> None:
        """Replace one row."""
        self._hashes[:, row] = [hash(metadata.get(key)) for key in _EQUAL_KEYS]
        self._times[:, row] = [_time(metadata.get(key)) for key in _TIME_KEYS]

    def candidates(self, filter: Filter, count: int) -> NDArray[np.intp] | None:
        """Return those of the first `count` rows that may pass, in order; None if all may."""
        import numpy as np

        passing: NDArray[np.bool_] | None = None
        # A user's own subclass may compare with anything.
        conditions: list[tuple[str, str, object]] = list(filter.conditions())
        for key, comparison, value in conditions:
            if not isinstance(value, str | float | int):
                continue
            if comparison == "==" and key in _EQUAL_KEYS:
                holds = self._hashes[_EQUAL_KEYS[key], :count] == hash(value)
            elif comparison in (">=", "<=") and key in _TIME_KEYS and not isinstance(value, str):
                times = self._times[_TIME_KEYS[key], :count]
                holds = times >= value if comparison == ">=" else times <= value
            else:
                continue
            passing = holds if passing is None else passing & holds
        return None if passing is None else np.flatnonzero(passing)


def _time(value: object) -> float:
    """Return a number as a float, and NaN for anything else. Comparisons with NaN are false."""
    return float(value) if isinstance(value, int | float) else math.nan


def _best(scores: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Return the positions of the `k` highest scores, and of ties with the last, best first."""
    import numpy as np

    if k >= len(scores):
        return np.argsort(-scores, kind="stable")
    least = np.partition(scores, len(scores) - k)[len(scores) - k]
    positions = np.flatnonzero(scores >= least)
    return positions[np.argsort(-scores[positions], kind="stable")]


def _unit_rows(rows: Rows) -> NDArray[np.float32]:
    import numpy as np

    return _unit(np.frombuffer(rows.vectors, np.float32).reshape(-1, rows.dimension))


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale vectors to length 1. A zero vector stays zero, so its similarity to any vector is 0."""
    import numpy as np

    lengths = np.linalg.norm(vectors.astype(np.float64), axis=-1, keepdims=True)
    unit: NDArray[np.float32] = (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return unit

"""Chroma as a vector store: embedded, on disk, in a worker process of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from autoplay_rag.errors import MissingExtraError, StoreRejectedError, UnsupportedFilterError
from autoplay_rag.stores.base import Chunk, Filter, Match, Vector, VectorStore
from autoplay_rag.stores.chroma_frames import (
    Count,
    Delete,
    Done,
    Found,
    Open,
    Query,
    Request,
    Upsert,
)
from autoplay_rag.stores.chroma_shared import SharedWorker
from autoplay_rag.stores.rows import pack, pack_vector

__all__ = ["ChromaStore"]

_OPERATORS = {"==": "$eq", ">=": "$gte", "<=": "$lte"}


class ChromaStore(VectorStore):
    """Keeps chunks in a Chroma folder on this machine.

    Chroma runs in a process of its own, which starts with the first call (some seconds, most of
    them to import it), is started anew after it died, and ends with `aclose` or with this
    process, however that ends. Stores of one process may share a folder. Another process may
    not, until the store is closed; then any Chroma client can open the folder.

    Killed in the middle of writing its index, Chroma would refuse the collection from then on; the
    index is put back from a copy that is kept beside it, and nothing that was stored is missing.
    Where the disk is nearly full, a write raises `StoreUnavailableError` before Chroma begins.

    Vectors are compared by cosine. Nothing is fetched from or sent to a network.

    Args:
        path: The folder; it is made if need be.
        collection: The name of the collection; 3 to 512 of `a-zA-Z0-9._-`.
        timeout: Seconds a call may take in the worker before the worker counts as stuck, is
            ended, and the call raises `StoreUnavailableError`.

    Raises:
        MissingExtraError: If chromadb is not installed.

    Example:
        >>> import asyncio, tempfile
        >>> async def main(folder):
        ...     store = ChromaStore(folder)
        ...     await store.start("example-model")
        ...     await store.upsert([Chunk("c1", "Opened billing", {})], [[0.6, 0.8]])
        ...     hits = await store.query([0.6, 0.8], k=1, filter=Filter())
        ...     await store.aclose()
        ...     return hits
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     asyncio.run(main(folder))[0].id
        'c1'
    """

    # Chroma takes more, but no faster, and a search would wait behind it.
    max_batch = 500

    def __init__(
        self,
        path: str | os.PathLike[str],
        collection: str = "autoplay",
        *,
        timeout: float = 60.0,
    ) -> None:
        if not (find_spec("chromadb") and find_spec("numpy")):
            raise MissingExtraError("ChromaStore", "chroma")
        self._folder = Path(path).expanduser().resolve()
        self._collection = collection
        self._timeout = timeout
        self._model: str | None = None
        self._worker: SharedWorker | None = None

    def __repr__(self) -> str:
        return f"<ChromaStore: collection {self._collection!r} in {self._folder}>"

    async def start(self, model: str) -> None:
        """Start the worker, and make the collection if there is none.

        Raises:
            StoreLockedError: If another process uses the folder.
            StoreMismatchError: If the collection holds vectors of another model, or compares
                them otherwise than by cosine.
            StoreUnavailableError: If Chroma cannot open the folder.
        """
        await self._ask(partial(Open, **self._to(model)))
        self._model = model

    async def upsert(self, chunks: Sequence[Chunk], vectors: Sequence[Vector]) -> None:
        """Store chunks, replacing those with the same id whole.

        Raises:
            StoreRejectedError: If Chroma will never take the batch.
            StoreMismatchError: If the collection holds vectors of another dimension.
            StoreUnavailableError: If it may pass later.
        """
        for start in range(0, max(len(chunks), len(vectors)), self.max_batch):
            part = slice(start, start + self.max_batch)
            await self._ask(partial(self._upsert, chunks[part], vectors[part]))

    async def query(self, vector: Vector, k: int, filter: Filter) -> list[Match]:
        """The `k` nearest chunks that pass the filter, best first.

        Raises:
            StoreRejectedError: If `k` is less than 1, or the vector is no vector.
            StoreMismatchError: If the collection holds vectors of another dimension.
            StoreUnavailableError: If it may pass later.
            UnsupportedFilterError: If Chroma has no such comparison.
        """
        found = await self._ask(partial(self._query, vector, k, filter))
        assert isinstance(found, Found)
        return [Match(*hit) for hit in found.hits]

    async def delete(self, ids: Sequence[str]) -> None:
        """Delete chunks; an unknown id is no error.

        Raises:
            StoreUnavailableError: If it may pass later.
        """
        for start in range(0, len(ids), self.max_batch):
            part = list(ids[start : start + self.max_batch])
            await self._ask(partial(Delete, **self._to(self._model), ids=part))

    async def count(self) -> int:
        """The number of chunks stored.

        Raises:
            StoreUnavailableError: If it may pass later.
        """
        done = await self._ask(partial(Count, **self._to(self._model)))
        assert isinstance(done, Done)
        return done.count

    async def aclose(self) -> None:
        """Let go of the worker; it ends with the last store that uses it. A later call starts it."""
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.release()

    async def _ask(self, make_request: Callable[[], Request]) -> Done | Found:
        if self._worker is None:
            self._worker = SharedWorker.acquire(self._folder)
        return await self._worker.ask(make_request)

    def _to(self, model: str | None) -> dict[str, Any]:
        return {"collection": self._collection, "model": model, "timeout": self._timeout}

    def _upsert(self, chunks: Sequence[Chunk], vectors: Sequence[Vector]) -> Upsert:
        rows = pack(chunks, vectors)
        return Upsert(
            **self._to(self._model),
            ids=rows.ids,
            texts=rows.texts,
            metadatas=rows.metadatas,
            vectors=rows.vectors,
            dimension=rows.dimension,
        )

    def _query(self, vector: Vector, k: int, filter: Filter) -> Query:
        if k < 1:
            raise StoreRejectedError(f"k is {k}; a search asks for at least 1 hit")
        return Query(
            **self._to(self._model),
            vector=pack_vector(vector, "the question"),
            k=k,
            where=where_of(filter),
        )


def where_of(filter: Filter) -> dict[str, Any] | None:
    """A filter in Chroma's form; None where nothing is asked.

    Raises:
        UnsupportedFilterError: If Chroma has no such comparison.

    Example:
        >>> where_of(Filter(user_id="u1", since=100.0))
        {'$and': [{'user_id': {'$eq': 'u1'}}, {'ended_at': {'$gte': 100.0}}]}
    """
    conditions: list[dict[str, Any]] = []
    for key, comparison, value in filter.conditions():
        operator = _OPERATORS.get(comparison)
        if operator is None or not isinstance(value, str | int | float):
            raise UnsupportedFilterError(
                f"Chroma cannot compare {key!r} by {comparison!r} with a {type(value).__name__}"
            )
        conditions.append({key: {operator: value}})
    # Chroma takes `$and` only of two or more.
    if len(conditions) > 1:
        return {"$and": conditions}
    return conditions[0] if conditions else None

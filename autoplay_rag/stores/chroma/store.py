"""`ChromaStore`: chunks in a Chroma folder on this machine."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from autoplay_rag._checks import check_at_least
from autoplay_rag.errors import MissingExtraError, StoreRejectedError, UnsupportedFilterError
from autoplay_rag.stores.base import (
    Changes,
    Chunk,
    Filter,
    Match,
    StoreIdentity,
    Vector,
    VectorStore,
)
from autoplay_rag.stores.chroma.frames import (
    Chunks,
    Clear,
    Compact,
    Copy,
    Count,
    Delete,
    Done,
    Drop,
    Erase,
    Exchange,
    Found,
    Get,
    Identity,
    Kept,
    Open,
    Query,
    Reply,
    Request,
    SaveIdentity,
    Scan,
    Score,
    Scores,
    Step,
    UpdateMetadata,
    Upsert,
)
from autoplay_rag.stores.chroma.shared import ChromaWorker, interpreter_of
from autoplay_rag.stores.rows import checked_changes, pack, pack_vector

__all__ = ["ChromaStore", "where_of"]

_OPERATORS = {"==": "$eq", ">=": "$gte", "<=": "$lte"}
_LONG_FACTOR = 60
"""The factor for the timeout of `copy_to` and `erase`, which read or write all files in one request."""
_BATCH_SIZE = 100
"""Chroma's index takes changes in parts of this size, and refuses a smaller threshold."""
_SEARCH_SECONDS = 2.0
"""How long after a search another one is expected."""
_PART_BESIDE_SEARCHES = 25
"""Chunks in one request while there are searches, which wait for it. 100 take about 100 ms of CPU, and
25 about 35."""
_SCAN_SECONDS = 0.1
"""The interval in which `compact` looks whether the last scan has ended."""


class ChromaStore(VectorStore):
    """Keeps chunks in a Chroma folder on this machine.

    Chroma runs in a worker process. The worker starts with the first call, which takes some
    seconds, mostly to import Chroma. It is restarted if it dies. It ends with `aclose` or with this
    process. Stores of one process may share a folder. Another process may use the folder only after
    the store is closed; then any Chroma client can open it.

    A kill while Chroma writes its index would make the collection unreadable. The next start
    restores the index from a copy in the folder, and no stored chunk is lost. On a nearly full disk,
    a write raises `StoreUnavailableError` before Chroma starts writing.

    Vectors are compared by cosine. Nothing is fetched from or sent to a network.

    Two stores are equal if they name the same collection of the same folder.

    Args:
        path: The folder. A missing folder is created, readable by its owner only.
        collection: The name of the collection: 3 to 512 characters of `a-zA-Z0-9._-`.
        timeout: Seconds that a call may take in the worker. After that, the worker is considered
            stuck and is killed, and the call raises `StoreUnavailableError`.
        python: The Python interpreter that runs the worker. The default is `sys.executable`, which
            is not an interpreter in a packaged application (PyInstaller) or in a program that
            embeds Python (uWSGI). There, give an interpreter that has the same version of
            `autoplay-rag[chroma]` installed. Stores of one folder share a worker; the interpreter
            of the first store applies.
        sync_threshold: Chroma writes its index whenever the index lacks this many changes. Until then
            they are in its log, all of which it reads again with each request that writes. So a
            large index is written seldom, and a small one often: by default, after 1,000 changes up
            to 60,000 chunks, after 2,000 with 250,000, and after 4,000 with a million. For that, Chroma
            opens a growing index anew at about 140,000, 320,000 and 720,000 chunks. A start adds
            the lacking changes to the index, which takes 0.5 to 1 ms for each. A number given here
            stays, and applies from the next start of the worker.

    Raises:
        ConfigurationError: If `sys.executable` is not a Python interpreter and `python` is not
            given, if `python` cannot be executed, or if this process is itself a worker.
        MissingExtraError: If chromadb is not installed.

    Example:
        >>> import asyncio, tempfile
        >>> async def main(folder):
        ...     store = ChromaStore(folder)
        ...     await store.start("example-model")
        ...     await store.upsert([Chunk("c1", "Opened billing", {})], [[0.6, 0.8]])
        ...     found = await store.query([0.6, 0.8], k=1, filter=Filter())
        ...     await store.aclose()
        ...     return found
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     asyncio.run(main(folder))[0].id
        'c1'
    """

    # Larger batches are not faster in Chroma, and a search would wait for them.
    max_batch = 500

    def __init__(
        self,
        path: str | os.PathLike[str],
        collection: str = "autoplay",
        *,
        timeout: float = 60.0,
        python: str | os.PathLike[str] | None = None,
        sync_threshold: int | None = None,
    ) -> None:
        if sync_threshold is not None:
            check_at_least("sync_threshold", sync_threshold, _BATCH_SIZE)
        self._interpreter = interpreter_of(python)
        # Another interpreter has its own packages. The worker reports a missing one.
        if python is None and not (find_spec("chromadb") and find_spec("numpy")):
            raise MissingExtraError("ChromaStore", "chroma")
        self._folder = Path(path).expanduser().resolve()
        self._collection = collection
        self._timeout = timeout
        self._sync_threshold = sync_threshold
        self._model: str | None = None
        self._worker: ChromaWorker | None = None

    def __repr__(self) -> str:
        return f"<ChromaStore: collection {self._collection!r} in {self._folder}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ChromaStore):
            return NotImplemented
        return (self._folder, self._collection) == (other._folder, other._collection)

    def __hash__(self) -> int:
        return hash((self._folder, self._collection))

    @property
    def collection(self) -> str:
        """The name of the collection."""
        return self._collection

    @property
    def data_folder(self) -> Path:
        """Chroma's folder."""
        return self._folder

    async def start(self, model: str) -> None:
        """Start the worker, and create the collection if it is missing.

        What an interrupted `drop` or `compact` left is deleted, whatever collection it was of.

        Args:
            model: The name of the embedder and its settings.

        Raises:
            ConfigurationError: If the interpreter does not run the worker.
            StoreLockedError: If another process uses the folder.
            StoreMismatchError: If the collection holds vectors of another model, or does not
                compare them by cosine.
            StoreUnavailableError: If Chroma cannot open the folder.
        """
        await self._ask(partial(Open, sync_threshold=self._sync_threshold, **self._to(model)))
        self._model = model
        await self._clear()

    async def upsert(self, chunks: Sequence[Chunk], vectors: Sequence[Vector]) -> None:
        """Store chunks. A chunk with a known id replaces text, metadata and vector of the old one.

        Args:
            chunks: Any number; one request stores at most `max_batch`.
            vectors: One for each chunk, all of the same dimension.

        Raises:
            StoreRejectedError: If the batch will never be accepted.
            StoreMismatchError: If the collection holds vectors of another dimension.
            StoreUnavailableError: If it may pass later.
        """
        start, end = 0, max(len(chunks), len(vectors))
        while start < end:
            part = slice(start, start + self._part_size())
            await self._ask(partial(self._upsert, chunks[part], vectors[part]))
            start = part.stop

    async def query(self, vector: Vector, k: int, filter: Filter) -> list[Match]:
        """Return the `k` nearest chunks that pass the filter, best first.

        The result is exact if at most 1,000 chunks pass the filter, or `k` is at least half of
        those that pass. Otherwise Chroma's index is searched, which may miss some. The result has
        fewer than `k` chunks only if fewer pass.

        Args:
            vector: The vector of the question, with the stored dimension.
            k: The most matches; at least 1.
            filter: The filter on the chunks.

        Raises:
            StoreRejectedError: If `k` is less than 1, or the vector is invalid.
            StoreMismatchError: If the collection holds vectors of another dimension.
            StoreUnavailableError: If it may pass later.
            UnsupportedFilterError: If Chroma does not support the comparison.
        """
        self._shared().searched_at = time.monotonic()
        found = await self._ask(partial(self._query, vector, k, filter))
        assert isinstance(found, Found)
        return [Match(*hit) for hit in found.hits]

    async def score(self, vector: Vector, ids: Sequence[str]) -> dict[str, float]:
        """Return the exact cosine similarity of stored vectors, by chunk id. Unknown ids are left out.

        20 ids take about 1 ms of CPU in the worker, and 1,000 ids about 30.

        Args:
            vector: The question, of the same dimension as the stored vectors.
            ids: Ids of chunks, any number. Each request takes `max_batch` of them.

        Raises:
            StoreRejectedError: If the vector is invalid.
            StoreMismatchError: If the collection holds vectors of another dimension.
            StoreUnavailableError: If the same call may succeed later.
        """
        self._shared().searched_at = time.monotonic()
        scores: dict[str, float] = {}
        packed = pack_vector(vector, "the question")
        for part in self._parts(list(dict.fromkeys(ids))):
            reply = await self._ask(
                partial(Score, **self._to(self._model), vector=packed, ids=part)
            )
            assert isinstance(reply, Scores)
            scores |= reply.scores
        return scores

    async def count(self) -> int:
        """Return the number of stored chunks.

        Raises:
            StoreUnavailableError: If it may pass later.
        """
        done = await self._ask(partial(Count, **self._to(self._model)))
        assert isinstance(done, Done)
        return done.count

    async def delete(self, ids: Sequence[str]) -> None:
        """Delete chunks. An unknown id is not an error.

        Raises:
            StoreUnavailableError: If it may pass later.
        """
        # Chroma rejects an id that occurs twice.
        for part in self._parts(list(dict.fromkeys(ids))):
            await self._ask(partial(Delete, **self._to(self._model), ids=part))

    async def get(self, ids: Sequence[str]) -> list[Chunk]:
        """Return the chunks with these ids, in any order. Unknown ids are left out.

        Raises:
            StoreUnavailableError: If it may pass later.
        """
        found: list[Chunk] = []
        # Chroma rejects a request with the same id twice.
        for part in self._parts(list(dict.fromkeys(ids))):
            reply = await self._ask(partial(Get, **self._to(self._model), ids=part))
            assert isinstance(reply, Chunks)
            found += [Chunk(*chunk) for chunk in reply.chunks]
        return found

    async def scan(self, page: int = max_batch) -> AsyncIterator[list[Chunk]]:
        """Yield all chunks, in pages, in the order in which they were first stored.

        One page is in memory at a time. A chunk that is in the store during the whole scan is
        returned once. Chunks that are stored or deleted during the scan may be missing or not.

        Args:
            page: The most chunks in one page. The limit is `max_batch`.

        Raises:
            ConfigurationError: If `page` is less than 1.
            StoreUnavailableError: If it may pass later.
        """
        check_at_least("page", page, 1, whole=True)
        after: int | None = 0
        with self._shared().scanning(self._collection):
            while after is not None:
                to = self._to(self._model)
                reply = await self._ask(
                    partial(Scan, **to, after=after, limit=min(page, self.max_batch))
                )
                assert isinstance(reply, Chunks)
                if reply.chunks:
                    yield [Chunk(*chunk) for chunk in reply.chunks]
                after = reply.after

    async def update_metadata(self, changes: Mapping[str, Changes]) -> None:
        """Change metadata without touching text and vector.

        In Chroma this takes three times as long as storing the same number of new chunks. Changes
        that are already made take only one read.

        Args:
            changes: For each chunk id the keys to set; None removes a key. Other keys stay. An
                unknown id is not an error. One request changes at most `max_batch` chunks.

        Raises:
            StoreRejectedError: If a key or a value cannot be stored.
            StoreUnavailableError: If it may pass later.
        """
        wanted = checked_changes(changes)
        for part in self._parts(list(wanted)):
            await self._ask(
                partial(
                    UpdateMetadata,
                    **self._to(self._model),
                    ids=part,
                    metadatas=[wanted[chunk_id] for chunk_id in part],
                )
            )

    def sibling(self, name: str) -> Self:
        """Return another collection in the same folder, with the same worker. Not started.

        Args:
            name: A suffix. The new name is this collection's name, a hyphen and `name`.

        Example:
            >>> ChromaStore("folder", "autoplay").sibling("large") == ChromaStore(
            ...     "folder", "autoplay-large"
            ... )
            True
        """
        return type(self)(
            self._folder,
            self._sibling_name(name),
            timeout=self._timeout,
            python=self._interpreter.given,
            sync_threshold=self._sync_threshold,
        )

    async def exchange(self, name: str) -> None:
        """Exchange this collection with its sibling of this name, in one transaction.

        Afterwards this collection's name leads to what the sibling held, and the other way round.
        Nothing is deleted or copied, so it takes a few milliseconds. A missing collection counts as
        an empty one. Every store of this folder notices it: its calls raise `StoreMismatchError`
        until `start` was called with the model of the new content, unless it has that model
        already.

        Raises:
            StoreLockedError: If another process uses the folder.
            StoreMismatchError: If this package did not create one of the two.
            StoreUnavailableError: If it may pass later. If the worker died, it is unknown whether
                they were exchanged.
        """
        await self._ask(
            partial(Exchange, **self._to(None), other=self._sibling_name(name)),
        )

    async def drop(self) -> None:
        """Delete the collection with its index files, its identity and its model.

        It works for vectors of any model, also before `start`. Siblings stay. The collection is
        gone at once. Its files are deleted in small steps, and other calls go on meanwhile; if this
        is interrupted, the next `start` does the rest.

        Raises:
            StoreLockedError: If another process uses the folder.
            StoreMismatchError: If this package did not create the collection.
            StoreUnavailableError: If it may pass later.
        """
        await self._ask(partial(Drop, **self._to(None)))
        self._model = None
        await self._clear()

    async def identity(self) -> StoreIdentity | None:
        """Return the identity saved by `save_identity`; None if it or the collection is missing.

        It works for vectors of any model, also before `start`.

        Raises:
            StoreLockedError: If another process uses the folder.
            StoreUnavailableError: If it may pass later.
        """
        kept = await self._ask(partial(Identity, **self._to(None)))
        assert isinstance(kept, Kept)
        return kept.identity

    async def save_identity(self, identity: StoreIdentity) -> None:
        """Save an identity in the collection's metadata, where no search finds it.

        Each call is a SQLite transaction and writes about 30 KB.

        Raises:
            StoreUnavailableError: If it may pass later.
        """
        await self._ask(partial(SaveIdentity, **self._to(self._model), identity=identity))

    async def is_own(self) -> bool:
        """Whether this package created the collection.

        Raises:
            StoreLockedError: If another process uses the folder.
            StoreUnavailableError: If it may pass later.
        """
        kept = await self._ask(partial(Identity, **self._to(None)))
        assert isinstance(kept, Kept)
        return kept.own

    async def copy_to(self, folder: Path) -> bool:
        """Copy the whole Chroma folder, with all of its collections, into an empty folder.

        The worker copies between two requests, so the copy is consistent. Other calls wait
        meanwhile. The copies of the indexes that `ChromaStore` makes for itself are left out. The
        call may take up to 60 times `timeout`.

        Args:
            folder: An existing folder outside of Chroma's.

        Raises:
            StoreLockedError: If another process uses the folder.
            StoreRejectedError: If `folder` is inside of Chroma's folder.
            StoreUnavailableError: If files cannot be read or written.
        """
        to = {**self._to(None), "timeout": self._timeout * _LONG_FACTOR}
        # Absolute: the working folder of the worker is Chroma's.
        await self._ask(lambda: Copy(**to, target=str(folder.absolute())))
        return True

    async def erase(self) -> bool:
        """Remove the remains of deleted chunks from Chroma's files, in all of its collections.

        Chroma keeps deleted texts in free pages of its database, in its full-text index and, for
        the last thousand changes, in its log. It keeps deleted vectors in the log and in its index,
        where they are overwritten with zeros. Other calls wait meanwhile. The call may take up to
        60 times `timeout`.

        Returns:
            False if an index has an unknown format, so that vectors may be left.

        Raises:
            StoreLockedError: If another process uses the folder.
            StoreUnavailableError: If the database cannot be written.
        """
        to = {**self._to(None), "timeout": self._timeout * _LONG_FACTOR}
        done = await self._ask(lambda: Erase(**to))
        assert isinstance(done, Done)
        return bool(done.count)

    async def compact(self) -> bool:
        """Write the collection anew from its own vectors if most of its index are deleted chunks.

        Chroma's index keeps the place of each deleted chunk. If more than half of the places are of
        deleted chunks, texts, metadata and vectors are copied into a new collection, without
        embedding anything. Then it takes the name, the identity and the model of the old one in one
        transaction, and the old one is deleted.

        All of this happens in small steps. Other calls go on meanwhile, and what they change is
        applied to the copy. The last step waits for the scans of this collection to end. If this
        is cancelled, the next call goes on; after a kill, the next `start` deletes the copy.

        Returns:
            Whether the collection was written anew. False also if this package did not create it.

        Raises:
            StoreLockedError: If another process uses the folder.
            StoreUnavailableError: If it may pass later.
        """
        while True:
            step = await self._ask(self._compact)
            assert isinstance(step, Step)
            if step.rewritten or not step.more:
                break
            if self._shared().is_scanned(self._collection):
                await asyncio.sleep(_SCAN_SECONDS)
        await self._clear()
        return step.rewritten

    async def aclose(self) -> None:
        """Release the worker. It ends when the last store that uses it is closed.

        May be called more than once. A later call of another method starts the worker again.
        """
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.release()

    def _sibling_name(self, name: str) -> str:
        return f"{self._collection}-{name}"

    def _compact(self) -> Compact:
        # Made when its turn comes: a scan that begins later sees only the new collection.
        may_end = not self._shared().is_scanned(self._collection)
        return Compact(**self._to(None), may_end=may_end)

    async def _clear(self) -> None:
        """Delete what dropped and rewritten collections leave."""
        while True:
            step = await self._ask(partial(Clear, **self._to(None)))
            assert isinstance(step, Step)
            if not step.more:
                return

    def _part_size(self) -> int:
        """Return how many chunks to write in one request."""
        expects_searches = time.monotonic() < self._shared().searched_at + _SEARCH_SECONDS
        return _PART_BESIDE_SEARCHES if expects_searches else self.max_batch

    async def _ask(self, make_request: Callable[[], Request]) -> Reply:
        return await self._shared().ask(make_request)

    def _shared(self) -> ChromaWorker:
        if self._worker is None:
            self._worker = ChromaWorker.acquire(self._folder, self._interpreter)
        return self._worker

    def _to(self, model: str | None) -> dict[str, Any]:
        return {"collection": self._collection, "model": model, "timeout": self._timeout}

    def _parts(self, ids: Sequence[str]) -> list[list[str]]:
        return [
            list(ids[start : start + self.max_batch])
            for start in range(0, len(ids), self.max_batch)
        ]

    def _upsert(self, chunks: Sequence[Chunk], vectors: Sequence[Vector]) -> Upsert:
        rows = pack(chunks, vectors)
        return Upsert(
            **self._to(self._model),
            ids=rows.ids,
            texts=rows.texts,
            metadatas=rows.metadatas,
            vectors=rows.vectors,
            dimension=rows.dimension,
            sync_threshold=self._sync_threshold,
        )

    def _query(self, vector: Vector, k: int, filter: Filter) -> Query:
        if k < 1:
            raise StoreRejectedError(f"k is {k}; it must be at least 1")
        return Query(
            **self._to(self._model),
            vector=pack_vector(vector, "the question"),
            k=k,
            where=where_of(filter),
            conditions=filter.conditions(),
        )


def where_of(filter: Filter) -> dict[str, Any] | None:
    """Translate a filter into Chroma's form; None if it has no condition.

    Raises:
        UnsupportedFilterError: If Chroma does not support the comparison.

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
    # Chroma accepts `$and` only with two or more conditions.
    if len(conditions) > 1:
        return {"$and": conditions}
    return conditions[0] if conditions else None

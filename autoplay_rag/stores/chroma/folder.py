"""A Chroma folder and its collections. This is the only module that imports Chroma.

It runs in the worker process. Statements about Chroma apply to chromadb 1.5.9.
"""

from __future__ import annotations

import errno
import heapq
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoplay_rag._describe import describe
from autoplay_rag.errors import StoreMismatchError
from autoplay_rag.stores.base import Condition, StoreIdentity
from autoplay_rag.stores.chroma.copies import BATCH, DATABASE, JOURNAL_ID, STORE_ID, copy_folder
from autoplay_rag.stores.chroma.database import Contents, Database
from autoplay_rag.stores.chroma.erasing import erase_deleted, erase_vectors
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
    Failed,
    Found,
    FoundChunk,
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
    StoredChunk,
    UpdateMetadata,
    Upsert,
)
from autoplay_rag.stores.chroma.mirror import IndexMirror
from autoplay_rag.stores.chroma.names import exchange_names, set_aside
from autoplay_rag.stores.chroma.rewriting import Rewrites, delete_collection

if TYPE_CHECKING:
    import numpy as np
    from chromadb.api import ClientAPI
    from chromadb.api.models.Collection import Collection
    from numpy.typing import NDArray

__all__ = ["Folder", "ignore_environment"]

_MODEL = "autoplay_model"
"""The key in the collection's metadata for the model of its vectors."""
_ROUNDING = 1e-6
_EF_SEARCH = 400
"""Candidates considered in a search of the index. Chroma's default of 100 misses chunks among similar
ones. Measured with 50,000 chunks, a fifth of them copies of 50 texts: 100 finds 82 of the 100
nearest, 400 finds 95 and takes 4 ms longer."""
_LEAST_THRESHOLD = 1000
"""Chroma's own default."""
_OUTGROWN = 1.5
"""How many times the present threshold a better one must be, to have Chroma open its index anew for it."""
_EXACT = 1000
"""Up to this many chunks that pass a filter are compared exactly. Measured with 100,000 chunks: it takes
up to 27 ms of CPU, and a filtered search of the index 75 to 300."""
_ALWAYS_EXACT = 100
"""A collection of up to this many chunks is compared exactly, also without a filter."""
_MOST_NAMED = 100_000
"""Up to this many chunks that pass a filter are named to Chroma by their ids. Measured with a million
chunks, of which 10,000 pass: that takes 90 ms of CPU, and 310 if Chroma finds them by the filter."""
_WIDEST = 2000
"""The most chunks that are requested from an unfiltered search, to filter them afterwards."""
_ROUNDS = 4
"""The most unfiltered searches for one filtered search."""
_PART = 1000
"""The most vectors in memory at once: Chroma returns them as Python floats."""
_FREE_BYTES = 64 << 20
"""Free bytes on disk that a write needs, in addition to half the size of the indexes. A full index
grows by a fifth, and so does its copy."""
_REMEDY = (
    "start once with IngestPipeline(rebuild=True) (command: --rebuild) to embed everything again "
    "with the new model, or use the old model, or another collection name"
)


def ignore_environment() -> None:
    """Stop Chroma from reading its settings from the environment and `.env`, in the whole process.

    Chroma reads each setting from the environment (in upper or lower case) and from `.env`.
    Variables for another program could make it contact a server, or prevent its start. Call this
    before the first import of Chroma, because the import reads the settings.

    Raises:
        ModuleNotFoundError: If chromadb is not installed.
    """
    from pydantic import BaseModel
    from pydantic_settings import BaseSettings

    # BaseModel reads only its arguments and defaults. The hooks of BaseSettings are too late: they
    # run after `.env` is read, which fails if the file is not UTF-8.
    BaseSettings.__init__ = BaseModel.__init__  # type: ignore[assignment,method-assign]
    from chromadb.config import Settings

    for name in list(os.environ):
        if name.lower() in Settings.model_fields:
            del os.environ[name]


class Folder:
    """Answers requests to the collections of one folder.

    Args:
        path: Chroma's folder.

    Raises:
        ModuleNotFoundError: If chromadb or NumPy is not installed.
    """

    def __init__(self, path: Path) -> None:
        import chromadb.errors as chroma
        from chromadb.config import Settings

        # Chroma runs in this process, writes to this folder, and sends nothing over the network.
        # The values are pinned, so other defaults or environment variables do not change this.
        self._settings = Settings(
            chroma_api_impl="chromadb.api.rust.RustBindingsAPI",
            is_persistent=True,
            persist_directory=str(path),
            allow_reset=False,
            migrations="apply",
            anonymized_telemetry=False,
            chroma_otel_collection_endpoint="",
        )
        self._path = path
        self._mirror = IndexMirror(path)
        self._mirror.restore()
        self._database = Database(path)
        self._client = self._open()
        self._mirror.refresh()
        self._collections: dict[str, _Collection] = {}
        self._rewrites = Rewrites(path, self._database)
        self._refusals = (
            ValueError,
            TypeError,
            chroma.BatchSizeExceededError,
            chroma.DuplicateIDError,
            chroma.InvalidArgumentError,
            chroma.InvalidDimensionException,
        )

    def answer(self, request: Request) -> Reply:
        """Execute a request. A failure is returned as a `Failed` reply."""
        try:
            return self._answer(request)
        except StoreMismatchError as error:
            return Failed("mismatch", str(error))
        except self._refusals as error:
            return Failed("rejected", f"Chroma rejected the request: {error}")
        except Exception as error:  # noqa: BLE001 - the rest are outages: disk, database, index
            # The cached collection may be stale.
            self._collections.pop(request.collection, None)
            self._database.close()
            return Failed("unavailable", f"Chroma failed: {describe(error)}")
        finally:
            self._mirror.refresh()

    def _answer(self, request: Request) -> Reply:  # noqa: C901, PLR0911, PLR0912 - one case per request
        match request:
            case Drop():
                self._drop(request.collection)
                return Done()
            case Clear():
                return Step(self._rewrites.delete_some(self._client))
            case Compact():
                return self._compact(request)
            case Exchange():
                self._exchange(request.collection, request.other)
                return Done()
            case Identity():
                found = self._find(request.collection)
                metadata = (found.metadata if found else None) or {}
                return Kept(_identity_of(metadata), _MODEL in metadata)
            case Copy():
                copy_folder(self._path, Path(request.target))
                return Done()
            case Erase():
                self._check_disk()
                return Done(count=int(self._erase()))
        opening = request if isinstance(request, Open) else None
        collection = self._collection(request.collection, request.model, opening)
        if isinstance(request, Upsert | Delete | UpdateMetadata):
            self._rewrites.note(request.collection, request.ids)
        match request:
            case Open():
                return Done()
            case Upsert():
                self._check_disk()
                collection.upsert(request)
                # Right after Chroma wrote the index, it opens it without changes of its own to add.
                if request.sync_threshold is None and self._mirror.refresh():
                    self._write_less_often(collection)
                return Done()
            case Delete():
                collection.delete(request.ids)
                return Done()
            case Query():
                return Found(collection.query(request))
            case Score():
                return Scores(collection.score(request))
            case Count():
                return Done(collection.count())
            case Get():
                return Chunks(collection.get(request.ids))
            case Scan():
                return collection.scan(request.after, request.limit)
            case UpdateMetadata():
                self._check_disk()
                collection.update_metadata(request)
                return Done()
            case SaveIdentity():
                collection.save_identity(request.identity)
                return Done()

    def _find(self, name: str) -> Collection | None:
        from chromadb.errors import NotFoundError

        try:
            # The default embedding function would download a model.
            return self._client.get_collection(name, embedding_function=None)
        except NotFoundError:
            return None

    def _open(self) -> ClientAPI:
        import chromadb

        return chromadb.PersistentClient(str(self._path), settings=self._settings)

    @contextmanager
    def _closed(self) -> Iterator[None]:
        """Close Chroma for the time of the block. Afterwards it reads indexes and settings anew."""
        self._collections.clear()
        self._database.close()
        client: Any = self._client
        try:
            client.close()
            yield
        finally:
            try:
                self._client = self._open()
            except Exception as error:
                raise SystemExit(f"Chroma could not open {self._path} again: {error}") from error

    def _write_less_often(self, collection: _Collection) -> None:
        """Have Chroma write an index less often that has grown since it was opened."""
        if collection.raise_threshold():
            with self._closed():
                pass  # Chroma reads the threshold when it opens the index

    def _erase(self) -> bool:
        """Remove the remains of deleted chunks; returns whether all files are known to be clean."""
        for collection in self._client.list_collections():
            collection.count()  # makes Chroma apply its log after a kill
        with self._closed():  # Chroma has deleted vectors in memory, and would write them again
            erase_deleted(self._path)
            self._mirror.discard()
            return erase_vectors(self._path)

    def _exchange(self, one: str, other: str) -> None:
        """Exchange two collections that this package created. A missing one is created first."""
        ids = []
        for name in (one, other):
            found = self._own(name, "renamed")
            if found is None:
                self._collection(name, None)
                found = self._own(name, "renamed")
                assert found is not None
            ids.append(str(found.id))
        # Renaming both with Chroma would leave a name missing after a kill between the two.
        exchange_names(self._path, *ids)
        for name in (one, other):
            self._collections.pop(name, None)
            self._rewrites.abandon(name)

    def _own(self, name: str, done: str) -> Collection | None:
        """Return a collection that this package created, whatever its model is; None if missing."""
        found = self._find(name)
        if found is not None and _MODEL not in (found.metadata or {}):
            raise StoreMismatchError(
                f"the Chroma collection {name!r} was not created by autoplay-rag, so it is not "
                f"{done}; choose another collection name"
            )
        return found

    def _drop(self, name: str) -> None:
        """Set a collection aside that this package created, whatever its model is."""
        self._collections.pop(name, None)
        self._rewrites.abandon(name)
        found = self._own(name, "deleted")
        if found is not None:
            set_aside(self._path, str(found.id))

    def _compact(self, request: Compact) -> Step:
        name = request.collection
        found = self._find(name)
        if found is None or _MODEL not in (found.metadata or {}):
            return Step(more=False)  # somebody else's may have settings that would be lost
        if not self._rewrites.is_under_way(name):
            # The new collection may have the name of one that is still to be deleted.
            if self._rewrites.delete_some(self._client):
                return Step(more=True)
            # Until the old one is deleted, there are up to half as many chunks again.
            database = (self._path / DATABASE).stat().st_size
            self._check_disk((self._mirror.size * 2 + database) // 2)
            return Step(self._rewrites.begin(self._client, name, found))
        try:
            self._check_disk()
        except OSError:
            self._rewrites.abandon(name)  # so that the next call gives back its space
            raise
        rewritten = self._rewrites.step(self._client, name, found, may_end=request.may_end)
        if rewritten:
            self._collections.pop(name, None)
        return Step(more=not rewritten, rewritten=rewritten)

    def _check_disk(self, more: int = 0) -> None:
        """Raise `OSError` if the disk is nearly full.

        Chroma ignores a failed write of an index and loses vectors.

        Args:
            more: The bytes that a longer work needs in addition.
        """
        free = shutil.disk_usage(self._path).free
        needed = _FREE_BYTES + self._mirror.size // 2 + more
        if free < needed:
            raise OSError(
                errno.ENOSPC,
                f"{free >> 20} MB are free on the disk of {self._path}, but {needed >> 20} MB are "
                "needed to write safely; free some space, and the pipeline stores the pending chunks",
            )

    def _collection(self, name: str, model: str | None, opening: Open | None = None) -> _Collection:
        held = self._collections.get(name)
        if held is None or model not in (None, held.model):
            found = self._find(name)
            held = self._collections[name] = _Collection(
                self._client, self._database, name, model, found, opening=opening
            )
        return held


class _Collection:
    """A collection of given vectors, compared by cosine.

    Chroma fixes the dimension of a collection with its first vector. This package fixes its model.
    An empty collection that this package created is recreated for another dimension or model.

    Raises:
        StoreMismatchError: If it holds vectors of another model, or does not compare by cosine.
    """

    def __init__(
        self,
        client: ClientAPI,
        database: Database,
        name: str,
        model: str | None,
        found: Collection | None,
        *,
        opening: Open | None,
    ) -> None:
        self._client = client
        self._database = database
        self._name = name
        self.model = model
        self._chroma = self._create({}) if found is None else found
        self._check_space()
        self._check_model()
        if opening is not None:
            # Before a request that makes Chroma open the index: it reads it then.
            self._set_sync_threshold(opening.sync_threshold or self._suitable_threshold())
        self._dimension = self._stored_dimension()

    def _suitable_threshold(self) -> int:
        """Return the threshold with the least work for the size of the collection.

        With each batch that is written, Chroma reads again what the index lacks: 25 us for each
        change. Writing the index takes 3 us for each chunk in it. The sum is least where the
        threshold grows with the root of the size.
        """
        # Chroma would open the index to count, and once more if the threshold changes.
        size = (
            self._database.count(str(self._chroma.id)) if self._database.readable else self.count()
        )
        return max(_LEAST_THRESHOLD, 4 * math.isqrt(size))

    def raise_threshold(self) -> bool:
        """Set a much better threshold for the present size, and return whether there is one."""
        held = self._threshold()
        if held is None or (suitable := self._suitable_threshold()) < _OUTGROWN * held:
            return False
        self._set_sync_threshold(suitable)
        return True

    def _threshold(self) -> int | None:
        """Return how many changes the index may lack on disk; None for somebody else's collection."""
        metadata = self._chroma.metadata or {}
        if _MODEL not in metadata or "hnsw:space" in metadata:
            return None
        configuration: Any = self._chroma.configuration
        held: int | None = (configuration.get("hnsw") or {}).get("sync_threshold")
        return held

    def _set_sync_threshold(self, changes: int) -> None:
        """Set how many changes the index may lack on disk. Somebody else's collection stays."""
        if self._threshold() not in (None, changes):
            self._chroma.modify(configuration={"hnsw": {"sync_threshold": changes}})

    def upsert(self, request: Upsert) -> None:
        """Store a batch. A chunk with a known id replaces text, metadata and vector of the old one."""
        import numpy as np

        if self._dimension not in (None, request.dimension):
            if not self._recreate():
                raise self._wrong_dimension(request.dimension)
            self._dimension = None
        vectors = np.frombuffer(request.vectors, np.float32).reshape(-1, request.dimension)
        rows = self._rows_to_write(request, vectors)
        if rows:
            self._chroma.upsert(
                ids=[request.ids[row] for row in rows],
                documents=[request.texts[row] for row in rows],
                # Chroma rejects an empty mapping and accepts None.
                metadatas=[request.metadatas[row] or None for row in rows],  # type: ignore[misc]
                embeddings=vectors[rows],
            )
        self._dimension = request.dimension

    def query(self, request: Query) -> list[FoundChunk]:
        """Return the nearest chunks, best first, as (id, text, cosine similarity, metadata)."""
        vector = self._question(request.vector)
        if vector is None:
            return []
        nearest = (
            self._nearest(request, vector)
            if self._database.readable
            else self._nearest_by_chroma(request, vector)
        )
        contents = self._contents(list(nearest))
        return [
            (chunk_id, text or "", score, metadata)
            for chunk_id, score in nearest.items()
            if chunk_id in contents
            for text, metadata in [contents[chunk_id]]
        ]

    def score(self, request: Score) -> dict[str, float]:
        """Return the cosine similarity of chunks, by id. Unknown ids are left out."""
        vector = self._question(request.vector)
        return {} if vector is None else self._exact_scores(request.ids, vector)

    def _question(self, packed: bytes) -> NDArray[np.float32] | None:
        """Return the vector of a question; None if the collection is empty.

        Raises:
            StoreMismatchError: If the collection has another dimension.
        """
        import numpy as np

        vector = np.frombuffer(packed, np.float32)
        if self._dimension == len(vector):
            return vector
        if self.count() == 0:
            return None
        raise self._wrong_dimension(len(vector))

    def _nearest(self, request: Query, vector: NDArray[np.float32]) -> dict[str, float]:
        """Return the scores of the nearest chunks by id, best first.

        The result is exact if few chunks pass, or if `k` is at least half of those that pass. The
        index is approximate, and a request for most of the chunks would miss some.
        """
        collection, k, conditions = str(self._chroma.id), request.k, request.conditions
        database = self._database
        most = max(2 * k, _EXACT if conditions else _ALWAYS_EXACT)
        if not conditions:
            ids = database.ids(collection, most + 1)
            if len(ids) <= most:
                return _best(self._exact_scores(ids, vector), k)
            nearest = self._search_index(vector, k)
            # After many deletes, some chunks may be unreachable in the index.
            if len(nearest) < k:
                ids = database.ids(collection, -1)
                nearest = _best(self._exact_scores(ids, vector), k)
            return nearest
        if not database.is_rare(conditions, most):
            found = self._filtered_afterwards(vector, k, conditions)
            if found is not None:
                return found
        ids = database.matching(collection, conditions, most + 1)
        if len(ids) > most:
            ids = database.matching(collection, conditions, _MOST_NAMED + 1)
            named = len(ids) <= _MOST_NAMED
            nearest = self._search_index(
                vector, k, **({"ids": ids} if named else {"where": request.where})
            )
            if len(nearest) == k:
                return nearest
            if not named:
                ids = database.matching(collection, conditions)
        return _best(self._exact_scores(ids, vector), k)

    def _filtered_afterwards(
        self, vector: NDArray[np.float32], k: int, conditions: Sequence[Condition]
    ) -> dict[str, float] | None:
        """Return the nearest of an unfiltered search that pass; None if fewer than `k` do.

        With 100,000 chunks, Chroma takes 75 to 300 ms of CPU for a filtered search. An unfiltered
        one that returns only ids takes 1 to 10 ms.
        """
        collection = str(self._chroma.id)
        tested: set[str] = set()
        passing: set[str] = set()
        asked = 2 * k + 20
        for _ in range(_ROUNDS):
            found = self._search_index(vector, asked)
            new = [chunk_id for chunk_id in found if chunk_id not in tested]
            tested.update(new)
            passing |= self._database.passing(collection, new, conditions)
            nearest = [hit for hit in found.items() if hit[0] in passing][:k]
            if len(nearest) == k:
                return dict(nearest)
            if len(found) < asked:
                break
            # The estimate from the share that passed so far, plus a margin of one half.
            wanted = 1.5 * k * len(tested) / len(passing) if passing else 8 * asked
            asked = max(2 * asked, int(wanted))
            if asked > max(_WIDEST, 4 * k):
                break
        return None

    def _nearest_by_chroma(self, request: Query, vector: NDArray[np.float32]) -> dict[str, float]:
        """Like `_nearest`, but without reading Chroma's database."""
        most = max(2 * request.k, _EXACT if request.where else _ALWAYS_EXACT)
        found = self._chroma.get(where=request.where, limit=most + 1, include=[])
        if len(found["ids"]) <= most:
            return _best(self._exact_scores(found["ids"], vector), request.k)
        return self._search_index(vector, request.k, where=request.where)

    def _search_index(self, vector: NDArray[np.float32], k: int, **among: Any) -> dict[str, float]:
        """Return the scores of approximately the `k` nearest chunks by id, best first.

        Args:
            vector: The vector of the question.
            k: The most chunks.
            among: `ids` or `where` of the chunks that are searched, as in Chroma's `query`.
        """
        found: Any = self._chroma.query(
            query_embeddings=vector, n_results=k, include=["distances"], **among
        )
        distances = found["distances"][0]
        return {
            chunk_id: 1.0 - distance
            for chunk_id, distance in zip(found["ids"][0], distances, strict=True)
        }

    def _exact_scores(self, ids: Sequence[str], vector: NDArray[np.float32]) -> dict[str, float]:
        """Return the cosine similarity of the chunks with these ids. Unknown ids are left out."""
        import numpy as np

        length = np.linalg.norm(vector.astype(np.float64))
        scores: dict[str, float] = {}
        for part in _parts(ids):
            found: Any = self._chroma.get(ids=part, include=["embeddings"])
            if found["ids"]:
                vectors = np.asarray(found["embeddings"], np.float64)
                lengths = np.linalg.norm(vectors, axis=1) * length
                similar = vectors @ vector / np.where(lengths > 0, lengths, 1)
                scores.update(zip(found["ids"], similar.tolist(), strict=True))
        return scores

    def _contents(self, ids: list[str]) -> Mapping[str, Contents]:
        if not ids:
            return {}  # Chroma would return every chunk
        if self._database.readable:
            contents = self._database.contents(str(self._chroma.id), ids)
            if contents is not None:
                return contents
        found: Any = self._chroma.get(ids=ids, include=["documents", "metadatas"])
        columns = (found["ids"], found["documents"], found["metadatas"])
        return {
            chunk_id: (text, dict(metadata or {}))
            for chunk_id, text, metadata in zip(*columns, strict=True)
        }

    def delete(self, ids: Sequence[str]) -> None:
        """Delete the chunks with these ids."""
        self._chroma.delete(ids=list(ids))

    def count(self) -> int:
        """Return the number of chunks."""
        return self._chroma.count()

    def get(self, ids: Sequence[str]) -> list[StoredChunk]:
        """Return the chunks with these ids. Unknown ids are left out."""
        return [
            (chunk_id, text or "", metadata)
            for chunk_id, (text, metadata) in self._contents(list(ids)).items()
        ]

    def scan(self, after: int, limit: int) -> Chunks:
        """Return the next page of all chunks.

        Chroma's own paging counts rows. Its page 200 takes 40 times as long as the first page, and
        after a deletion between two pages it skips chunks. Paging by row number avoids both.
        """
        if after == 0:
            self.count()  # makes Chroma apply its log after a kill
        page = self._rows_after(after, limit)
        return Chunks(
            self.get([chunk_id for _, chunk_id in page]),
            page[-1][0] if len(page) == limit else None,
        )

    def _rows_after(self, after: int, limit: int) -> list[tuple[int, str]]:
        # With the plus, SQLite does not use the index on `segment_id`. With that index, it would
        # sort all rows for each page.
        query = (
            "SELECT id, embedding_id FROM embeddings WHERE id > ? AND +segment_id ="
            " (SELECT id FROM segments WHERE scope = 'METADATA' AND collection = ?)"
            " ORDER BY id LIMIT ?"
        )
        return self._database.select(query, (after, str(self._chroma.id), limit))

    def update_metadata(self, request: UpdateMetadata) -> None:
        """Set and remove metadata keys of stored chunks, where they differ.

        Chroma's `update` keeps other keys and removes keys that are None.
        """
        changes = dict(zip(request.ids, request.metadatas, strict=True))
        if not changes:
            return
        stored: Any = self._chroma.get(ids=list(changes), include=["metadatas"])
        wanted = {
            chunk_id: differing
            for chunk_id, old in zip(stored["ids"], stored["metadatas"], strict=True)
            if (differing := _differing(old or {}, changes[chunk_id]))
        }
        if wanted:
            self._chroma.update(ids=list(wanted), metadatas=list(wanted.values()))

    def save_identity(self, identity: StoreIdentity) -> None:
        """Save an identity in the collection's metadata."""
        self._annotate(
            {
                STORE_ID: identity.store_id,
                JOURNAL_ID: identity.journal_id,
                BATCH: identity.batch,
            }
        )

    def _annotate(self, notes: Mapping[str, str | int]) -> None:
        """Set keys of the collection's metadata. The configuration of its index stays."""
        # `modify` replaces all metadata.
        metadata: dict[str, Any] = {**(self._chroma.metadata or {}), **notes}
        if "hnsw:space" not in metadata:
            self._chroma.modify(metadata=metadata)
            return
        # A collection of an older Chroma keeps its distance function under this key. `modify`
        # rejects the key even if its value stays the same, and without it the function is lost.
        self._client._modify(id=self._chroma.id, new_metadata=metadata)  # noqa: SLF001
        self._chroma = self._client.get_collection(self._name, embedding_function=None)

    def _rows_to_write(self, request: Upsert, vectors: NDArray[np.float32]) -> list[int]:
        """Return the rows that differ from the stored chunks.

        In Chroma, overwriting a chunk takes five times as long as adding one. After a crash, most
        chunks of a repeated batch are stored already, so comparing them first is faster.

        Chroma keeps the old metadata keys of an overwritten chunk. This method sets them to None in
        the request, which removes them.
        """
        import numpy as np

        stored: Any = self._chroma.get(
            ids=request.ids, include=["documents", "metadatas", "embeddings"]
        )
        if not stored["ids"]:
            return list(range(len(request.ids)))
        row_of = {chunk_id: row for row, chunk_id in enumerate(request.ids)}
        rows = [row_of[chunk_id] for chunk_id in stored["ids"]]
        wanted = vectors[rows]
        # Chroma keeps direction and length separately, so stored vectors have rounding errors.
        error = np.abs(np.asarray(stored["embeddings"]) - wanted).max(axis=1)
        same_vector = error <= _ROUNDING * np.abs(wanted).max(axis=1)
        unchanged = set()
        for row, same, text, old in zip(
            rows, same_vector, stored["documents"], stored["metadatas"], strict=True
        ):
            new: dict[str, Any] = request.metadatas[row]
            if same and text == request.texts[row] and _typed(old or {}) == _typed(new):
                unchanged.add(row)
            else:
                new.update(dict.fromkeys((old or {}).keys() - new.keys()))
        return [row for row in range(len(request.ids)) if row not in unchanged]

    def _create(self, identity: Mapping[str, Any]) -> Collection:
        return self._client.create_collection(
            self._name,
            embedding_function=None,
            metadata={**identity, _MODEL: self.model or ""},
            configuration={"hnsw": {"space": "cosine", "ef_search": _EF_SEARCH}},
        )

    def _recreate(self) -> bool:
        """Recreate the collection if it is empty and this package created it. Its identity stays."""
        metadata = self._chroma.metadata or {}
        if _MODEL not in metadata or self.count() > 0:
            return False
        configuration: Any = self._chroma.configuration
        delete_collection(self._client, self._database, self._chroma)
        self._chroma = self._create(metadata)
        self._set_sync_threshold(configuration["hnsw"]["sync_threshold"])
        return True

    def _stored_dimension(self) -> int | None:
        collection = str(self._chroma.id)
        if self._database.readable and self._database.is_current(collection):
            # Chroma opens the index with the first search or change: a million chunks take 4 s.
            return self._database.dimension(collection)
        found: Any = self._chroma.get(limit=1, include=["embeddings"])
        return len(found["embeddings"][0]) if len(found["embeddings"]) else None

    def _check_space(self) -> None:
        configuration: Any = self._chroma.configuration
        space = (configuration.get("hnsw") or configuration.get("spann") or {}).get("space")
        if space != "cosine":
            raise StoreMismatchError(
                f"the Chroma collection {self._name!r} was not created by autoplay-rag and compares "
                f"vectors by {space!r} instead of 'cosine'; choose another collection name"
            )

    def _check_model(self) -> None:
        held = (self._chroma.metadata or {}).get(_MODEL)
        if self.model in (None, held) or held is None:
            return
        if held == "":  # used before its first `start`
            self._annotate({_MODEL: self.model or ""})
            return
        if self._recreate():
            return
        raise StoreMismatchError(
            f"the Chroma collection {self._name!r} holds {self.count()} vectors of the model "
            f"{held!r}, but {self.model!r} was asked for; {_REMEDY}"
        )

    def _wrong_dimension(self, dimension: int) -> StoreMismatchError:
        return StoreMismatchError(
            f"the Chroma collection {self._name!r} holds vectors of dimension {self._dimension}, "
            f"but was given one of dimension {dimension}; {_REMEDY}"
        )


def _identity_of(metadata: Mapping[str, Any] | None) -> StoreIdentity | None:
    if not metadata or STORE_ID not in metadata:
        return None
    return StoreIdentity(metadata[STORE_ID], metadata[JOURNAL_ID], metadata[BATCH])


def _best(scores: Mapping[str, float], k: int) -> dict[str, float]:
    """Return the `k` best, best first."""
    return dict(heapq.nlargest(k, scores.items(), key=itemgetter(1)))


def _parts(ids: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(ids), _PART):
        yield list(ids[start : start + _PART])


def _typed(metadata: Mapping[str, Any]) -> dict[str, tuple[type, Any]]:
    """Return metadata with types, for comparison. In Python, 1, 1.0 and True are equal."""
    return {key: (type(value), value) for key, value in metadata.items()}


def _differing(old: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes that differ from the old metadata. None removes a key."""
    typed = _typed(old)
    return {
        key: value
        for key, value in changes.items()
        if typed.get(key, (type(None), None)) != (type(value), value)
    }

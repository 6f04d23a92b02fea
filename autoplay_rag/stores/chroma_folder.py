"""A Chroma folder and its collections: the part of `ChromaStore` that knows Chroma.

It runs in the worker process only. What is said of Chroma here holds for chromadb 1.5.9.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoplay_rag.errors import StoreMismatchError
from autoplay_rag.stores.chroma_frames import (
    Count,
    Delete,
    Done,
    Failed,
    Found,
    FoundChunk,
    Open,
    Query,
    Reply,
    Request,
    Upsert,
)
from autoplay_rag.stores.chroma_mirror import IndexMirror

if TYPE_CHECKING:
    import numpy as np
    from chromadb.api import ClientAPI
    from chromadb.api.models.Collection import Collection
    from numpy.typing import NDArray

__all__ = ["Folder"]

_MODEL = "autoplay_model"
"""Where the collection's own metadata says whose vectors it holds."""
_ROUNDING = 1e-6
_EF_SEARCH = 400
"""How widely the index is searched. Chroma's 100 gets lost among chunks that are alike: of 50,000,
a fifth of them copies of 50 texts, it found 82 of 100 nearest; this found 95, in 4 ms more."""
_EXACT = 1000
"""Up to so many chunks that pass a filter are compared one by one, which is exact, and faster than
a filtered search of the index: of 50,000, the 25 of one user in 8 ms instead of 43."""
_ROOM = 64 << 20
"""Bytes of disk that must be free to write, besides half of what the indexes take: one that is full
grows by a fifth, and its copy with it."""
_REMEDY = "use that model, or another collection name, or delete the collection and ingest again"


class Folder:
    """Answers requests from the collections of one folder.

    Args:
        path: Chroma's folder.

    Raises:
        ModuleNotFoundError: If chromadb or NumPy is not installed.
    """

    def __init__(self, path: Path) -> None:
        import chromadb
        import chromadb.errors as chroma
        from chromadb.config import Settings

        # Named here, an environment variable cannot turn them on: nothing leaves the machine.
        settings = Settings(anonymized_telemetry=False, chroma_otel_collection_endpoint="")
        self._path = path
        self._mirror = IndexMirror(path)
        self._mirror.restore()
        self._client = chromadb.PersistentClient(str(path), settings=settings)
        self._mirror.refresh()
        self._collections: dict[str, _Collection] = {}
        self._refusals = (
            ValueError,
            TypeError,
            chroma.BatchSizeExceededError,
            chroma.DuplicateIDError,
            chroma.InvalidArgumentError,
            chroma.InvalidDimensionException,
        )

    def answer(self, request: Request) -> Reply:
        """Do what is asked; a failure is an answer too."""
        try:
            return self._answer(request)
        except StoreMismatchError as error:
            return Failed("mismatch", str(error))
        except self._refusals as error:
            return Failed("rejected", f"Chroma refused it: {error}")
        except Exception as error:  # noqa: BLE001 - the rest are outages: disk, database, index
            # Whatever was known of the collection may have changed.
            self._collections.pop(request.collection, None)
            return Failed("unavailable", f"Chroma failed: {type(error).__name__}: {error}")
        finally:
            self._mirror.refresh()

    def _answer(self, request: Request) -> Reply:
        collection = self._collection(request.collection, request.model)
        match request:
            case Open():
                return Done()
            case Upsert():
                self._check_room()
                collection.upsert(request)
                return Done()
            case Delete():
                collection.delete(request.ids)
                return Done()
            case Query():
                return Found(collection.query(request))
            case Count():
                return Done(collection.count())

    def _check_room(self) -> None:
        """Chroma does not notice when the disk is full as it writes an index: vectors would be lost."""
        free = shutil.disk_usage(self._path).free
        needed = _ROOM + self._mirror.size // 2
        if free < needed:
            raise OSError(
                errno.ENOSPC,
                f"{free >> 20} MB are free where {self._path} is, and {needed >> 20} MB are needed "
                "to write safely; make room, and what waits is stored",
            )

    def _collection(self, name: str, model: str | None) -> _Collection:
        held = self._collections.get(name)
        if held is None or model not in (None, held.model):
            held = self._collections[name] = _Collection(self._client, name, model)
        return held


class _Collection:
    """A collection of explicit vectors, compared by cosine.

    Chroma fixes a collection's dimension for good with its first vector, and we fix its model.
    One that is empty and was made here is made anew where another is wanted.

    Raises:
        StoreMismatchError: If it holds another model's vectors, or compares otherwise.
    """

    def __init__(self, client: ClientAPI, name: str, model: str | None) -> None:
        from chromadb.errors import NotFoundError

        self._client = client
        self._name = name
        self.model = model
        try:
            # Left out, the embedding function would be Chroma's own, which downloads a model.
            self._chroma = client.get_collection(name, embedding_function=None)
        except NotFoundError:
            self._chroma = self._create()
        self._check_space()
        self._check_model()
        self._dimension = self._stored_dimension()

    def upsert(self, request: Upsert) -> None:
        """Store a batch; chunks with known ids are replaced whole."""
        import numpy as np

        if self._dimension not in (None, request.dimension):
            if not self._make_anew():
                raise self._wrong_dimension(request.dimension)
            self._dimension = None
        vectors = np.frombuffer(request.vectors, np.float32).reshape(-1, request.dimension)
        rows = self._rows_to_write(request, vectors)
        if rows:
            self._chroma.upsert(
                ids=[request.ids[row] for row in rows],
                documents=[request.texts[row] for row in rows],
                # Chroma takes no empty mapping, but None instead.
                metadatas=[request.metadatas[row] or None for row in rows],  # type: ignore[misc]
                embeddings=vectors[rows],
            )
        self._dimension = request.dimension

    def query(self, request: Query) -> list[FoundChunk]:
        """The nearest, best first, as (id, text, cosine similarity, metadata)."""
        import numpy as np

        vector = np.frombuffer(request.vector, np.float32)
        if self._dimension != len(vector):
            if self.count() == 0:
                return []
            raise self._wrong_dimension(len(vector))
        # The index is approximate: asked for most of what there is, it leaves some out.
        exact = request.where is not None or self.count() <= 2 * request.k
        scores = self._exact_scores(request.where, vector) if exact else None
        if scores is None:
            return self._search_index(request, vector)
        best = sorted(scores, key=scores.__getitem__, reverse=True)[: request.k]
        if not best:
            return []
        found: Any = self._chroma.get(ids=best, include=["documents", "metadatas"])
        columns = (found["ids"], found["documents"], found["metadatas"])
        hits = [_found(*row, scores[row[0]]) for row in zip(*columns, strict=True)]
        return sorted(hits, key=lambda hit: hit[2], reverse=True)

    def _search_index(self, request: Query, vector: NDArray[np.float32]) -> list[FoundChunk]:
        found: Any = self._chroma.query(
            query_embeddings=vector,
            n_results=request.k,
            where=request.where,
            include=["documents", "metadatas", "distances"],
        )
        columns = (found[name][0] for name in ("ids", "documents", "metadatas", "distances"))
        return [
            _found(chunk_id, text, metadata, 1.0 - distance)
            for chunk_id, text, metadata, distance in zip(*columns, strict=True)
        ]

    def _exact_scores(
        self, where: dict[str, Any] | None, vector: NDArray[np.float32]
    ) -> dict[str, float] | None:
        """The cosine similarity of each chunk that passes; None where too many do."""
        import numpy as np

        found: Any = self._chroma.get(where=where, limit=_EXACT + 1, include=["embeddings"])
        if len(found["ids"]) > _EXACT:
            return None
        if not found["ids"]:
            return {}
        vectors = np.asarray(found["embeddings"], np.float64)
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(vector.astype(np.float64))
        scores = vectors @ vector / np.where(lengths > 0, lengths, 1)
        return dict(zip(found["ids"], scores.tolist(), strict=True))

    def delete(self, ids: Sequence[str]) -> None:
        """Delete what is there of these."""
        self._chroma.delete(ids=list(ids))

    def count(self) -> int:
        """How many chunks there are."""
        return self._chroma.count()

    def _rows_to_write(self, request: Upsert, vectors: NDArray[np.float32]) -> list[int]:
        """The rows that are not stored yet just as they are.

        Overwriting a chunk costs Chroma five times what a new one does, and a batch that is
        offered again after a crash is mostly stored already: it is cheaper to look.

        Where a chunk is overwritten, Chroma would keep the metadata keys it had and has no
        more; in the request they are set to None, which removes them.
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
        # Chroma keeps directions and lengths apart, so vectors come back with rounding errors.
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

    def _create(self) -> Collection:
        return self._client.create_collection(
            self._name,
            embedding_function=None,
            metadata={_MODEL: self.model or ""},
            configuration={"hnsw": {"space": "cosine", "ef_search": _EF_SEARCH}},
        )

    def _make_anew(self) -> bool:
        """Start over, if there is nothing to lose: no chunk, and no collection of someone else."""
        if _MODEL not in (self._chroma.metadata or {}) or self.count() > 0:
            return False
        self._client.delete_collection(self._name)
        self._chroma = self._create()
        return True

    def _stored_dimension(self) -> int | None:
        found: Any = self._chroma.get(limit=1, include=["embeddings"])
        return len(found["embeddings"][0]) if len(found["embeddings"]) else None

    def _check_space(self) -> None:
        configuration: Any = self._chroma.configuration
        space = (configuration.get("hnsw") or configuration.get("spann") or {}).get("space")
        if space != "cosine":
            raise StoreMismatchError(
                f"the Chroma collection {self._name!r} was made elsewhere and compares vectors by "
                f"{space!r}, where 'cosine' is needed; choose another collection name"
            )

    def _check_model(self) -> None:
        held = (self._chroma.metadata or {}).get(_MODEL)
        if not held or self.model in (None, held) or self._make_anew():
            return
        raise StoreMismatchError(
            f"the Chroma collection {self._name!r} holds {self.count()} vectors of the model "
            f"{held!r}, but {self.model!r} was asked for; {_REMEDY}"
        )

    def _wrong_dimension(self, dimension: int) -> StoreMismatchError:
        return StoreMismatchError(
            f"the Chroma collection {self._name!r} holds vectors of dimension {self._dimension}, "
            f"but one of {dimension} came; {_REMEDY}"
        )


def _found(
    chunk_id: str, text: str | None, metadata: Mapping[str, Any] | None, score: float
) -> FoundChunk:
    """What was stored by others may have no text or no metadata."""
    return chunk_id, text or "", score, dict(metadata or {})


def _typed(metadata: Mapping[str, Any]) -> dict[str, tuple[type, Any]]:
    """For comparing: to Python 1, 1.0 and True are equal."""
    return {key: (type(value), value) for key, value in metadata.items()}

"""LangChain's Chroma."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from autoplay_rag import Filter
from autoplay_rag.stores import Capability, Changes, StoreIdentity
from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore

from langchain_autoplay.filters import operators
from langchain_autoplay.kinds.base import FilterBuilder, Kind, Scored

__all__ = ["Chroma"]

_METADATA = (
    "product_id", "session_id", "user_id", "conversation_id", "email", "kind", "started_at",
    "ended_at", "forwarded_at", "action_count", "urls",
)  # fmt: skip
_EXACT = 1000
_STORE_ID, _JOURNAL_ID, _BATCH = "autoplay_store_id", "autoplay_journal_id", "autoplay_batch"


class Chroma(Kind):
    """`langchain_chroma.Chroma`. It runs in a thread, but holds Python's lock while it works.

    The identity is in the metadata of the collection, beside the owner's own.
    """

    translate = staticmethod(operators)

    def __init__(self, store: VectorStore, filter_builder: FilterBuilder | None) -> None:
        super().__init__(store, filter_builder)
        self.persistent = not _is_ephemeral(self._collection)

    async def add(self, documents: list[Document]) -> None:
        """As in `Kind`. Chroma merges metadata, so missing keys are removed by None."""
        nothing = dict.fromkeys(_METADATA)
        await super().add(
            [
                Document(
                    document.page_content, id=document.id, metadata={**nothing, **document.metadata}
                )
                for document in documents
            ]
        )

    async def search(self, text: str, k: int, filter: Filter) -> Scored:
        """As in `Kind`. What the index cannot reach is found by comparing one by one.

        Chroma's index is a graph. Where many documents are almost equal, no path may lead to those
        that differ, and a search whose filter wants just these finds nothing.
        """
        found = await super().search(text, k, filter)
        if len(found) >= k or self.store.embeddings is None:
            return found
        condition = self._filtered(filter).get("filter")
        passing = await asyncio.to_thread(self._passing, condition)
        if not len(found) < len(passing["ids"]) <= _EXACT:
            return found
        vector = await self.store.embeddings.aembed_query(text)
        return await asyncio.to_thread(_nearest, passing, vector, k)

    async def count(self) -> int:
        """As in `Kind`."""
        count: int = await asyncio.to_thread(self._collection.count)
        return count

    async def get(self, ids: list[str]) -> list[Document]:
        """As in `Kind`. `Chroma.get_by_ids` fails on documents without metadata."""
        found = await asyncio.to_thread(self.store.get, ids=ids)
        rows = zip(found["ids"], found["documents"], found["metadatas"], strict=True)
        return [
            Document(text, id=id_, metadata=metadata or {})
            for id_, text, metadata in rows
            if text is not None
        ]

    async def ids(self) -> list[str]:
        """As in `Kind`.

        All at once, 0.2 s for 100,000: pages by offset would skip chunks when others are
        deleted during the scan.
        """
        found = await asyncio.to_thread(self.store.get, include=[])
        return list(found["ids"])

    async def update_metadata(self, changes: Mapping[str, Changes]) -> None:
        """As in `Kind`. Chroma merges, removes a key by a None, and ignores unknown ids."""
        await asyncio.to_thread(
            self._collection.update, ids=list(changes), metadatas=list(changes.values())
        )

    async def identity(self) -> StoreIdentity | None:
        """As in `Kind`."""
        note = await asyncio.to_thread(self._notes)
        if not note.get(_STORE_ID):
            return None
        return StoreIdentity(str(note[_STORE_ID]), str(note[_JOURNAL_ID]), int(note[_BATCH]))

    async def save_identity(self, identity: StoreIdentity) -> None:
        """As in `Kind`."""
        note: dict[str, str | int] = {
            _STORE_ID: identity.store_id,
            _JOURNAL_ID: identity.journal_id,
            _BATCH: identity.batch,
        }
        await asyncio.to_thread(self._set_note, note)

    async def reset(self) -> None:
        """As in `Kind`. A collection keeps its dimension even when it is empty: it is made anew."""
        await asyncio.to_thread(self._reset)

    def similarity(self, score: float) -> float:
        """Chroma's distance is squared where it is Euclidean, which is its default."""
        config = self._collection.configuration_json
        index = config.get("hnsw") or config.get("spann") or {}
        return 1 - score / 2 if index.get("space", "l2") == "l2" else 1 - score

    def _find_capabilities(self) -> frozenset[Capability]:
        return frozenset({"delete", "get", "scan", "update_metadata", "drop", "identity"})

    @property
    def _collection(self) -> Any:
        # Chroma(...) has no public name for it. `reset_collection` exchanges it.
        return self.store._collection  # noqa: SLF001 - see above

    def _passing(self, condition: Mapping[str, Any] | None) -> dict[str, Any]:
        """What passes a filter, with vectors; one more than is compared one by one, at most."""
        include = ["documents", "metadatas", "embeddings"]
        return dict(self._collection.get(where=condition, limit=_EXACT + 1, include=include))

    def _notes(self) -> dict[str, Any]:
        """The collection's metadata as of now: the collection's own copy may be old."""
        collection = self._collection
        server = collection._client  # noqa: SLF001 - no other way
        return dict(
            server.get_collection(name=collection.name, **_where(collection)).metadata or {}
        )

    def _set_note(self, note: Mapping[str, str | int]) -> None:
        before = self._notes()
        if (metadata := _without_note(before) | dict(note)) == before:
            return
        collection = self._collection
        # `Collection.modify` refuses metadata with "hnsw:space" in it, even unchanged.
        collection._client._modify(  # noqa: SLF001 - see above
            id=collection.id,
            # Chroma takes no empty metadata.
            new_metadata=metadata or {_STORE_ID: ""},
            **_where(collection),
        )

    def _reset(self) -> None:
        collection = self._collection
        if collection.count():
            self._set_note({})
            return
        metadata = _without_note(self._notes())
        configuration = {
            **collection.configuration_json,
            "embedding_function": collection._embedding_function,  # noqa: SLF001 - as it was given
        }
        configuration = {key: value for key, value in configuration.items() if value is not None}
        server = collection._client  # noqa: SLF001 - no other way
        server.delete_collection(name=collection.name, **_where(collection))
        # Whoever holds this object holds the new collection.
        collection._model = server.create_collection(  # noqa: SLF001 - see above
            name=collection.name,
            configuration=configuration,
            metadata=metadata or None,
            **_where(collection),
        )


def _nearest(passing: Mapping[str, Any], vector: Sequence[float], k: int) -> Scored:
    """The `k` nearest of these, best first, with their cosine similarities."""
    import numpy as np

    vectors, asked = np.asarray(passing["embeddings"], np.float64), np.asarray(vector, np.float64)
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(asked)
    scores = vectors @ asked / np.where(lengths > 0, lengths, 1)
    columns = (passing["ids"], passing["documents"], passing["metadatas"], scores.tolist())
    found = [
        (Document(text, id=id_, metadata=metadata or {}), score)
        for id_, text, metadata, score in zip(*columns, strict=True)
        if text is not None
    ]
    return sorted(found, key=lambda pair: -pair[1])[:k]


def _where(collection: Any) -> dict[str, str]:
    return {"tenant": collection.tenant, "database": collection.database}


def _without_note(metadata: Mapping[str, Any]) -> dict[str, Any]:
    ours = (_STORE_ID, _JOURNAL_ID, _BATCH)
    return {key: value for key, value in metadata.items() if key not in ours}


def _is_ephemeral(collection: Any) -> bool:
    """Whether Chroma itself runs in this process and keeps nothing on disk."""
    settings = collection._client.get_settings()  # noqa: SLF001 - no other way
    remote = "fastapi" in settings.chroma_api_impl.lower()
    return not remote and not settings.is_persistent

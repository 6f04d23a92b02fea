"""LangChain's two stores for PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from autoplay_rag.stores import Capability, Changes
from langchain_core.documents import Document

from langchain_autoplay.filters import operators
from langchain_autoplay.kinds.base import Kind, Scored, changed

__all__ = ["PGVector", "PGVectorStore"]

T = TypeVar("T")


class PGVectorStore(Kind):
    """`PGVectorStore` of `langchain_postgres`. Deletes and gets through LangChain's base class.

    Its owner chooses the columns of the table, so scan and update_metadata are not supported.
    """

    translate = staticmethod(operators)

    def similarity(self, score: float) -> float:
        """Convert the cosine distance, the Euclidean distance or the negative inner product."""
        strategy = getattr(self.store, "_distance_strategy", None)
        name = str(getattr(strategy, "value", "cosine")).lower()
        if "l2" in name or "euclid" in name:
            return 1 - score * score / 2
        return -score if "inner" in name else 1 - score


class PGVector(PGVectorStore):
    """`PGVector` of `langchain_postgres`.

    Without `async_mode` only its sync methods work. With it, it belongs to the event loop of its engine.
    """

    async def add(self, documents: list[Document]) -> None:
        """As in `Kind`."""
        if not self._in_threads:
            return await super().add(documents)
        ids = [document.id for document in documents]
        await asyncio.to_thread(self.store.add_documents, documents, ids=ids)
        return None

    async def delete(self, ids: list[str]) -> None:
        """As in `Kind`."""
        if not self._in_threads:
            return await super().delete(ids)
        await asyncio.to_thread(self.store.delete, ids)
        return None

    async def count(self) -> int:
        """As in `Kind`."""
        return await self._do(lambda session, rows: rows(session).count())

    async def get(self, ids: list[str]) -> list[Document]:
        """As in `Kind`."""
        if not self._in_threads:
            return await super().get(ids)
        found: list[Document] = await asyncio.to_thread(self.store.get_by_ids, ids)
        return found

    async def ids(self) -> list[str]:
        """As in `Kind`."""
        table = self.store.EmbeddingStore
        return await self._do(
            lambda session, rows: [id_ for (id_,) in rows(session).with_entities(table.id)]
        )

    async def update_metadata(self, changes: Mapping[str, Changes]) -> None:
        """As in `Kind`."""
        table = self.store.EmbeddingStore

        def update(session: Any, rows: Callable[[Any], Any]) -> None:
            # Rows are locked in one order, so that two updates cannot deadlock.
            found = rows(session).filter(table.id.in_(list(changes))).order_by(table.id)
            for row in found.with_for_update():
                row.cmetadata = changed(row.cmetadata, changes[row.id])
            session.commit()

        await self._do(update)

    def _find_capabilities(self) -> frozenset[Capability]:
        return frozenset({"delete", "get", "scan", "update_metadata", "drop"})

    async def _found(self, text: str, k: int, **options: Any) -> Scored:
        if not self._in_threads:
            return await super()._found(text, k, **options)
        search = self.store.similarity_search_with_score
        found: Scored = await asyncio.to_thread(search, text, k=k, **options)
        return found

    async def _do(self, work: Callable[[Any, Callable[[Any], Any]], T]) -> T:
        """Run `work(session, rows)`, where `rows(session)` queries the collection's rows."""
        store = self.store

        def rows(collection: Any) -> Callable[[Any], Any]:
            table = store.EmbeddingStore
            owner = collection.uuid
            return lambda session: session.query(table).filter(table.collection_id == owner)

        if not self._in_threads:
            async with store._make_async_session() as session:  # noqa: SLF001 - no other way
                collection = await store.aget_collection(session)
                found: T = await session.run_sync(work, rows(collection))
                return found

        def run() -> T:
            with store._make_sync_session() as session:  # noqa: SLF001 - no other way
                return work(session, rows(store.get_collection(session)))

        return await asyncio.to_thread(run)

    @property
    def _in_threads(self) -> bool:
        return getattr(self.store, "async_mode", True) is False

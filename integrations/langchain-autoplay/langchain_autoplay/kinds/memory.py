"""LangChain's store in memory."""

from __future__ import annotations

from collections.abc import Mapping

from autoplay_rag.stores import Capability, Changes

from langchain_autoplay.filters import over_documents
from langchain_autoplay.kinds.base import Kind, changed

__all__ = ["InMemory"]


class InMemory(Kind):
    """`langchain_core.vectorstores.InMemoryVectorStore`."""

    persistent = False
    translate = staticmethod(over_documents)

    async def count(self) -> int:
        """As in `Kind`."""
        return len(self.store.store)

    async def ids(self) -> list[str]:
        """As in `Kind`."""
        return list(self.store.store)

    async def update_metadata(self, changes: Mapping[str, Changes]) -> None:
        """As in `Kind`. Copies the metadata, because returned documents share it."""
        for id_, new in changes.items():
            if entry := self.store.store.get(id_):
                entry["metadata"] = changed(entry["metadata"], new)

    def _find_capabilities(self) -> frozenset[Capability]:
        return frozenset({"delete", "get", "scan", "update_metadata", "drop"})

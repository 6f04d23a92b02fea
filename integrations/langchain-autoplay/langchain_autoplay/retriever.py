"""AutoplayRetriever: what was ingested, for one person, one visit or one product."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from autoplay_rag import Filter, IngestPipeline
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.stores.base import Hit
from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig, ensure_config
from pydantic import ConfigDict, Field

__all__ = ["AutoplayRetriever", "Scope"]

Scope: TypeAlias = Literal["user_id", "session_id", "product_id"]
"""Whose chunks a search may find."""


class AutoplayRetriever(BaseRetriever):
    """Finds what users did, in a running `IngestPipeline`.

    With a scope, each call says whose: `invoke(question, {"configurable": {"user_id": "u1"}})`,
    or under the same name in the call's `metadata`. A call that does not is an error, never a
    search over everyone. The id must be your application's own, authenticated on its server:
    whoever names it sees that person's sessions.

    Args:
        pipeline: Searched as it is now; it must be running.
        scope: "user_id", "session_id" or "product_id"; None searches everyone's sessions, and
            has to be written out.
        k: How many documents at most; a call may pass its own.

    Example:
        >>> import asyncio
        >>> from autoplay_rag import ActionsPayload, SlimAction
        >>> from autoplay_rag.stores import MemoryStore
        >>> async def main():
        ...     async with IngestPipeline(MemoryStore()) as pipeline:
        ...         for user in ("ann", "bob"):
        ...             click = SlimAction("Export", f"{user} clicked Export")
        ...             await pipeline.on_actions(ActionsPayload("acme", f"s-{user}", user, actions=[click]))
        ...         await pipeline.drain()
        ...         retriever = AutoplayRetriever(pipeline, scope="user_id")
        ...         return await retriever.ainvoke("who exports?", {"configurable": {"user_id": "ann"}})
        >>> [document.metadata["session_id"] for document in asyncio.run(main())]
        ['s-ann']
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    pipeline: IngestPipeline = Field(exclude=True, repr=False)
    scope: Scope | None
    k: int = Field(default=5, ge=1)

    def __init__(self, pipeline: IngestPipeline, *, scope: Scope | None, **fields: Any) -> None:
        super().__init__(**{"pipeline": pipeline, "scope": scope, **fields})

    def invoke(
        self, input: str, config: RunnableConfig | None = None, **kwargs: Any
    ) -> list[Document]:
        """The documents nearest in meaning to a question, best first.

        Works in any thread, and inside a running loop, which it holds up meanwhile.

        Args:
            input: The question.
            config: Holds the id that the scope asks for.
            kwargs: `k`, to take the place of the retriever's own.

        Raises:
            ConfigurationError: If the id is missing.
            AutoplayError: As `IngestPipeline.search`.
        """
        config = ensure_config(config)
        return super().invoke(input, config, **kwargs, scope_id=self._scope_id(config))

    async def ainvoke(
        self, input: str, config: RunnableConfig | None = None, **kwargs: Any
    ) -> list[Document]:
        """As `invoke`, without holding up the loop."""
        config = ensure_config(config)
        return await super().ainvoke(input, config, **kwargs, scope_id=self._scope_id(config))

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,  # noqa: ARG002 - the base class gives it
        scope_id: str | None = None,
        k: int | None = None,
    ) -> list[Document]:
        hits = self.pipeline.search_sync(query, k or self.k, filter=self._filter(scope_id))
        return [_document(hit) for hit in hits]

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,  # noqa: ARG002 - the base class gives it
        scope_id: str | None = None,
        k: int | None = None,
    ) -> list[Document]:
        hits = await self.pipeline.search(query, k or self.k, filter=self._filter(scope_id))
        return [_document(hit) for hit in hits]

    def _scope_id(self, config: RunnableConfig) -> str | None:
        if self.scope is None:
            return None
        for place in (config.get("configurable"), config.get("metadata")):
            found = (place or {}).get(self.scope)
            if found not in (None, ""):
                return str(found)
        return None

    def _filter(self, scope_id: str | None) -> Filter:
        if self.scope is None:
            return Filter()
        if not scope_id:
            raise ConfigurationError(
                f"this retriever is limited to one {self.scope}, and the call names none: pass "
                f'config={{"configurable": {{"{self.scope}": ...}}}}; to search everyone, make one '
                "with scope=None"
            )
        conditions: dict[str, Any] = {self.scope: scope_id}
        return Filter(**conditions)


def _document(hit: Hit) -> Document:
    metadata = {**hit.metadata, "chunk_id": hit.id, "score": hit.score}
    return Document(hit.text, id=hit.id, metadata=metadata)

"""AutoplayRetriever: search what was ingested, for one user, session or product."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, Self, TypeAlias

from autoplay_rag import Filter, Hit, IngestPipeline
from autoplay_rag.errors import ConfigurationError
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
"""The id that limits a search."""


class AutoplayRetriever(BaseRetriever):
    """Search what users did, in a running `IngestPipeline`.

    With a scope, each call needs the id: `invoke(question, {"configurable": {"user_id": "u1"}})`, or
    under the same name in the call's `metadata`. A call without the id raises an error; it never
    searches all users. Take the id from your login, on your server: a caller that can choose the id
    can read that user's sessions.

    Retrievers that wrap this one (`MultiQueryRetriever`, `ContextualCompressionRetriever`) do not pass
    on `configurable`: give the id in the call's `metadata`.

    Args:
        pipeline: The pipeline to search; it must be running.
        scope: "user_id", "session_id" or "product_id", or a tuple of them; each call needs all of
            them. None searches all sessions and has no default, so it must be written out.
        k: The maximum number of documents; a call may pass its own.
        filter: Conditions for every call, such as `Filter(kind="summary")`.

    Raises:
        ConfigurationError: If an id is in the scope and in the filter.

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

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    pipeline: IngestPipeline = Field(exclude=True, repr=False)
    scope: Scope | Annotated[tuple[Scope, ...], Field(min_length=1)] | None
    k: int = Field(default=5, ge=1)
    filter: Filter | None = None

    def __init__(
        self,
        pipeline: IngestPipeline,
        *,
        scope: Scope | tuple[Scope, ...] | None,
        **fields: Any,
    ) -> None:
        super().__init__(**{"pipeline": pipeline, "scope": scope, **fields})
        for name in self._scopes:
            if self.filter and getattr(self.filter, name) is not None:
                raise ConfigurationError(
                    f"{name} is both in the scope and in the filter: remove it from one of them"
                )

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        # The copy shares the running pipeline.
        memo = {} if memo is None else memo
        memo[id(self.pipeline)] = self.pipeline
        return super().__deepcopy__(memo)

    def invoke(
        self, input: str, config: RunnableConfig | None = None, **kwargs: Any
    ) -> list[Document]:
        """Return the documents nearest in meaning to a question, best first.

        Works in any thread. Inside a running loop it blocks the loop.

        Args:
            input: The question.
            config: Contains the ids of the scope.
            kwargs: `k`, instead of the retriever's own.

        Raises:
            ConfigurationError: If an id is missing.
            AutoplayError: As `IngestPipeline.search`.
        """
        config = ensure_config(config)
        return super().invoke(input, config, **kwargs, scope_ids=self._ids(config))

    async def ainvoke(
        self, input: str, config: RunnableConfig | None = None, **kwargs: Any
    ) -> list[Document]:
        """Return the documents as `invoke` does, without blocking the loop."""
        config = ensure_config(config)
        return await super().ainvoke(input, config, **kwargs, scope_ids=self._ids(config))

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,  # noqa: ARG002 - the base class gives it
        scope_ids: Mapping[str, str] | None = None,
        k: int | None = None,
    ) -> list[Document]:
        hits = self.pipeline.search_sync(query, self._most(k), filter=self._limit(scope_ids))
        return [_document(hit) for hit in hits]

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,  # noqa: ARG002 - the base class gives it
        scope_ids: Mapping[str, str] | None = None,
        k: int | None = None,
    ) -> list[Document]:
        hits = await self.pipeline.search(query, self._most(k), filter=self._limit(scope_ids))
        return [_document(hit) for hit in hits]

    def _most(self, k: int | None) -> int:
        return self.k if k is None else k

    @property
    def _scopes(self) -> tuple[Scope, ...]:
        if self.scope is None:
            return ()
        return self.scope if isinstance(self.scope, tuple) else (self.scope,)

    def _ids(self, config: RunnableConfig) -> dict[str, str]:
        # A retriever that wraps this one passes on only its callbacks; they contain the metadata.
        around = getattr(config.get("callbacks"), "metadata", None)
        found: dict[str, str] = {}
        for place in (around, config.get("metadata"), config.get("configurable")):
            for name in self._scopes:
                if (value := (place or {}).get(name)) not in (None, ""):
                    found[name] = str(value)
        return found

    def _limit(self, scope_ids: Mapping[str, str] | None) -> Filter:
        conditions: dict[str, Any] = dict(scope_ids or {})
        if missing := [name for name in self._scopes if name not in conditions]:
            example = ", ".join(f'"{name}": ...' for name in missing)
            raise ConfigurationError(
                f"this retriever is limited to one {' and one '.join(missing)}, but the call has "
                f'none: pass config={{"configurable": {{{example}}}}}, or "metadata" instead of '
                '"configurable" to a retriever that wraps this one; to search all users, make a '
                "retriever with scope=None"
            )
        return replace(self.filter or Filter(), **conditions)


def _document(hit: Hit) -> Document:
    metadata = {**hit.metadata, "chunk_id": hit.id, "score": hit.score}
    return Document(hit.text, id=hit.id, metadata=metadata)

"""AutoplayRetriever: search what was ingested, for one user, session or product."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeAlias

from autoplay_rag import Filter, IngestPipeline, ServeClient
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.loading import (
    Finder,
    FoundText,
    Mode,
    Moment,
    Reader,
    Rerank,
    SearchBy,
    narrowed,
    reader_of,
)
from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig, ensure_config
from pydantic import ConfigDict, Field

from langchain_autoplay.ids import resolve_ids

__all__ = ["AutoplayRetriever", "Scope"]

Scope: TypeAlias = Literal["user_id", "session_id", "product_id"]
"""The id that limits a search."""


class AutoplayRetriever(BaseRetriever):
    """Search what users did, in a running or a served `IngestPipeline`.

    A document is a session or a chunk. It starts with a line that says when and where it was. Its
    metadata always has `date` (ISO, UTC), `page`, `user_id`, `session_id`, `score`, `dense_score`,
    `text_score`, `matched` (the lines that answer the question) and `sessions` (how many sessions have
    this very text); None where unknown.

    With a scope, each call needs the id, in one of three places: the context of the LangGraph run,
    `invoke(question, {"configurable": {"user_id": "u1"}})`, or the call's `metadata`. A call without the
    id raises an error; it never searches all users. Take the id from your login, on your server: a
    caller that can choose the id can read that user's sessions.

    A call may narrow the search: `invoke(question, k=3, since="7d", until=..., kind="actions")`.

    Retrievers that wrap this one (`MultiQueryRetriever`, `ContextualCompressionRetriever`) do not pass
    on `configurable`: outside a graph, give the id in the call's `metadata`.

    Args:
        pipeline: The pipeline to search; it must be running. Or the URL of `autoplay-rag serve`, with
            the key in `AUTOPLAY_RAG_KEY`, or a `ServeClient`, which has the timeout.
        scope: "user_id", "session_id" or "product_id", or a tuple of them; each call needs all of
            them. None searches all sessions and has no default, so it must be written out.
        search: "sessions", or "chunks": parts of sessions.
        mode: "hybrid" adds both sides; "dense" compares meaning alone, "text" words alone.
        k: The maximum number of documents; a call may pass its own.
        filter: Conditions for every call, such as `Filter(kind="summary")`.
        collapse: Give equal texts once: the latest.
        rerank: An async function of the question and hits that returns them in another order; see
            `IngestPipeline.search`.

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

    pipeline: Reader = Field(exclude=True, repr=False)
    scope: Scope | Annotated[tuple[Scope, ...], Field(min_length=1)] | None
    search: SearchBy = "sessions"
    mode: Mode = "hybrid"
    k: int = Field(default=5, ge=1)
    filter: Filter | None = None
    collapse: bool = True
    rerank: Rerank | None = Field(default=None, exclude=True, repr=False)

    def __init__(
        self,
        pipeline: IngestPipeline | ServeClient | str,
        *,
        scope: Scope | tuple[Scope, ...] | None,
        **fields: Any,
    ) -> None:
        super().__init__(**{"pipeline": reader_of(pipeline), "scope": scope, **fields})
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
        """Return the documents that answer a question best, best first.

        Works in any thread. Inside a running loop it blocks the loop.

        Args:
            input: The question.
            config: Contains the ids of the scope, if the run's context does not.
            kwargs: `k` instead of the retriever's own; `since`, `until` and `kind` as in
                `IngestPipeline.search`, besides the retriever's filter.

        Raises:
            ConfigurationError: If an id is missing, two places name different ids, or the filter
                has another `kind`.
            AutoplayError: As `IngestPipeline.search`.
        """
        config = ensure_config(config)
        return super().invoke(input, config, **kwargs, around=config)

    async def ainvoke(
        self, input: str, config: RunnableConfig | None = None, **kwargs: Any
    ) -> list[Document]:
        """Return the documents as `invoke` does, without blocking the loop."""
        config = ensure_config(config)
        return await super().ainvoke(input, config, **kwargs, around=config)

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,  # noqa: ARG002 - the base class gives it
        around: RunnableConfig | None = None,
        k: int | None = None,
        **limits: Any,
    ) -> list[Document]:
        found = self._finder.find_sync(query, self._most(k), self._limit(around, **limits))
        return [_document(one) for one in found]

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,  # noqa: ARG002 - the base class gives it
        around: RunnableConfig | None = None,
        k: int | None = None,
        **limits: Any,
    ) -> list[Document]:
        found = await self._finder.find(query, self._most(k), self._limit(around, **limits))
        return [_document(one) for one in found]

    @property
    def _finder(self) -> Finder:
        return Finder(
            pipeline=self.pipeline,
            search=self.search,
            mode=self.mode,
            collapse=self.collapse,
            rerank=self.rerank,
        )

    def _most(self, k: int | None) -> int:
        return self.k if k is None else k

    @property
    def _scopes(self) -> tuple[Scope, ...]:
        if self.scope is None:
            return ()
        return self.scope if isinstance(self.scope, tuple) else (self.scope,)

    def _limit(
        self,
        config: RunnableConfig | None,
        *,
        since: Moment | None = None,
        until: Moment | None = None,
        kind: str | None = None,
    ) -> Filter:
        ids: Mapping[str, str] = resolve_ids(config, names=self._scopes)
        if missing := [name for name in self._scopes if name not in ids]:
            example = ", ".join(f'"{name}": ...' for name in missing)
            raise ConfigurationError(
                f"this retriever is limited to one {' and one '.join(missing)}, but the call has "
                f'none: pass config={{"configurable": {{{example}}}}}, or "metadata" instead of '
                '"configurable" to a retriever that wraps this one; to search all users, make a '
                "retriever with scope=None"
            )
        return narrowed(self.filter, since=since, until=until, kind=kind, **ids)


def _document(found: FoundText) -> Document:
    text = found.text
    if found.id != found.metadata["chunk_id"]:  # a session: say which of its lines answer
        matched = " ".join(str(found.metadata["matched"]).split("\n"))
        text = f"Matched: {matched}\n\n{text}"
    if found.heading:
        text = f"{found.heading}\n{text}"
    return Document(text, id=found.id, metadata=found.metadata)

"""AutoplayRetriever: search what users did, in query engines and chat engines."""

from __future__ import annotations

import copy
from typing import Any, Self

from autoplay_rag import Filter, IngestPipeline, ServeClient
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.loading import (
    Finder,
    FoundText,
    Mode,
    Moment,
    Rerank,
    SearchBy,
    check_above,
    narrowed,
    reader_of,
)
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

__all__ = ["AutoplayRetriever"]

_SHOWN = ("date", "page")
"""The metadata that a model sees."""


class AutoplayRetriever(BaseRetriever):
    """Search what users did, in a running or a served `IngestPipeline`.

    A node is a session or a chunk. Its metadata has, where known, `date` (ISO, UTC), `page`,
    `user_id`, `session_id`, `score`, `dense_score`, `text_score`, `matched` (the lines that answer the
    question) and `sessions` (how many sessions have this very text). A model sees `date`, `page` and, for
    a session, `matched`.

    Take `user_id` from your login, on your server, and make a retriever for each user: this costs
    nothing. Text from pages is untrusted and may try to instruct the model.

    Args:
        pipeline: The pipeline to search; it must be running. Or the URL of `autoplay-rag serve`, with
            the key in `AUTOPLAY_RAG_KEY`, or a `ServeClient`, which has the timeout.
        user_id: The person. None searches all users and has no default, so it must be written out.
        search: "sessions", or "chunks": parts of sessions.
        mode: "hybrid" adds both sides; "dense" compares meaning alone, "text" words alone.
        k: The maximum number of nodes.
        since: Only what ended then or later; see `IngestPipeline.search`.
        until: Only what started then or earlier.
        kind: Only "actions", "summary" or "chat".
        filter: More conditions, such as `Filter(product_id="acme")`.
        collapse: Give equal texts once: the latest.
        rerank: An async function of the question and hits that returns them in another order; see
            `IngestPipeline.search`.

    Raises:
        ConfigurationError: If `user_id` is empty, `k` is below 1, a time cannot be used, or `filter`
            has another user or kind.

    Example:
        >>> import asyncio
        >>> from autoplay_rag import ActionsPayload, SlimAction
        >>> from autoplay_rag.stores import MemoryStore
        >>> async def main():
        ...     async with IngestPipeline(MemoryStore()) as pipeline:
        ...         for user in ("ann", "bob"):
        ...             click = SlimAction("Export", f"{user} clicked Export")
        ...             await pipeline.on_actions(ActionsPayload("acme", f"s-{user}", user, actions=[click]))
        ...         return await AutoplayRetriever(pipeline, user_id="ann").aretrieve("who exports?")
        >>> [found.metadata["session_id"] for found in asyncio.run(main())]
        ['s-ann']
    """

    def __init__(
        self,
        pipeline: IngestPipeline | ServeClient | str,
        *,
        user_id: str | None,
        search: SearchBy = "sessions",
        mode: Mode = "hybrid",
        k: int = 5,
        since: Moment | None = None,
        until: Moment | None = None,
        kind: str | None = None,
        filter: Filter | None = None,
        collapse: bool = True,
        rerank: Rerank | None = None,
        **fields: Any,
    ) -> None:
        super().__init__(**fields)
        if user_id == "":
            raise ConfigurationError("user_id is empty; None searches all users")
        check_above("k", k, whole=True)
        self._finder = Finder(
            pipeline=reader_of(pipeline), search=search, mode=mode, collapse=collapse, rerank=rerank
        )
        self._k = k
        self._filter = filter
        self._user_id = user_id
        self._since = since
        self._until = until
        self._kind = kind
        self._limit()

    def narrowed(
        self,
        *,
        k: int | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        kind: str | None = None,
    ) -> Self:
        """Return a copy for other calls: `retriever.narrowed(k=3, since="7d").retrieve(question)`.

        Args:
            k: The maximum number of nodes, instead of this retriever's own.
            since: Besides this retriever's own: the later one holds.
            until: Besides this retriever's own: the earlier one holds.
            kind: "actions", "summary" or "chat".

        Raises:
            ConfigurationError: If a value cannot be used, or this retriever has another `kind`.
        """
        other = copy.copy(self)
        if k is not None:
            check_above("k", k, whole=True)
            other._k = k  # noqa: SLF001
        other._filter = narrowed(self._limit(), since=since, until=until, kind=kind)  # noqa: SLF001
        other._limit()  # noqa: SLF001
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # The copy shares the running pipeline.
        return copy.copy(self)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        found = self._finder.find_sync(query_bundle.query_str, self._k, self._limit())
        return [_node(one) for one in found]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        found = await self._finder.find(query_bundle.query_str, self._k, self._limit())
        return [_node(one) for one in found]

    def _limit(self) -> Filter:
        # Made anew for each search: "7d" counts from now.
        return narrowed(
            self._filter,
            user_id=self._user_id,
            kind=self._kind,
            since=self._since,
            until=self._until,
        )


def _node(found: FoundText) -> NodeWithScore:
    metadata = {key: value for key, value in found.metadata.items() if value is not None}
    shown = _SHOWN if found.id == metadata["chunk_id"] else (*_SHOWN, "matched")
    node = TextNode(
        id_=found.id,
        text=found.text,
        metadata=metadata,
        excluded_embed_metadata_keys=list(metadata),
        excluded_llm_metadata_keys=[key for key in metadata if key not in shown],
    )
    return NodeWithScore(node=node, score=found.score)

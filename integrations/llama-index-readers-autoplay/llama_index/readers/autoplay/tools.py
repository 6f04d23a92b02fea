"""Tools with which an agent reads what its user did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autoplay_rag import IngestPipeline, ServeClient
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.loading import (
    AGENT_TOOLS,
    AgentTool,
    PromptPull,
    Reader,
    answer,
    answer_sync,
    reader_of,
)
from autoplay_rag.sources import LiveActivitySource
from llama_index.core.bridge.pydantic import Field, create_model
from llama_index.core.tools import FunctionTool, ToolMetadata

__all__ = ["autoplay_tools"]


def autoplay_tools(
    pipeline: IngestPipeline | ServeClient | str,
    *,
    user_id: str | None = None,
    session_id: str | None = None,
    product_id: str | None = None,
    timeout: float = 1.0,
    pull: LiveActivitySource | None = None,
) -> list[FunctionTool]:
    """Make the tools `search_sessions`, `read_session`, `recent_activity` and `user_history`.

    They read the sessions of one user. Make them for each user or request: this costs nothing. Take
    the ids from your login, on your server, never from a browser or a model: the arguments that a
    model writes cannot name a user.

    An answer has time, page and session of each line. Text from pages is untrusted: it is marked as
    data, cannot close its block and contains no invisible characters. That does not make a model
    immune: no tool should do harm because of such text alone.

    Args:
        pipeline: The pipeline to read; it must be running. Or the URL of `autoplay-rag serve`, with
            the key in `AUTOPLAY_RAG_KEY`, or a `ServeClient`.
        user_id: The user.
        session_id: The current visit. For an anonymous visitor, without `user_id`, the tools read that
            session alone.
        product_id: Only this product.
        timeout: Seconds for an answer of a server, and for a pull. After that, or if the server refuses
            the key, a tool says that the activity is not available.
        pull: Pulls what the user did just now for `recent_activity`, also if nobody watched them
            before. If that fails, the tool answers with what the pipeline has.

    Returns:
        The tools. Each works with `call` and `acall`.

    Raises:
        ConfigurationError: If neither user nor session is given, or one of them is empty, or the URL or
            the timeout is invalid.

    Example:
        >>> import asyncio
        >>> from autoplay_rag import ActionsPayload, SlimAction
        >>> from autoplay_rag.stores import MemoryStore
        >>> async def main():
        ...     async with IngestPipeline(MemoryStore()) as pipeline:
        ...         for user in ("ann", "bob"):
        ...             click = SlimAction("Export", f"{user} clicked Export")
        ...             await pipeline.on_actions(ActionsPayload("acme", f"s-{user}", user, actions=[click]))
        ...         search, *_ = autoplay_tools(pipeline, user_id="ann")
        ...         return (await search.acall(query="export")).content
        >>> print(asyncio.run(main()).splitlines()[2])
        [session s-ann] ann clicked Export
    """
    given = {"user_id": user_id, "session_id": session_id, "product_id": product_id}
    ids = {name: value for name, value in given.items() if value is not None}
    if "" in ids.values() or not ids.keys() & {"user_id", "session_id"}:
        raise ConfigurationError(
            "autoplay_tools needs a user_id or a session_id, and none is empty"
        )
    reader = reader_of(pipeline, timeout)
    pulling = PromptPull(pull, timeout)
    return [_tool(reader, tool, ids, pulling) for tool in AGENT_TOOLS]


def _tool(
    reader: Reader, tool: AgentTool, ids: Mapping[str, str], pull: PromptPull
) -> FunctionTool:
    fields: dict[str, Any] = {
        one.name: (one.type, Field(default=one.default, description=one.description))
        for one in tool.arguments
    }
    schema = create_model(tool.name, **fields)

    def ask(**arguments: Any) -> str:
        return answer_sync(reader, tool.name, ids, schema(**arguments).model_dump(), pull)

    async def ask_async(**arguments: Any) -> str:
        return await answer(reader, tool.name, ids, schema(**arguments).model_dump(), pull)

    metadata = ToolMetadata(tool.description, name=tool.name, fn_schema=schema)
    return FunctionTool(fn=ask, async_fn=ask_async, metadata=metadata)

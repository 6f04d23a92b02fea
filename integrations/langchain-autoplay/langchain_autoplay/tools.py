"""Tools with which an agent reads what its user did."""

from __future__ import annotations

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
from langchain_core.tools import BaseTool, StructuredTool
from pydantic import Field, create_model

from langchain_autoplay.ids import resolve_ids

__all__ = ["autoplay_tools"]

_NAMES = ("user_id", "session_id", "product_id")


def autoplay_tools(
    pipeline: IngestPipeline | ServeClient | str,
    *,
    user_id: str | None = None,
    timeout: float = 1.0,
    pull: LiveActivitySource | None = None,
) -> list[BaseTool]:
    """Make the tools `search_sessions`, `read_session`, `recent_activity` and `user_history`.

    They read the sessions of one user. Who that is comes from the run's context
    (`agent.invoke(..., context={"user_id": "u1"})`), from `configurable` or from `metadata` of the
    config: never from the arguments that a model writes. Without an id, a call raises an error. For an
    anonymous visitor, give `session_id`: the tools then read that session alone. `product_id` limits
    them to one product. Take the ids from your login, on your server, never from a browser or a model.

    An answer has time, page and session of each line. Text from pages is untrusted: it is marked as
    data, cannot close its block and contains no invisible characters. That does not make a model
    immune: no tool should do harm because of such text alone.

    Args:
        pipeline: The pipeline to read; it must be running. Or the URL of `autoplay-rag serve`, with
            the key in `AUTOPLAY_RAG_KEY`, or a `ServeClient`.
        user_id: The user of every call. A run that names another one raises an error. None leaves it
            to the run.
        timeout: Seconds for an answer of a server, and for a pull. After that, or if the server refuses
            the key, a tool says that the activity is not available.
        pull: Pulls what the user did just now for `recent_activity`, also if nobody watched them
            before. If that fails, the tool answers with what the pipeline has.

    Returns:
        The tools. Each works with `invoke` and `ainvoke`.

    Raises:
        ConfigurationError: If `user_id` is empty, or the URL or the timeout is invalid.

    Example:
        >>> import asyncio
        >>> from autoplay_rag import ActionsPayload, SlimAction
        >>> from autoplay_rag.stores import MemoryStore
        >>> async def main():
        ...     async with IngestPipeline(MemoryStore()) as pipeline:
        ...         for user in ("ann", "bob"):
        ...             click = SlimAction("Export", f"{user} clicked Export")
        ...             await pipeline.on_actions(ActionsPayload("acme", f"s-{user}", user, actions=[click]))
        ...         search, *_ = autoplay_tools(pipeline)
        ...         return await search.ainvoke({"query": "export"}, {"configurable": {"user_id": "ann"}})
        >>> print(asyncio.run(main()).splitlines()[2])
        [session s-ann] ann clicked Export
    """
    if user_id == "":
        raise ConfigurationError("user_id is empty; None leaves it to the run")
    reader = reader_of(pipeline, timeout)
    pulling = PromptPull(pull, timeout)
    return [_tool(reader, tool, user_id, pulling) for tool in AGENT_TOOLS]


def _tool(reader: Reader, tool: AgentTool, user_id: str | None, pull: PromptPull) -> BaseTool:
    def ask(**arguments: Any) -> str:
        return answer_sync(reader, tool.name, _ids(user_id), arguments, pull)

    async def ask_async(**arguments: Any) -> str:
        return await answer(reader, tool.name, _ids(user_id), arguments, pull)

    fields: dict[str, Any] = {
        one.name: (one.type, Field(default=one.default, description=one.description))
        for one in tool.arguments
    }
    return StructuredTool.from_function(
        func=ask,
        coroutine=ask_async,
        name=tool.name,
        description=tool.description,
        args_schema=create_model(tool.name, **fields),
    )


def _ids(user_id: str | None) -> dict[str, str]:
    # Called inside the tool: LangChain has set the config of the call, and LangGraph its context.
    return resolve_ids(given=("autoplay_tools(user_id=...)", {"user_id": user_id}), names=_NAMES)

"""Callback handlers that record questions and answers in the user's session."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Self
from uuid import UUID

from autoplay_rag import ChatTurn, IngestPipeline
from autoplay_rag.errors import ConfigurationError
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.messages import BaseMessage
from langchain_core.runnables.config import var_child_runnable_config

from langchain_autoplay.ids import resolve_ids
from langchain_autoplay.turns import Exchange, Turns, answer_of, question_of

__all__ = ["AutoplayCallbackHandler", "SyncAutoplayCallbackHandler"]

_log = logging.getLogger(__name__)


class SyncAutoplayCallbackHandler(BaseCallbackHandler):
    """The `AutoplayCallbackHandler` for chains that are invoked synchronously.

    It works in any thread, also in that of the pipeline's loop, and never waits: it passes turns to
    the pipeline's loop.

    Args:
        pipeline: See `AutoplayCallbackHandler`.
        question: See `AutoplayCallbackHandler`.
        answer: See `AutoplayCallbackHandler`.
        clock: See `AutoplayCallbackHandler`.
    """

    def __init__(
        self,
        pipeline: IngestPipeline,
        *,
        question: Callable[[Any], str] = question_of,
        answer: Callable[[Any], str] = answer_of,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._pipeline = pipeline
        self._turns = Turns(question, answer)
        self._clock = clock
        self._said: set[str] = set()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # A copy would not know the open runs.
        return self

    def on_chain_start(
        self,
        serialized: dict[str, Any],  # noqa: ARG002 - what LangChain calls with
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,  # noqa: ARG002 - what LangChain calls with
    ) -> None:
        """Note the start of a run."""
        with _NeverRaising():
            around = _around(parent_run_id)
            self._turns.started(run_id, around, inputs, metadata)
            self._read_ids(run_id, around)

    def on_chat_model_start(
        self, serialized: dict[str, Any], messages: list[list[BaseMessage]], **kwargs: Any
    ) -> None:
        """Note the call of a chat model, with or without a chain."""
        self.on_chain_start(serialized, messages, **kwargs)

    def on_llm_start(self, serialized: dict[str, Any], prompts: list[str], **kwargs: Any) -> None:
        """Note the call of a model, with or without a chain."""
        self.on_chain_start(serialized, prompts, **kwargs)

    def on_tool_start(
        self,
        serialized: dict[str, Any],
        input_str: str,  # noqa: ARG002 - what LangChain calls with
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        """Note the use of a tool."""
        with _NeverRaising():
            name = kwargs.get("name") or (serialized or {}).get("name") or "tool"
            around = _around(parent_run_id)
            self._turns.used(str(name), run_id, around)
            self._read_ids(run_id, around)

    def on_retriever_start(
        self,
        serialized: dict[str, Any],  # noqa: ARG002 - what LangChain calls with
        query: str,  # noqa: ARG002 - what LangChain calls with
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,  # noqa: ARG002 - what LangChain calls with
    ) -> None:
        """Note the use of a retriever. A model that it calls is not a turn."""
        with _NeverRaising():
            self._turns.used(None, run_id, _around(parent_run_id))

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Record the turn of a run that succeeded."""
        self.record(outputs, run_id, kwargs.get("inputs"))

    def on_llm_end(self, response: Any, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002 - what LangChain calls with
        """Record the turn of a model that has answered."""
        self.record(response, run_id)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002 - what LangChain calls with
        """Forget a run that failed."""
        self._turns.dropped(run_id)

    on_llm_error = on_chain_error
    on_tool_error = on_chain_error
    on_retriever_error = on_chain_error

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002 - what LangChain calls with
        """Note the end of a tool; its calls belong to the same turn."""
        self._turns.dropped(run_id)

    def on_retriever_end(
        self,
        documents: Sequence[Document],  # noqa: ARG002 - what LangChain calls with
        *,
        run_id: UUID,
        **kwargs: Any,  # noqa: ARG002 - what LangChain calls with
    ) -> None:
        """Note the end of a retriever; its calls belong to the same turn."""
        self._turns.dropped(run_id)

    def record(self, outputs: Any, run_id: UUID, inputs: Any = None) -> asyncio.Future[Any] | None:
        """Note the end of a run, and pass its turn to the pipeline.

        Returns:
            In the pipeline's loop a future that is done when the turn is in the journal; else None.
        """
        with _NeverRaising():
            exchange = self._turns.ended(run_id, outputs, inputs)
            turn = self._turn(exchange) if exchange else None
            return self._hand_over(turn) if turn else None
        return None

    def _read_ids(self, run_id: UUID, around: UUID | None) -> None:
        """Read what only a run inside another one can see: the context and the config of that."""
        if around is None:
            return
        try:
            self._turns.about(run_id, resolve_ids())
        except ConfigurationError:
            self._turns.about(run_id, None)

    def _turn(self, exchange: Exchange) -> ChatTurn | None:
        ids = exchange.ids
        if ids is None:
            self._say_once(
                "the context, the configurable and the metadata of its run name different ids"
            )
            return None
        if "session_id" not in ids:
            self._say_once(
                'its run names no session: pass config={"metadata": {"session_id": ...}}'
            )
            return None
        known = self._pipeline.live.get(
            session_id=ids["session_id"], product_id=ids.get("product_id")
        )
        if known and known.user_id and ids.get("user_id", known.user_id) != known.user_id:
            self._say_once("its user_id is not that of its session")
            return None
        return ChatTurn(
            product_id=ids.get("product_id") or (known.product_id if known else ""),
            session_id=ids["session_id"],
            user_id=ids.get("user_id") or (known.user_id if known else None),
            conversation_id=ids.get("conversation_id"),
            question=exchange.question,
            answer=exchange.answer,
            tools=exchange.tools,
            forwarded_at=self._clock(),
        )

    def _hand_over(self, turn: ChatTurn) -> asyncio.Future[Any] | None:
        loop = self._pipeline.loop
        if _running_loop() is not loop:
            loop.call_soon_threadsafe(self._accept, turn)
            return None
        return self._accept(turn)

    def _accept(self, turn: ChatTurn) -> asyncio.Future[Any] | None:
        with _NeverRaising():
            accepted = self._pipeline.accept(turn)
            accepted.add_done_callback(_report)
            return accepted
        return None

    def _say_once(self, why: str) -> None:
        if why not in self._said:
            self._said.add(why)
            _log.warning("a chat turn was not recorded: %s (said once)", why)


class AutoplayCallbackHandler(AsyncCallbackHandler):
    """Record each run as a chat turn of the user's session, so that later questions find it.

    Pass the handler to a call: `chain.ainvoke(question, {"callbacks": [handler], "metadata":
    {"session_id": "s1"}})`. Question, answer and the names of the tools become a `ChatTurn` of kind
    "chat". The pipeline stores it with what the user did. The ids are read from the run's context,
    its `configurable` and its metadata. A run without a `session_id` is not recorded, and neither is a
    run whose places name different ids. Without `user_id` and `product_id`, those of the known session
    are used. Of a model or a function that you call on its own, LangChain shows only the metadata.

    A failure in the handler is logged and never reaches the chain. In the pipeline's loop, the turn is
    in the journal when `ainvoke` returns. In other loops it is passed to the pipeline's loop.

    Args:
        pipeline: Stores the turns; it must be running.
        question: Finds the question in a run's input; by default the latest human message, or the
            value of "input", "question" or "query".
        answer: Finds the answer in a run's output; by default the latest AI message, or the value of
            "output", "answer" or "result".
        clock: Returns the time in Unix seconds.

    Example:
        >>> from autoplay_rag.stores import MemoryStore
        >>> from langchain_core.runnables import RunnableLambda
        >>> async def main():
        ...     async with IngestPipeline(MemoryStore()) as pipeline:
        ...         chain = RunnableLambda(lambda question: "Under Reports.")
        ...         handler = AutoplayCallbackHandler(pipeline)
        ...         config = {"callbacks": [handler], "metadata": {"session_id": "s1"}}
        ...         await chain.ainvoke("Where is the export?", config)
        ...         await pipeline.drain()
        ...         return await pipeline.search("Where did they look for exports?", kind="chat")
        >>> asyncio.run(main())[0].session_id
        's1'
    """

    def __init__(
        self,
        pipeline: IngestPipeline,
        *,
        question: Callable[[Any], str] = question_of,
        answer: Callable[[Any], str] = answer_of,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._handler = SyncAutoplayCallbackHandler(
            pipeline, question=question, answer=answer, clock=clock
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # A copy would not know the open runs.
        return self

    async def on_chain_start(self, *args: Any, **kwargs: Any) -> None:
        """Note the start of a run."""
        self._handler.on_chain_start(*args, **kwargs)

    on_chat_model_start = on_chain_start
    on_llm_start = on_chain_start

    async def on_tool_start(self, *args: Any, **kwargs: Any) -> None:
        """Note the use of a tool."""
        self._handler.on_tool_start(*args, **kwargs)

    async def on_retriever_start(self, *args: Any, **kwargs: Any) -> None:
        """Note the use of a retriever."""
        self._handler.on_retriever_start(*args, **kwargs)

    async def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Record the turn of a run that succeeded."""
        journalled = self._handler.record(outputs, run_id, kwargs.get("inputs"))
        if journalled is not None:
            await asyncio.wait([journalled])

    async def on_llm_end(self, response: Any, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002 - what LangChain calls with
        """Record the turn of a model that has answered."""
        await self.on_chain_end(response, run_id=run_id)

    async def on_chain_error(self, *args: Any, **kwargs: Any) -> None:
        """Forget a run that failed."""
        self._handler.on_chain_error(*args, **kwargs)

    on_llm_error = on_chain_error
    on_tool_error = on_chain_error
    on_retriever_error = on_chain_error

    async def on_tool_end(self, *args: Any, **kwargs: Any) -> None:
        """Note the end of a tool."""
        self._handler.on_tool_end(*args, **kwargs)

    async def on_retriever_end(self, *args: Any, **kwargs: Any) -> None:
        """Note the end of a retriever."""
        self._handler.on_retriever_end(*args, **kwargs)


def _around(parent_run_id: UUID | None) -> UUID | None:
    """The parent run. The config that `with_fallbacks` passes on does not name it."""
    if parent_run_id is not None:
        return parent_run_id
    callbacks = (var_child_runnable_config.get() or {}).get("callbacks")
    return getattr(callbacks, "parent_run_id", None)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class _NeverRaising:
    """Logs errors instead of raising them: recording must not fail a chain."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if isinstance(error, Exception):
            # The message may contain personal data.
            _log.error("a chat turn was not recorded: %s", type(error).__name__)
        return error is None or isinstance(error, Exception)


def _report(journalled: asyncio.Future[Any]) -> None:
    if not journalled.cancelled() and (error := journalled.exception()):
        _log.error("a chat turn was not recorded: %s", type(error).__name__)

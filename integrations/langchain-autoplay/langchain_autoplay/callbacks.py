"""Callback handlers that record what was asked and answered as part of the user's session."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Self
from uuid import UUID

from autoplay_rag import ChatTurn, IngestPipeline
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.messages import BaseMessage
from langchain_core.runnables.config import var_child_runnable_config

from langchain_autoplay.turns import ID_NAMES, Exchange, Turns, answer_of, question_of

__all__ = ["AutoplayCallbackHandler", "SyncAutoplayCallbackHandler"]

_log = logging.getLogger(__name__)


class SyncAutoplayCallbackHandler(BaseCallbackHandler):
    """As `AutoplayCallbackHandler`, for chains that are invoked synchronously.

    It may be called from any thread, also in the pipeline's own loop, and never waits: turns are
    handed over to the pipeline's loop.

    Args:
        pipeline: See `AutoplayCallbackHandler`; so for the rest.
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
        # A copy would not know the runs that are under way.
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
        """A run begins."""
        with _NeverRaising():
            self._turns.started(run_id, _around(parent_run_id), inputs, metadata)

    def on_chat_model_start(
        self, serialized: dict[str, Any], messages: list[list[BaseMessage]], **kwargs: Any
    ) -> None:
        """A chat model is called, maybe without a chain."""
        self.on_chain_start(serialized, messages, **kwargs)

    def on_llm_start(self, serialized: dict[str, Any], prompts: list[str], **kwargs: Any) -> None:
        """A model is called, maybe without a chain."""
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
        """A tool is used."""
        with _NeverRaising():
            name = kwargs.get("name") or (serialized or {}).get("name") or "tool"
            self._turns.used(str(name), run_id, _around(parent_run_id))

    def on_retriever_start(
        self,
        serialized: dict[str, Any],  # noqa: ARG002 - what LangChain calls with
        query: str,  # noqa: ARG002 - what LangChain calls with
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,  # noqa: ARG002 - what LangChain calls with
    ) -> None:
        """A retriever is asked; a model that it calls answers nobody."""
        with _NeverRaising():
            self._turns.used(None, run_id, _around(parent_run_id))

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A run ends well."""
        self.record(outputs, run_id, kwargs.get("inputs"))

    def on_llm_end(self, response: Any, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002 - what LangChain calls with
        """A model has answered."""
        self.record(response, run_id)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002 - what LangChain calls with
        """A run fails: it has answered nothing."""
        self._turns.dropped(run_id)

    on_llm_error = on_chain_error
    on_tool_error = on_chain_error
    on_retriever_error = on_chain_error

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002 - what LangChain calls with
        """A tool has answered; what it called belongs to the same turn."""
        self._turns.dropped(run_id)

    def on_retriever_end(
        self,
        documents: Sequence[Document],  # noqa: ARG002 - what LangChain calls with
        *,
        run_id: UUID,
        **kwargs: Any,  # noqa: ARG002 - what LangChain calls with
    ) -> None:
        """A retriever has found something; so for what it called."""
        self._turns.dropped(run_id)

    def record(self, outputs: Any, run_id: UUID, inputs: Any = None) -> asyncio.Future[Any] | None:
        """Note the end of a run, and hand its turn over if it was one.

        Returns:
            What ends when the turn is journalled, in the pipeline's own loop; None elsewhere.
        """
        with _NeverRaising():
            exchange = self._turns.ended(run_id, outputs, inputs)
            turn = self._turn(exchange) if exchange else None
            return self._hand_over(turn) if turn else None
        return None

    def _turn(self, exchange: Exchange) -> ChatTurn | None:
        ids = {
            name: str(value)
            for name in ID_NAMES
            if (value := exchange.metadata.get(name)) not in (None, "")
        }
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
    """Records each run as a chat turn of the user's session, so that later questions find it.

    Pass it where you want it: `chain.ainvoke(question, {"callbacks": [handler], "metadata":
    {"session_id": "s1"}})`. What was asked, what was answered and which tools were used become
    a `ChatTurn`, of kind "chat", which the pipeline stores as it stores what users do. A run
    without a `session_id` in its metadata is not recorded; `user_id`, `conversation_id` and
    `product_id` are taken from there as well, person and product otherwise from what is known
    of the session.

    Nothing it does, or fails to do, reaches the chain: failures are logged. In the pipeline's
    own loop a turn is journalled when `ainvoke` returns; from elsewhere it is handed over.

    Args:
        pipeline: Takes the turns; it must be running.
        question: Finds the question in a run's input; by default the latest human message, or
            what stands under "input", "question" or "query".
        answer: Finds the answer in a run's output; by default the latest AI message, or what
            stands under "output", "answer" or "result".
        clock: Gives the time in Unix seconds.

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
        # A copy would not know the runs that are under way.
        return self

    async def on_chain_start(self, *args: Any, **kwargs: Any) -> None:
        """A run begins."""
        self._handler.on_chain_start(*args, **kwargs)

    on_chat_model_start = on_chain_start
    on_llm_start = on_chain_start

    async def on_tool_start(self, *args: Any, **kwargs: Any) -> None:
        """A tool is used."""
        self._handler.on_tool_start(*args, **kwargs)

    async def on_retriever_start(self, *args: Any, **kwargs: Any) -> None:
        """A retriever is asked."""
        self._handler.on_retriever_start(*args, **kwargs)

    async def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A run ends well."""
        journalled = self._handler.record(outputs, run_id, kwargs.get("inputs"))
        if journalled is not None:
            await asyncio.wait([journalled])

    async def on_llm_end(self, response: Any, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002 - what LangChain calls with
        """A model has answered."""
        await self.on_chain_end(response, run_id=run_id)

    async def on_chain_error(self, *args: Any, **kwargs: Any) -> None:
        """A run fails: it has answered nothing."""
        self._handler.on_chain_error(*args, **kwargs)

    on_llm_error = on_chain_error
    on_tool_error = on_chain_error
    on_retriever_error = on_chain_error

    async def on_tool_end(self, *args: Any, **kwargs: Any) -> None:
        """A tool has answered."""
        self._handler.on_tool_end(*args, **kwargs)

    async def on_retriever_end(self, *args: Any, **kwargs: Any) -> None:
        """A retriever has found something."""
        self._handler.on_retriever_end(*args, **kwargs)


def _around(parent_run_id: UUID | None) -> UUID | None:
    """The run around one; `with_fallbacks` gives what it calls its own config, which names none."""
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
    """A chain must not fail for what is recorded of it."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if isinstance(error, Exception):
            # Its message may quote what was said.
            _log.error("a chat turn was not recorded: %s", type(error).__name__)
        return error is None or isinstance(error, Exception)


def _report(journalled: asyncio.Future[Any]) -> None:
    if not journalled.cancelled() and (error := journalled.exception()):
        _log.error("a chat turn was not recorded: %s", type(error).__name__)

"""Questions and answers from the events of runs. Pure."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, convert_to_messages
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.prompt_values import PromptValue

from langchain_autoplay.ids import ids_in

__all__ = ["Exchange", "Turns", "answer_of", "question_of"]

_QUESTIONS = ("input", "question", "query")
_ANSWERS = ("output", "answer", "result")
_MOST_RUNS = 10_000
"""The maximum number of runs kept; beyond it the oldest is forgotten."""

K = TypeVar("K")
V = TypeVar("V")


def question_of(inputs: Any) -> str:
    """Find the question in a run's input; "" if there is none.

    Example:
        >>> question_of({"messages": [("user", "Where is the export?")]})
        'Where is the export?'
    """
    if isinstance(inputs, str):
        return inputs
    if messages := _messages(inputs):
        human = [message for message in messages if isinstance(message, HumanMessage)]
        return _text(human[-1]) if human else ""
    return _named(inputs, _QUESTIONS)


def answer_of(outputs: Any) -> str:
    """Find the answer in a run's output; "" if there is none.

    Example:
        >>> answer_of({"answer": "Under Reports.", "context": []})
        'Under Reports.'
    """
    if isinstance(outputs, str):
        return outputs
    if isinstance(outputs, LLMResult):
        generations = outputs.generations[-1] if outputs.generations else []
        if not generations:
            return ""
        last = generations[-1]
        return _text(last.message) if isinstance(last, ChatGeneration) else last.text
    if messages := _messages(outputs):
        # If the last message is not from the AI, the run was interrupted: no earlier one is its answer.
        return _text(messages[-1]) if isinstance(messages[-1], AIMessage) else ""
    return _named(outputs, _ANSWERS)


def _messages(value: Any) -> list[BaseMessage]:
    if isinstance(value, Mapping):
        value = value.get("messages")
    if isinstance(value, BaseMessage):
        return [value]
    if isinstance(value, PromptValue):
        return value.to_messages()
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return []
    if isinstance(value[0], list):  # a chat model takes several conversations at once
        value = value[0]
    try:
        return convert_to_messages(value)
    except (NotImplementedError, TypeError, ValueError):  # a list of something else
        return []


def _text(message: BaseMessage) -> str:
    return str(message.text)


def _named(value: Any, names: Sequence[str]) -> str:
    if not isinstance(value, Mapping):
        return ""
    found = next((value[name] for name in names if value.get(name)), "")
    if isinstance(found, str):
        return found
    return _text(found) if isinstance(found, BaseMessage) else ""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question and its answer.

    Attributes:
        question: The question; "" if it is not known.
        answer: The answer; never empty.
        tools: The names of the tools used, in order.
        ids: The known ones of `ID_NAMES`; None if two places named different ids.
    """

    question: str
    answer: str
    tools: list[str]
    ids: Mapping[str, str] | None


@dataclass(slots=True)
class _Run:
    question: str
    ids: dict[str, str] | None
    tools: list[str] = field(default_factory=list)
    under_way: int = 1
    """The number of open runs with this id. Above 1 it is not known which of them ends."""
    ambiguous: bool = False
    started_with: Mapping[str, str] = field(default_factory=dict)
    """The ids known at the start."""


class Turns:
    """Track runs by their root, the outermost known run. Thread-safe.

    Args:
        question: Finds the question in a run's input.
        answer: Finds the answer in a run's output.
    """

    def __init__(self, question: Callable[[Any], str], answer: Callable[[Any], str]) -> None:
        self._question = question
        self._answer = answer
        self._lock = threading.Lock()
        self._roots: OrderedDict[UUID, _Run] = OrderedDict()
        self._root_of: OrderedDict[UUID, UUID] = OrderedDict()

    def started(
        self, run: UUID, parent: UUID | None, inputs: Any, metadata: Mapping[str, Any] | None
    ) -> None:
        """Note the start of a run."""
        with self._lock:
            root = self._root_of.get(parent) if parent else None
            _keep(self._root_of, run, root or run)
        if root is None:
            # The input is read now: its owner may change it later.
            ids = ids_in(metadata)
            begun = _Run(self._question(inputs), dict(ids), started_with=ids)
            with self._lock:
                other = self._roots.get(run)
                if other and (
                    other.ambiguous or (other.question, other.started_with) != (begun.question, ids)
                ):
                    # Callers can choose run ids, so two users may have the same one.
                    other.under_way += 1
                    other.ambiguous = True
                else:
                    _keep(self._roots, run, begun)

    def about(self, run: UUID, ids: Mapping[str, str] | None) -> None:
        """Note the ids that a run inside another one sees.

        Args:
            run: The inner run.
            ids: Its ids; None if two places named different ids.
        """
        with self._lock:
            root = self._roots.get(self._root_of.get(run, run))
            if root is None or root.ids is None:
                return
            if ids is None or any(
                root.ids.get(name, value) != value for name, value in ids.items()
            ):
                root.ids = None
            else:
                root.ids |= ids

    def used(self, tool: str | None, run: UUID, parent: UUID | None) -> None:
        """Note the use of a tool, or of a retriever (None).

        An outermost tool or retriever is not a turn, and neither is what it calls.
        """
        with self._lock:
            root = self._root_of.get(parent) if parent else None
            _keep(self._root_of, run, root or run)
            if tool is not None and root is not None and root in self._roots:
                self._roots[root].tools.append(tool)

    def ended(self, run: UUID, outputs: Any, inputs: Any = None) -> Exchange | None:
        """Note the end of a run.

        Args:
            run: The run.
            outputs: Its output.
            inputs: Its input, if that was not known at the start.

        Returns:
            The exchange, if the run was a root and has an answer. None if another run had the same
            id at the same time: it is not known which of them has answered.
        """
        root = self.dropped(run)
        if root is None or root.ambiguous or not (answer := self._answer(outputs)):
            return None
        question = root.question or self._question(inputs) or self._question(outputs)
        return Exchange(question if question != answer else "", answer, root.tools, root.ids)

    def dropped(self, run: UUID) -> _Run | None:
        """Forget a run that failed or is not needed."""
        with self._lock:
            self._root_of.pop(run, None)
            root = self._roots.get(run)
            if root is not None:
                root.under_way -= 1
                if not root.under_way:
                    del self._roots[run]
            return root


def _keep(kept: OrderedDict[K, V], key: K, value: V) -> None:
    kept[key] = value
    if len(kept) > _MOST_RUNS:
        kept.popitem(last=False)

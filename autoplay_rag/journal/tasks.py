"""Requests of other processes that wait for an answer, as rows of the journal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from autoplay_rag.journal.base import Task

__all__ = ["ANSWER", "KEEP_ANSWERS_SECONDS", "LETTER_ACTIONS", "decode_task", "encode_task"]

ANSWER: Final = "answer "
"""The prefix of the names under which `meta` has the answers."""
KEEP_ANSWERS_SECONDS: Final = 3600.0
"""How long an answer to another process is kept. That process deletes it once it has read it."""
LETTER_ACTIONS: Final = "('retry', 'discard')"
"""The actions on dead letters, as SQL. They get no answer."""
_LATEST_SECONDS: Final = 60.0
"""An older request is dropped: the process that asked has given up."""


class _Asked(msgspec.Struct):
    token: str
    action: str
    options: dict[str, Any]
    at: float


def encode_task(task: Task) -> str:
    """Return a task as it is kept in the column of a dead letter's number."""
    asked = _Asked(task.token, task.action, dict(task.options), time.time())
    return msgspec.json.encode(asked).decode()


def decode_task(kept: object) -> Task | None:
    """Return the task of a row; None if it is too old or damaged.

    Example:
        >>> decode_task(encode_task(Task("t1", "verify", {"repair": True}))).options
        {'repair': True}
        >>> decode_task("7")
    """
    try:
        asked = msgspec.json.decode(str(kept), type=_Asked)
    except msgspec.MsgspecError:
        return None
    if time.time() - asked.at > _LATEST_SECONDS:
        return None
    options: Mapping[str, Any] = asked.options
    return Task(asked.token, asked.action, options)

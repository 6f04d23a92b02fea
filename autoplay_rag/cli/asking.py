"""Requests to the pipeline that uses a journal, from another process."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from autoplay_rag.errors import PipelineError
from autoplay_rag.journal.reader import JournalReader

__all__ = ["ask_pipeline"]

_POLL_SECONDS: Final = 0.2
_TAKEN_SECONDS: Final = 30.0
"""A running pipeline takes a request within a second or two."""


def ask_pipeline(journal: Path, action: str, options: Mapping[str, Any]) -> Any | None:
    """Have the running pipeline of a journal do something, and wait until it is done.

    Args:
        journal: The journal's file.
        action: "verify", "backup" or "forget".
        options: The arguments.

    Returns:
        Its report as plain values; None if no pipeline runs.

    Raises:
        JournalError: If the journal cannot be read or written.
        PipelineError: If the pipeline failed at it, ended, or does not take requests.
    """
    reader = JournalReader(journal)
    if not _may_run(reader):
        return None
    token = reader.give_task(action, options)
    asked = time.monotonic()
    try:
        while True:
            ended = not _may_run(reader)
            if (answer := reader.answer_of(token)) is not None:
                if "error" in answer:
                    raise PipelineError(str(answer["error"]))
                return answer["report"]
            if ended:
                raise PipelineError(
                    f"the pipeline that uses {journal} ended before it was done; run the command again"
                )
            if time.monotonic() - asked > _TAKEN_SECONDS and reader.withdraw_task(token):
                raise PipelineError(
                    f"the pipeline that uses {journal} takes no requests: see its log, or stop it and "
                    "run the command again"
                )
            time.sleep(_POLL_SECONDS)
    finally:
        reader.withdraw_task(token)


def _may_run(reader: JournalReader) -> bool:
    # None: the lock file belongs to another user, so a pipeline may be running.
    return reader.running is not False

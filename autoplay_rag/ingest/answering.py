"""Carries out the requests of other processes that wait for an answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from autoplay_rag._describe import describe
from autoplay_rag.errors import AutoplayError, JournalError
from autoplay_rag.journal.base import Queue, Task
from autoplay_rag.journal.selecting import Asked
from autoplay_rag.maintenance.backup import BackupReport
from autoplay_rag.maintenance.receipt import Receipt
from autoplay_rag.maintenance.report import VerifyReport

__all__ = ["answer_tasks"]

_log = logging.getLogger(__name__)

_POLL_SECONDS: Final = 1.0


class _Verify(Protocol):
    async def __call__(self, *, repair: bool, delete_extra: bool) -> VerifyReport: ...


class _BackUp(Protocol):
    async def __call__(self, folder: Path) -> BackupReport: ...


class _Forget(Protocol):
    async def __call__(self, asked: Asked, *, dry_run: bool, block: bool) -> Receipt: ...


async def answer_tasks(queue: Queue, verify: _Verify, backup: _BackUp, forget: _Forget) -> None:
    """Carry out tasks, one after the other, until cancelled.

    Args:
        queue: Has the tasks, and takes the answers.
        verify: As `IngestPipeline.verify`.
        backup: As `IngestPipeline.backup`.
        forget: As `Forgetting.forget`.
    """
    while True:
        try:
            for task in await queue.take_tasks():
                answer = await _answer(task, verify, backup, forget)
                await queue.answer_task(task.token, answer)
        except JournalError as error:
            _log.error("requests of other processes cannot be answered; retrying: %s", error)
        await asyncio.sleep(_POLL_SECONDS)


async def _answer(
    task: Task, verify: _Verify, backup: _BackUp, forget: _Forget
) -> Mapping[str, Any]:
    _log.info("%s: asked for by another process", task.action)
    options = task.options
    try:
        if task.action == "verify":
            report: object = await verify(
                repair=bool(options["repair"]), delete_extra=bool(options["delete_extra"])
            )
        elif task.action == "backup":
            report = await backup(Path(options["folder"]))
        elif task.action == "forget":
            asked = msgspec.convert(options["asked"], Asked)
            report = await forget(
                asked, dry_run=bool(options["dry_run"]), block=bool(options["block"])
            )
        else:
            return {"error": f"this version of autoplay-rag cannot {task.action!r}"}
    except AutoplayError as error:
        return {"error": str(error)}
    except Exception as error:  # noqa: BLE001 - told to the process that asked, and logged
        _log.exception("%s failed", task.action)
        return {"error": f"{task.action} failed: {describe(error)}"}
    return {"report": msgspec.to_builtins(report)}

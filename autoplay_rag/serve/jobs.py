"""Long work that a request starts and others watch: one job at a time, the others wait."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import msgspec

from autoplay_rag._describe import describe
from autoplay_rag.embedders.named import make_embedder
from autoplay_rag.errors import AutoplayError, ConfigurationError
from autoplay_rag.ingest.pipeline import IngestPipeline
from autoplay_rag.maintenance.progress import Progress
from autoplay_rag.stores.named import chroma_path, make_store

__all__ = ["KINDS", "Job", "JobKind", "Jobs"]

_log = logging.getLogger(__name__)

State: TypeAlias = Literal["waiting", "running", "done", "failed", "cancelled"]
JobKind: TypeAlias = Callable[[IngestPipeline, "Job"], Awaitable[Any]]
"""Does the work with `Job.options`, calls `Job.progress`, and returns a report of plain values or
a dataclass. Cancelling it must leave everything as it was or as it can be resumed. Raises
`ConfigurationError` for options that cannot be used."""

_KEPT: Final = 100
_MOST_WAITING: Final = 10


@dataclass(slots=True)
class Job:
    """One job.

    Attributes:
        kind: What it does.
        options: Its options.
        id: Its id.
        state: How far it is.
        created_at: Unix seconds.
        started_at: Unix seconds; None until then.
        ended_at: Unix seconds; None until then.
        done: Units done, as far as the kind reports them; None if unknown.
        total: Units in total; None if unknown.
        rate: Units per second; None if unknown.
        unit: What is counted: "chunks" or "bytes".
        problem: What it waits for, such as an embedder that is out of service; None if nothing.
        report: The result of a job that is done.
        error: Why it failed.
    """

    kind: str
    options: Mapping[str, Any]
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    state: State = "waiting"
    created_at: float = field(default_factory=time.time)
    started_at: float | None = None
    ended_at: float | None = None
    done: int | None = None
    total: int | None = None
    rate: float | None = None
    unit: Literal["chunks", "bytes"] = "chunks"
    problem: str | None = None
    report: Any = None
    error: str | None = None

    def progress(self, done: int, total: int | None = None) -> None:
        """Note the progress."""
        self.done, self.total = done, total

    def show(self, progress: Progress) -> None:
        """Note the progress, with its rate and what it waits for."""
        self.progress(progress.done, progress.total or None)
        self.rate, self.problem = progress.rate or None, progress.problem
        self.unit = progress.unit

    @property
    def seconds_left(self) -> float | None:
        """The estimated time that is left, in seconds; None if unknown."""
        if self.ended or self.done is None or self.total is None or self.rate is None:
            return None
        return Progress(self.done, self.total, self.rate).seconds_left

    @property
    def ended(self) -> bool:
        """Whether nothing more happens."""
        return self.state in ("done", "failed", "cancelled")


class Jobs:
    """Runs jobs one after the other.

    Args:
        pipeline: What they work on.
        kinds: The kinds by name.
    """

    def __init__(self, pipeline: IngestPipeline, kinds: Mapping[str, JobKind]) -> None:
        self._pipeline = pipeline
        self._kinds = kinds
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._one = asyncio.Lock()

    def start(self, kind: str, options: Mapping[str, Any]) -> Job:
        """Start a job.

        Raises:
            ConfigurationError: If the kind is unknown, or too many jobs wait.
        """
        if kind not in self._kinds:
            raise ConfigurationError(f"kind must be one of {', '.join(sorted(self._kinds))}")
        if len(self._tasks) > _MOST_WAITING:
            raise ConfigurationError(f"{len(self._tasks)} jobs wait already: cancel some of them")
        job = Job(kind, options)
        self._jobs[job.id] = job
        task = asyncio.create_task(self._run(job), name=f"autoplay-job-{kind}")
        self._tasks[job.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(job.id, None))
        ended = [one.id for one in self._jobs.values() if one.ended]
        for old in ended[: max(0, len(self._jobs) - _KEPT)]:
            del self._jobs[old]
        return job

    def get(self, id: str) -> Job | None:
        """Return a job; None if there is none of this id."""
        return self._jobs.get(id)

    def all(self) -> list[Job]:
        """Return the jobs, the latest first."""
        return list(reversed(self._jobs.values()))

    async def cancel(self, id: str) -> Job | None:
        """Cancel a job, and wait until it ended. Returns it; None if there is none of this id."""
        job, task = self._jobs.get(id), self._tasks.get(id)
        if job is not None and task is not None:
            task.cancel()
            await asyncio.wait([task])
            if not job.ended:  # cancelled before its first step
                job.state, job.ended_at = "cancelled", time.time()
        return job

    async def aclose(self) -> None:
        """Cancel all jobs."""
        for one in list(self._tasks):
            await self.cancel(one)

    async def _run(self, job: Job) -> None:
        try:
            async with self._one:
                job.state, job.started_at = "running", time.time()
                report = await self._kinds[job.kind](self._pipeline, job)
                job.report = msgspec.to_builtins(report)
                job.state = "done"
        except asyncio.CancelledError:
            job.state = "cancelled"
        except AutoplayError as error:
            job.state, job.error = "failed", str(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the job
            _log.exception("the job %s failed", job.kind)
            job.state, job.error = "failed", describe(error)
        job.ended_at = time.time()


async def _verify(pipeline: IngestPipeline, job: Job) -> Any:
    repair, delete_extra = (_flag(job.options, name) for name in ("repair", "delete_extra"))
    _check_names(job, ("repair", "delete_extra"))
    return await pipeline.verify(repair=repair, delete_extra=delete_extra, on_progress=job.show)


async def _backup(pipeline: IngestPipeline, job: Job) -> Any:
    _check_names(job, ("folder",))
    folder = _text(job.options, "folder")
    _check_path("folder", folder)
    return await pipeline.backup(folder, on_progress=job.show)


async def _reembed(pipeline: IngestPipeline, job: Job) -> Any:
    _check_names(job, ("embedder", "render"))
    render = _flag(job.options, "render")
    # In a thread: it may import a large package.
    embedder = await asyncio.to_thread(make_embedder, _text(job.options, "embedder"))
    try:
        return await pipeline.reembed(embedder, render=render, on_progress=job.show)
    finally:
        if pipeline.embedder is not embedder:
            await embedder.aclose()


async def _copy(pipeline: IngestPipeline, job: Job) -> Any:
    _check_names(job, ("to", "to_collection", "embedder"))
    to = _text(job.options, "to")
    _check_path("the path in to", str(chroma_path(to)))
    collection = None
    if job.options.get("to_collection") is not None:
        collection = _text(job.options, "to_collection")
    store = make_store(to, collection)
    embedder = await asyncio.to_thread(make_embedder, _text(job.options, "embedder"))
    return await pipeline.copy_to(store, embedder, on_progress=job.show)


KINDS: Final[Mapping[str, JobKind]] = {
    "verify": _verify,
    "backup": _backup,
    "reembed": _reembed,
    "copy": _copy,
}
"""The kinds of jobs. A new kind is added here."""


def _text(options: Mapping[str, Any], name: str) -> str:
    value = options.get(name)
    if not isinstance(value, str) or not value or "\0" in value:
        raise ConfigurationError(f"{name} is missing, or is not a text")
    return value


def _check_path(name: str, path: str) -> None:
    if not Path(path).is_absolute():
        raise ConfigurationError(f"{name} must be an absolute path on the server's machine")


def _flag(options: Mapping[str, Any], name: str) -> bool:
    value = options.get(name, False)
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} must be true or false")
    return value


def _check_names(job: Job, names: tuple[str, ...]) -> None:
    if unknown := sorted(set(job.options) - set(names)):
        raise ConfigurationError(f"unknown options {', '.join(unknown)}: use {', '.join(names)}")

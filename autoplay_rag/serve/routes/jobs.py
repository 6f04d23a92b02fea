"""Long work: start, watch and cancel."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request

from autoplay_rag.serve.access import Access, Needs
from autoplay_rag.serve.jobs import Job
from autoplay_rag.serve.models import JobModel, JobRequest, JobsAnswer
from autoplay_rag.serve.problems import ProblemError
from autoplay_rag.serve.serving import serving_of

__all__ = ["router"]

router = APIRouter(tags=["jobs"])

Admin = Annotated[Access, Depends(Needs("admin"))]
JobId = Annotated[str, Path(min_length=1, max_length=64)]


@router.post("/v1/jobs", status_code=202)
async def start(
    asked: JobRequest,
    access: Annotated[Access, Depends(Needs("admin", audited=True))],
    request: Request,
) -> JobModel:
    """Start a job, which waits until the ones before have ended.

    - `verify`: compares journal and store; options `repair`, `delete_extra`.
    - `backup`: copies both into a new `folder` on the server's machine.
    - `reembed`: moves to another model: `embedder`, such as "local:int8" or "openai:MODEL"; `render`.
    - `copy`: copies the chunks into another store on the server's machine: `to`, such as
      "chroma:/data/other", `to_collection`, `embedder`. The server stays with its own store.
    """
    access.audit.about({"job": asked.kind})
    return JobModel.model_validate(serving_of(request).jobs.start(asked.kind, asked.options))


@router.get("/v1/jobs")
async def jobs(_: Admin, request: Request) -> JobsAnswer:
    """Return the jobs since the start, the latest first."""
    found = serving_of(request).jobs.all()
    return JobsAnswer(jobs=[JobModel.model_validate(job) for job in found])


@router.get("/v1/jobs/{id}")
async def job(id: JobId, _: Admin, request: Request) -> JobModel:
    """Return a job, with its progress."""
    return _model(serving_of(request).jobs.get(id))


@router.post("/v1/jobs/{id}/cancel")
async def cancel(id: JobId, _: Admin, request: Request) -> JobModel:
    """Cancel a job; a job that ended stays as it is. Answers once it ended."""
    return _model(await serving_of(request).jobs.cancel(id))


def _model(job: Job | None) -> JobModel:
    if job is None:
        raise ProblemError(404, "There is no job of this id.")
    return JobModel.model_validate(job)

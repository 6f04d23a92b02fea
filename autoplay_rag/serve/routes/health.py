"""For those who run it: probes and metrics."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel

from autoplay_rag.serve.access import Admits, Caller
from autoplay_rag.serve.serving import receiving_of

__all__ = ["router"]

router = APIRouter(tags=["operation"])

Open = Annotated[Caller, Depends(Admits("open"))]


class HealthAnswer(BaseModel):
    """The state; the reasons are null without a read key."""

    status: str
    reasons: list[str] | None


@router.get("/healthz")
async def healthz(_: Open) -> dict[str, str]:
    """Whether the process answers."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"model": HealthAnswer}})
async def readyz(caller: Open, request: Request, response: Response) -> HealthAnswer:
    """Whether payloads are accepted and searches answered: 200, or 503 if not.

    "degraded" means that something is retried, such as a request to the store. With 503, the pipeline
    is "stopped" or "failed", or the database of its journal does not answer ("unavailable"), which
    ends by itself. For a relay, "unavailable" means that the broker does not answer.
    """
    intake = receiving_of(request).intake
    health = intake.health
    status: str = health.state if intake.is_running else "stopped"
    if status == "degraded" and not intake.is_available:
        status = "unavailable"
    if status in ("failed", "stopped", "unavailable"):
        response.status_code = 503
    told = caller.principal is not None and caller.principal.allows("read")
    return HealthAnswer(status=status, reasons=list(health.reasons) if told else None)


class _Metrics(Response):
    media_type = "text/plain; version=0.0.4"


@router.get(
    "/metrics",
    response_class=_Metrics,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(_: Annotated[Caller, Depends(Admits("read"))], request: Request) -> Response:
    """Return the metrics in the text format of Prometheus."""
    made: Any = request.app.state.metrics
    return _Metrics(made.text())

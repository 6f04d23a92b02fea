"""Puts the parts of the application together. Needs the packages of the extra `serve`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware

from autoplay_rag.ingest.events import EventIntake
from autoplay_rag.ingest.pipeline import IngestPipeline
from autoplay_rag.serve.access import needs_of
from autoplay_rag.serve.auth import Authenticator
from autoplay_rag.serve.browsers import Browsers
from autoplay_rag.serve.guard import Guard, GuardSettings
from autoplay_rag.serve.history import History
from autoplay_rag.serve.inspector import ROUTERS as PAGES
from autoplay_rag.serve.jobs import KINDS, JobKind, Jobs
from autoplay_rag.serve.metrics import Metrics
from autoplay_rag.serve.openapi import describe_api
from autoplay_rag.serve.problems import handle_problems
from autoplay_rag.serve.pulling import AskedPulls
from autoplay_rag.serve.routes import (
    actions,
    analytics,
    context,
    dead_letters,
    forgetting,
    health,
    jobs,
    ledger,
    live,
    mcp,
    search,
    sessions,
    status,
    stream,
    turns,
    webhooks,
)
from autoplay_rag.serve.serving import Endpoint, Receiving, Serving
from autoplay_rag.serve.settings import Settings

__all__ = ["ROUTERS", "assembled", "build"]

ROUTERS = [
    part.router
    for part in (
        search, sessions, actions, live, stream, context, turns, webhooks, analytics, forgetting,
        dead_letters, ledger, status, jobs, health, mcp,
    )
] + PAGES  # fmt: skip


def build(
    pipeline: IngestPipeline,
    settings: Settings,
    lifespan: Any,
    *,
    job_kinds: Mapping[str, JobKind],
    routes: str,
) -> FastAPI:
    """Make the application of a pipeline.

    Args:
        pipeline: Takes and finds everything.
        settings: What is allowed.
        lifespan: Runs around the application.
        job_kinds: More kinds of jobs, by name.
        routes: "health" for the probes and metrics only.
    """
    has_all = routes == "all"
    authenticator = Authenticator(settings.keys, settings.signing)
    browsers = Browsers(authenticator)
    serving = Serving(
        intake=pipeline,
        pipeline=pipeline,
        settings=settings,
        jobs=Jobs(pipeline, {**KINDS, **job_kinds}),
        job_kinds=job_kinds,
        browsers=browsers,
        history=History(pipeline),
        events=EventIntake(pipeline),
        pulls=AskedPulls(pipeline),
    )
    serving.mcp = _mcp_endpoint(pipeline, serving.pulls) if has_all else None
    app = assembled(
        serving,
        ROUTERS if has_all else [health.router],
        lifespan,
        authenticator=authenticator,
        browsers=browsers,
        description="What users are doing right now, and what they did.",
    )
    app.state.metrics = Metrics(serving)
    return app


def assembled(
    receiving: Receiving,
    routers: Sequence[APIRouter],
    lifespan: Any,
    *,
    authenticator: Authenticator,
    browsers: Browsers,
    description: str,
) -> FastAPI:
    """Make an application of routes, behind the guard.

    Args:
        receiving: What the routes share.
        routers: The routes.
        lifespan: Runs around the application.
        authenticator: Recognises credentials.
        browsers: Have the credentials of cookies.
        description: What the application does, for its OpenAPI document.
    """
    settings = receiving.settings
    app = FastAPI(
        title="autoplay-rag",
        version=settings.version,
        description=description,
        docs_url=None,  # the page would load scripts from elsewhere
        redoc_url=None,
        # FastAPI's own spans have paths and query strings, and its logs the text of errors: both
        # may have personal data. Versions before 0.164 ignore this, and make none.
        telemetry={"tracing": False, "logs": False},
        lifespan=lifespan,
    )
    for router in routers:
        _check_needs(router)
        app.include_router(router)
    handle_problems(app)
    app.state.serving = receiving
    app.add_middleware(
        Guard,
        settings=GuardSettings(
            hosts=settings.hosts,
            origins=settings.cors_origins,
            max_body_bytes=settings.max_body_bytes,
            rate=settings.rate,
        ),
        authenticator=authenticator,
        browsers=browsers,
        audit=settings.audit,
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=sorted(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "last-event-id"],
        )
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]  # as FastAPI documents
    return app


def _mcp_endpoint(pipeline: IngestPipeline, pulls: AskedPulls) -> Endpoint | None:
    """What answers MCP; None if the extra `mcp` is not installed."""
    try:
        from autoplay_rag.serve.mcp.server import McpEndpoint
    except ModuleNotFoundError as error:
        if error.name not in ("mcp", "mcp_types"):
            raise
        return None
    return McpEndpoint(pipeline, pulls)


def _described(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        app.openapi_schema = describe_api(app)
    return app.openapi_schema


def _check_needs(router: APIRouter) -> None:
    """Check that every route says what it needs, so that none is open by mistake."""
    for route in router.routes:
        if not isinstance(route, APIRoute) or len(needs_of(route.dependant)) != 1:
            raise RuntimeError(f"{route} does not say what it needs: add Needs(...)")

"""The ASGI application: the HTTP interface of a pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from autoplay_rag._checks import check_choice
from autoplay_rag.errors import MissingExtraError
from autoplay_rag.ingest.pipeline import IngestPipeline
from autoplay_rag.serve.audit import AuditSink, log_line
from autoplay_rag.serve.keys import Keys
from autoplay_rag.serve.lifespan import started
from autoplay_rag.serve.settings import checked_settings
from autoplay_rag.serve.tokens import SigningKeys

if TYPE_CHECKING:
    from fastapi import FastAPI

    from autoplay_rag.serve.jobs import JobKind

__all__ = ["create_app"]

Routes: TypeAlias = Literal["all", "health"]


def create_app(
    pipeline: IngestPipeline,
    *,
    keys: Keys | None = None,
    signing_keys: SigningKeys | None = None,
    webhook_secret: str | None = None,
    analytics_secrets: Mapping[str, str] | None = None,
    hosts: Collection[str] = (),
    cors_origins: Collection[str] = (),
    max_body_bytes: int = 2**20,
    rate: float = 100.0,
    audit: AuditSink = log_line,
    job_kinds: Mapping[str, JobKind] | None = None,
    routes: Routes = "all",
) -> FastAPI:
    """Make the ASGI application with the HTTP interface of a pipeline.

    With the extra `mcp`, it answers the Model Context Protocol at `/mcp`, with four tools.

    Serve it with any ASGI server, on the pipeline's event loop. Served alone, it starts the
    pipeline and closes it at shutdown, unless the pipeline was running already. Mounted into a
    larger application, it leaves the pipeline to that. An open event stream keeps uvicorn from
    stopping: start it with `--timeout-graceful-shutdown`. `autoplay-rag serve` ends the streams.

    Args:
        pipeline: Takes and finds everything.
        keys: Who may read, ingest or do everything; by default `AUTOPLAY_RAG_ADMIN_KEY`,
            `_READ_KEY` and `_INGEST_KEY` of the environment. There must be one.
        signing_keys: Sign the tokens of `mint_token`; by default `AUTOPLAY_RAG_SIGNING_KEY` of the
            environment. Without one, no token is valid.
        webhook_secret: The secret the connector signs deliveries with; by default
            `AUTOPLAY_RAG_WEBHOOK_SECRET` of the environment. Without one, deliveries need an
            ingest key.
        analytics_secrets: By tool ("posthog", "amplitude", "segment"), the secret of its events at
            `/v1/webhooks/{product_id}/{tool}`; by default `AUTOPLAY_RAG_POSTHOG_SECRET`,
            `_AMPLITUDE_SECRET` and `_SEGMENT_SECRET` of the environment. A tool without one uses
            `webhook_secret`. Without any, events need an ingest key.
        hosts: Names under which clients reach the server, without a port. Loopback is always known.
        cors_origins: Origins of web pages that may ask, such as "https://app.example.com".
        max_body_bytes: The most bytes of a request's body, except of a webhook.
        rate: Requests per second of each key or token, and of each address without one. Webhooks
            are not limited.
        audit: Takes one line of JSON for each request that reads or deletes someone's data; by
            default the logger `autoplay_rag.audit` does.
        job_kinds: More kinds of jobs, by name.
        routes: "health" for `/healthz`, `/readyz` and `/metrics` only, beside a pipeline that reads
            and stores while other processes answer.

    Returns:
        A FastAPI application.

    Raises:
        ConfigurationError: If an argument or a variable cannot be used, or there is no key.
        MissingExtraError: If the extra `serve` is not installed.

    Example:
        >>> from autoplay_rag import IngestPipeline
        >>> from autoplay_rag.stores import MemoryStore
        >>> pipeline = IngestPipeline(store=MemoryStore())
        >>> app = create_app(pipeline, keys=Keys(admin="change-me-to-a-secret"))
    """
    check_choice("routes", routes, get_args(Routes))
    signing = signing_keys if signing_keys is not None else SigningKeys.from_environment()
    settings = checked_settings(
        keys=keys,
        signing=signing,
        webhook_secret=webhook_secret,
        analytics_secrets=analytics_secrets,
        hosts=hosts,
        cors_origins=cors_origins,
        max_body_bytes=max_body_bytes,
        rate=rate,
        audit=audit,
    )
    try:
        from autoplay_rag.serve.building import build
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("autoplay_rag"):
            raise
        raise MissingExtraError("create_app()", "serve") from None
    return build(
        pipeline, settings, _living(pipeline), job_kinds=dict(job_kinds or {}), routes=routes
    )


def _living(pipeline: IngestPipeline) -> Any:
    """The lifespan: the pipeline runs, and beside it what only a server needs."""

    @asynccontextmanager
    async def live(app: FastAPI) -> AsyncIterator[None]:
        async with started(pipeline):
            serving = app.state.serving
            sampling = asyncio.create_task(serving.history.run(), name="autoplay-history")
            try:
                async with serving.mcp.running() if serving.mcp else nullcontext():
                    yield
            finally:
                sampling.cancel()
                await asyncio.wait([sampling])
                serving.end_streams()
                await serving.jobs.aclose()

    return live

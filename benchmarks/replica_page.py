"""The page of a replica: its pipeline over HTTP, on a free port of loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from autoplay_rag import IngestPipeline
from autoplay_rag.serve import Keys, create_app
from autoplay_rag.serve.server import HttpServer


@asynccontextmanager
async def served(pipeline: IngestPipeline, key: str) -> AsyncIterator[str]:
    """Serve a running pipeline until the block ends. Yields the address.

    Args:
        pipeline: The pipeline.
        key: The admin key.
    """
    app = create_app(pipeline, keys=Keys(admin=key), audit=lambda _line: None)
    server = HttpServer(app, "127.0.0.1", 0)
    task = asyncio.create_task(server.run_until_stopped())
    try:
        await server.ready()
        yield server.url
    finally:
        server.stop()
        await task

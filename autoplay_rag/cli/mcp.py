"""`autoplay-rag mcp`: the tools for an agent that starts this command, on standard input and output."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Annotated, Any, Final

import typer

from autoplay_rag._http_environment import environment_proxy
from autoplay_rag._secrets import secret_from
from autoplay_rag.cli.config import ConfigOption
from autoplay_rag.cli.console import note
from autoplay_rag.cli.interrupts import Interrupts
from autoplay_rag.cli.options import (
    DEFAULT_EMBEDDER,
    CollectionOption,
    EmbedderOption,
    JournalOption,
    StoreOption,
    find_place,
)
from autoplay_rag.embedders.named import make_embedder
from autoplay_rag.errors import ConfigurationError, MissingExtraError
from autoplay_rag.ingest.pipeline import IngestPipeline
from autoplay_rag.serve.running import find_running

__all__ = ["mcp"]

_URL_VARIABLE: Final = "AUTOPLAY_RAG_URL"
_KEY_VARIABLE: Final = "AUTOPLAY_RAG_KEY"


def mcp(
    *,
    store: StoreOption = None,
    collection: CollectionOption = None,
    embedder: EmbedderOption = None,
    journal: JournalOption = None,
    config: ConfigOption = None,
    timeout: Annotated[
        float,
        typer.Option(
            min=0.05,
            help="Seconds that a running server has for an answer. After that a tool says that it is "
            "not available.",
        ),
    ] = 1.0,
) -> None:
    """Offer MCP tools on standard input and output, for an agent that starts this command.

    It asks the server at AUTOPLAY_RAG_URL, with the key or token in AUTOPLAY_RAG_KEY. Without these
    variables it asks the `autoplay-rag serve` that uses the journal. If none runs, it opens the
    journal and the store itself; no other pipeline can use them then.
    """
    if not find_spec("mcp"):
        raise MissingExtraError("autoplay-rag mcp", "mcp")
    if os.environ.get(_URL_VARIABLE):
        asyncio.run(_relay(_named, timeout, environment_proxy(_named().url)))
        return
    place = find_place(config, journal=journal, store=store, collection=collection)
    file = place.journal_file

    def running() -> Any:
        from autoplay_rag.serve.mcp.relay import Target

        server = find_running(file)
        return Target(server.url, server.key) if server else None

    if running() is not None:
        asyncio.run(_relay(running, timeout))
        return
    if not file.is_file():
        raise ConfigurationError(
            f"there is no journal {file}: name it with --journal, or set {_URL_VARIABLE} and "
            f"{_KEY_VARIABLE} to ask a server"
        )
    with place.file.explaining(["embedder"] if embedder is not None else []):
        pipeline = IngestPipeline(
            place.make_store(),
            make_embedder(embedder or place.file.get("embedder") or DEFAULT_EMBEDDER),
            journal=file,
            **place.file.pipeline,
        )
    asyncio.run(_answer(pipeline))


def _named() -> Any:
    """The server that the environment names."""
    from autoplay_rag.serve.mcp.relay import Target

    url, key = os.environ[_URL_VARIABLE], secret_from(_KEY_VARIABLE)
    if not url.startswith(("http://", "https://")):
        raise ConfigurationError(f"{_URL_VARIABLE} must begin with http:// or https://")
    if key is None:
        raise ConfigurationError(f"{_URL_VARIABLE} needs {_KEY_VARIABLE}: a key or a token")
    return Target(url, key)


async def _relay(find: Callable[[], Any], seconds: float, proxy: str | None = None) -> None:
    from autoplay_rag.serve.mcp.relay import Relay

    relay = Relay(find, proxy, timeout=seconds)
    with Interrupts() as interrupts:
        try:
            await _serve(relay.server(), interrupts)
        finally:
            await relay.aclose()


async def _answer(pipeline: IngestPipeline) -> None:
    from autoplay_rag.serve.mcp.server import local_server

    with Interrupts() as interrupts:
        async with pipeline:
            await _serve(local_server(pipeline, note), interrupts)


async def _serve(server: Any, interrupts: Interrupts) -> None:
    """Answer until the input ends or a signal comes; both are the normal end."""
    from autoplay_rag.serve.mcp.stdio import serve_stdio

    serving = asyncio.create_task(serve_stdio(server), name="autoplay-mcp")
    with interrupts.calling(serving.cancel):
        try:
            await asyncio.wait([serving])
        finally:
            serving.cancel()
    if not serving.cancelled():
        serving.result()

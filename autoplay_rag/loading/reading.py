"""What reads: a pipeline of this process, or one that another process serves."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeAlias

from autoplay_rag._checks import check_above
from autoplay_rag._describe import describe
from autoplay_rag._secrets import secret_from
from autoplay_rag.errors import ServerError
from autoplay_rag.ingest.pipeline import IngestPipeline
from autoplay_rag.live.sessions import LiveSession
from autoplay_rag.remote.client import ServeClient
from autoplay_rag.search.prompt import pulled_text

__all__ = ["Reader", "reader_of", "shown_context", "shown_context_sync"]

_log = logging.getLogger(__name__)

Reader: TypeAlias = IngestPipeline | ServeClient
"""Both have the same reading methods."""


def reader_of(source: Reader | str, timeout: float | None = None) -> Reader:
    """Return what reads a source.

    Args:
        source: A pipeline, a `ServeClient`, or the URL of a server; the key is then
            `AUTOPLAY_RAG_KEY`. All that use one URL share connections.
        timeout: Seconds for an answer of a server; None for those of the `ServeClient`.

    Raises:
        ConfigurationError: If the URL or the timeout is invalid.
    """
    if timeout is not None:
        check_above("timeout", timeout)
    if isinstance(source, str):
        source = _client(source, secret_from("AUTOPLAY_RAG_KEY"))
    if isinstance(source, ServeClient) and timeout is not None:
        return source.with_timeout(timeout)
    return source


@lru_cache(maxsize=32)
def _client(url: str, key: str | None) -> ServeClient:
    return ServeClient(url, key)


async def shown_context(
    reader: Reader, query: str | None, *, pulled: LiveSession | None = None, **options: Any
) -> str:
    """Return `context`; "" if the server does not answer in time or refuses the key.

    A model then answers without the context. The reason is logged.

    Args:
        reader: Gives the context.
        query: The question.
        pulled: A session that was pulled just now: it stands in for the recent part.
        options: As for `context`.

    Raises:
        AutoplayError: As `IngestPipeline.context`, except ServerError.
    """
    try:
        return await reader.context_with(pulled, query, **options)
    except ServerError as error:
        return _pulled_alone(error, pulled, options)


def shown_context_sync(
    reader: Reader, query: str | None, *, pulled: LiveSession | None = None, **options: Any
) -> str:
    """Like `shown_context`, for any thread. Inside a running event loop it blocks the loop."""
    try:
        return reader.context_with_sync(pulled, query, **options)
    except ServerError as error:
        return _pulled_alone(error, pulled, options)


def _pulled_alone(
    error: ServerError, pulled: LiveSession | None, options: Mapping[str, Any]
) -> str:
    _log.warning("a model is not shown what the user did: %s", describe(error))
    limits = {name: options[name] for name in ("seconds", "max_actions", "max_chars")}
    return pulled_text(pulled, **limits) if pulled is not None else ""

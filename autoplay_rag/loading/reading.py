"""What reads: a pipeline of this process, or one that another process serves."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any, Final, TypeAlias

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

_NO_RECENT: Final = 0.001
"""The least age of recent activity, in seconds: nothing is as recent."""

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
    if not isinstance(reader, ServeClient):
        return await reader.context(query, pulled=pulled, **options)
    recent, rest = _apart(pulled, options)
    try:
        return _joined(recent, await reader.context(query, **rest) if rest else "")
    except ServerError as error:
        return _joined(recent, _nothing(error))


def shown_context_sync(
    reader: Reader, query: str | None, *, pulled: LiveSession | None = None, **options: Any
) -> str:
    """Like `shown_context`, for any thread. Inside a running event loop it blocks the loop."""
    if not isinstance(reader, ServeClient):
        return reader.context_sync(query, pulled=pulled, **options)
    recent, rest = _apart(pulled, options)
    try:
        return _joined(recent, reader.context_sync(query, **rest) if rest else "")
    except ServerError as error:
        return _joined(recent, _nothing(error))


def _apart(pulled: LiveSession | None, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The text of the pulled session, and the options for what the server adds to it."""
    limits = {name: options[name] for name in ("seconds", "max_actions", "max_chars")}
    recent = pulled_text(pulled, **limits)
    if not recent:
        return "", options
    left = options["max_chars"] - len(recent) - 1
    # The server's own recent part is older than what was pulled.
    return recent, {**options, "seconds": _NO_RECENT, "max_chars": left} if left > 0 else {}


def _joined(*parts: str) -> str:
    return "\n".join(part for part in parts if part)


def _nothing(error: ServerError) -> str:
    _log.warning("a model is not shown what the user did: %s", describe(error))
    return ""

"""Checks that a client had a connection. Without one, an empty result is a failure."""

from __future__ import annotations

import httpx

from autoplay_rag._describe import describe
from autoplay_rag.connector.client import AsyncConnectorClient
from autoplay_rag.connector.connection import display
from autoplay_rag.errors import ConnectorError
from autoplay_rag.sources.activity import LiveActivitySource

__all__ = ["require_reached"]


def require_reached(
    client: AsyncConnectorClient | LiveActivitySource, url: str, *, interrupted: bool
) -> None:
    """Fail if a stopped client never had a connection.

    Args:
        client: The client.
        url: The URL that it was to read.
        interrupted: Whether the user stopped it. Then it is not a failure if no connection attempt
            has finished.

    Raises:
        ConnectorError: If there was no connection. The message contains the last error.
    """
    if client.counts.connections:
        return
    error = client.last_error
    if error is not None:
        why = f"the last error was {describe(error)}"
    elif interrupted:
        return
    else:
        why = "no attempt to connect finished in time"
    what = "pull from" if isinstance(client, LiveActivitySource) else "connect to a stream at"
    raise ConnectorError(f"could not {what} {display(httpx.URL(url))}: {why}")

"""Whether anybody was there: an empty result is no success if nobody ever answered."""

from __future__ import annotations

import httpx

from autoplay_rag._describe import describe
from autoplay_rag.connector.client import AsyncConnectorClient
from autoplay_rag.connector.connection import display
from autoplay_rag.errors import ConnectorError

__all__ = ["require_reached"]


def require_reached(client: AsyncConnectorClient, url: str, *, interrupted: bool) -> None:
    """Fail if a client that has ended never had a connection.

    Args:
        client: The client.
        url: What it was to read.
        interrupted: Whether the user ended it; then no attempt may have been over yet, and that
            is no failure.

    Raises:
        ConnectorError: If there was none; the message has the last attempt's error.
    """
    if client.counts.connections:
        return
    error = client.last_error
    if error is not None:
        why = f"the last error was {describe(error)}"
    elif interrupted:
        return
    else:
        why = "no attempt was over when time was up"
    raise ConnectorError(f"nobody answered with a stream at {display(httpx.URL(url))}: {why}")

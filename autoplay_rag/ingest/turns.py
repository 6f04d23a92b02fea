"""Reads a source in one process at a time, of those that share a journal."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoplay_rag.journal.ownership import Membership

__all__ = ["read_in_turn", "source_name"]


def source_name(client: Any) -> str | None:
    """Return what identifies a source for all processes; None if it has no address.

    The name has no user, password or query: people see it.

    Example:
        >>> class Client:
        ...     url = "https://connector.test/stream/acme"
        >>> source_name(Client())
        'source:https://connector.test/stream/acme'
    """
    url = getattr(client, "url", None)
    if not isinstance(url, str) or not url:
        return None
    product = getattr(client, "product_id", None)
    return f"source:{url} {product}" if isinstance(product, str) else f"source:{url}"


async def read_in_turn(
    client: Any,
    membership: Membership,
    on_standby: Callable[[bool], None],
    before: Callable[[], Awaitable[object]],
) -> None:
    """Run a client while no other process runs it, until it ends.

    A source without an address is read by each process. If this is cancelled, the client stops, and
    what it received is passed on first.

    Args:
        client: The client or source.
        membership: This process among those of the journal.
        on_standby: Called with whether this process waits for its turn, when that changes.
        before: Awaited before each run.

    Raises:
        ConnectorError: The error that ended the client.
    """

    async def work() -> None:
        on_standby(False)
        try:
            await before()
            await _run(client)
        finally:
            on_standby(True)

    name = source_name(client)
    on_standby(True)
    try:
        await (work() if name is None else membership.while_held(name, work))
    finally:
        on_standby(False)


async def _run(client: Any) -> None:
    task: asyncio.Task[None] = client.run_in_background()
    try:
        await asyncio.wait([task])
    finally:
        if not task.done():
            client.stop()
            await asyncio.wait([task])
    task.result()

"""The types of the ASGI specification, version 3, and a bounded way to read a request's body."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeAlias

from autoplay_rag.connector.sse import MAX_EVENT_BYTES
from autoplay_rag.errors import BodyTooLargeError

__all__ = ["ASGIApp", "Message", "Receive", "Scope", "Send", "SenderGoneError", "read_body"]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
"""An application of the ASGI specification, version 3."""

_DISCARDED_BYTES: Final = 8 * MAX_EVENT_BYTES


class SenderGoneError(Exception):
    """The connection ended before the body did."""


async def read_body(receive: Receive, limit: int) -> bytes:
    """Read a whole body.

    Args:
        receive: The channel of the request.
        limit: The most bytes of a body.

    Raises:
        BodyTooLargeError: If it is over the limit. The excess is read and discarded, up to a
            bound: a response sent while the sender still writes is often lost with the
            connection, and the sender would retry.
        SenderGoneError: If the connection ends first.
    """
    body = bytearray()
    size = 0
    more = True
    while more and size <= limit + _DISCARDED_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise SenderGoneError
        piece = message.get("body", b"")
        size += len(piece)
        if size <= limit:
            body += piece
        else:
            body.clear()
        more = message.get("more_body", False)
    if size > limit:
        raise BodyTooLargeError(limit)
    return bytes(body)

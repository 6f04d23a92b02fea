"""The HTTP response to a subscriber."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, aclosing

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

__all__ = ["EventStreamResponse"]


class EventStreamResponse(StreamingResponse):
    """Sends one subscriber's stream.

    Args:
        stream: The body.
        present: Entered before the response begins, so that a client misses no event that is sent
            after it has connected. Exited when the response has ended.
    """

    media_type = "text/event-stream"

    def __init__(
        self, stream: AsyncGenerator[bytes], present: AbstractContextManager[None]
    ) -> None:
        super().__init__(stream, headers={"Cache-Control": "no-store"})
        self._stream = stream
        self._present = present

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the client leaves or the stream ends. Answer HEAD with the headers only."""
        async with aclosing(self._stream):
            if scope["method"] == "HEAD":
                await send(
                    {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                )
                await send({"type": "http.response.body"})
                return
            with self._present:
                await super().__call__(scope, receive, send)

"""Standard input and output of an MCP server, so that a signal can end it at any time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator
from typing import Any, Final, cast

from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

__all__ = ["serve_stdio"]

_STDIN: Final = 0
_PIECE: Final = 2**16


async def serve_stdio(server: Server[Any]) -> None:
    """Answer on standard input and output until the input ends or this is cancelled."""
    lines = cast("Any", _input_lines())  # the SDK only iterates over it
    async with stdio_server(stdin=lines) as (incoming, outgoing):
        await server.run(incoming, outgoing, server.create_initialization_options())


async def _input_lines() -> AsyncIterator[str]:
    """The lines of standard input.

    A thread of its own reads them, which nothing waits for: the SDK's own reader would hold up the
    end until the next line. It reads the descriptor, because a thread that waits inside `sys.stdin`
    makes the interpreter abort at exit.
    """
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1)

    def read() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            while True:
                try:
                    piece = os.read(_STDIN, _PIECE)
                except OSError:
                    piece = b""
                asyncio.run_coroutine_threadsafe(pieces.put(piece), loop).result()
                if not piece:
                    return

    threading.Thread(target=read, name="autoplay-mcp-stdin", daemon=True).start()
    rest = b""
    while piece := await pieces.get():
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line.decode("utf-8", "replace")
    if rest:
        yield rest.decode("utf-8", "replace")

"""Servers on loopback that are stopped, never answer, or give one fixed answer."""

import asyncio
import socket
from contextlib import asynccontextmanager, contextmanager


@contextmanager
def stopped():
    """A URL where nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@contextmanager
def stalled():
    """A URL where connections are accepted and never answered."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(100)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@asynccontextmanager
async def answering(*answers):
    """A URL where each connection gets the next answer and is closed; the last one again and again.

    Yields:
        The URL, and a list of the requests.
    """
    requests, left = [], list(answers)
    connections = set()

    async def answer(reader, writer):
        connections.add(writer)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            requests.append(head.decode())
            found = left.pop(0) if len(left) > 1 else left[0]
            async for part in found if hasattr(found, "__aiter__") else _once(found):
                writer.write(part)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", requests
    finally:
        server.close()
        await asyncio.gather(*(one.wait_closed() for one in connections), return_exceptions=True)


async def _once(part):
    yield part


def http(status, body=b"", *headers):
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def problem(status, detail, *headers):
    body = f'{{"type": "about:blank", "status": {status}, "detail": "{detail}"}}'.encode()
    return http(status, body, "content-type: application/problem+json", *headers)

"""Connections on which the head of a request does not arrive: they are closed, and no others."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from pipelines import make_actions
from serve_server import KEYS
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from autoplay_rag.serve import heads, server

HEAD = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"
SECONDS = 0.3


@pytest.fixture(params=[H11Protocol, HttpToolsProtocol], autouse=True)
def protocol(request, monkeypatch):
    """Each protocol that uvicorn may choose."""
    monkeypatch.setattr(heads, "AutoHTTPProtocol", request.param)
    monkeypatch.setattr(server, "_HEAD_SECONDS", SECONDS)


@asynccontextmanager
async def connected(running):
    reader, writer = await asyncio.open_connection("127.0.0.1", running.server.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def answer(reader):
    """The status line and the body of an answer of known length."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    size = int(head.partition("content-length: ")[2].partition("\r\n")[0])
    return head.partition("\r\n")[0], await reader.readexactly(size)


@pytest.mark.parametrize("sent", [b"", b"G", HEAD, HEAD + b"X-Slow: 1"])
async def test_half_a_head_closes_the_connection(running, sent):
    async with connected(running) as (reader, writer), asyncio.timeout(30):
        writer.write(sent)
        assert await reader.read() == b""


async def test_bytes_that_trickle_in_do_not_prolong_it(running):
    async with connected(running) as (reader, writer), asyncio.timeout(30):
        writer.write(HEAD)
        reading = asyncio.create_task(reader.read())
        while not reading.done():
            writer.write(b"X: 1\r\n")
            await asyncio.wait([reading], timeout=SECONDS / 10)
        # The client's own bytes may reset a connection that was closed.
        assert isinstance(reading.exception(), ConnectionResetError) or reading.result() == b""


async def test_a_head_in_parts_is_answered_and_the_next_one_is_waited_for(running):
    async with connected(running) as (reader, writer), asyncio.timeout(30):
        for _ in range(2):
            writer.write(HEAD[:10])
            await writer.drain()
            writer.write(HEAD[10:] + b"\r\n")
            assert await answer(reader) == ("http/1.1 200 ok", b'{"status":"ok"}')
        writer.write(HEAD)  # half of a third request
        assert await reader.read() == b""


async def test_a_request_that_runs_is_not_cut_off(running):
    """A stream and a body that comes later than the head outlive the limit of a head."""
    stream = b"GET /v1/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %b\r\n\r\n"
    post = (
        b"POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Content-Length: 13\r\nAuthorization: Bearer %b\r\n\r\n"
    )
    key = KEYS.read.encode()
    async with (
        connected(running) as (streamed, to_stream),
        connected(running) as (searched, to_search),
        connected(running) as (idle, _),
        asyncio.timeout(60),
    ):
        to_stream.write(stream % key)
        to_search.write(post % key)
        await streamed.readuntil(b"\r\n\r\n")
        for _ in range(2):
            async with connected(running) as (late, _):
                assert await late.read() == b""  # the limit has passed
        assert await idle.read() == b""
        await running.pipeline.accept(make_actions("s9", "exported"))
        assert b"exported" in await streamed.readuntil(b"exported")
        to_search.write(b'{"query":"x"}')
        assert (await answer(searched))[0] == "http/1.1 200 ok"

"""The transport between httpx and the client's sockets, and when it is used."""

import asyncio
import ssl

import httpcore
import httpx
import pytest

from autoplay_rag.connector import transport as module
from autoplay_rag.connector.connection import Endpoint
from autoplay_rag.connector.transport import AsyncioTransport

TIMEOUT = httpx.Timeout(30)


@pytest.fixture
async def http():
    async with httpx.AsyncClient(
        transport=AsyncioTransport(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)),
        trust_env=False,
        timeout=TIMEOUT,
    ) as client:
        yield client


def leaves(error):
    below = error.__subclasses__()
    return {error} if not below else set().union(*map(leaves, below))


def test_every_error_of_httpcore_is_one_of_httpx():
    families = (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError)
    known = set().union(*map(leaves, families)) | {httpcore.UnsupportedProtocol}
    assert known == set(module._ERRORS)
    for error, ours in module._ERRORS.items():
        assert error.__name__ == ours.__name__


async def test_a_request_and_its_response_arrive_whole(server, http):
    server.script(server.status(201, "X-One: a", "X-One: b", body=b"made"))
    response = await http.get(f"{server.url}?a=%20b#c", headers={"X-Asked": "yes"})
    assert (response.status_code, response.content) == (201, b"made")
    assert response.headers.get_list("X-One") == ["a", "b"]
    assert response.http_version == "HTTP/1.1"
    assert server.peers[0].head == "GET /stream/acme?a=%20b HTTP/1.1"
    assert server.peers[0].headers["x-asked"] == "yes"
    assert server.peers[0].headers["host"] == f"127.0.0.1:{server.port}"


@pytest.mark.parametrize(
    ("then", "seconds", "expected"),
    [
        ("cut", 30, httpx.RemoteProtocolError),
        ("reset", 30, httpx.ReadError),
        ("stay", 0.05, httpx.ReadTimeout),
    ],
)
async def test_a_body_that_breaks_off_raises_an_error_of_httpx(
    server, http, then, seconds, expected
):
    server.script(server.stream(then=then))

    async def read():
        limits = httpx.Timeout(30, read=seconds)
        async with http.stream("GET", server.url, timeout=limits) as response:
            return [part async for part in response.aiter_raw()]

    with pytest.raises(expected):
        await read()


async def test_no_response_raises_an_error_of_httpx(server, http):
    server.script(server.raw(b""), server.raw(b"no HTTP\r\n\r\n"), server.raw(b"", then="reset"))
    with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
        await http.get(server.url)
    with pytest.raises(httpx.RemoteProtocolError):
        await http.get(server.url)
    with pytest.raises((httpx.ReadError, httpx.WriteError)):
        await http.get(server.url)
    with pytest.raises(httpx.UnsupportedProtocol):
        await http.get("ftp://127.0.0.1/")


async def test_a_read_that_is_cancelled_closes_the_connection(server, http):
    gone = asyncio.Event()

    async def answer(peer):
        await server.stream()(peer)  # returns when the client has closed
        gone.set()

    server.script(answer)

    async def read():
        async with http.stream("GET", server.url) as response:
            async for _ in response.aiter_raw():
                pass

    reading = asyncio.create_task(read())
    await server.requests(1)
    reading.cancel()
    await asyncio.wait([reading])
    assert reading.cancelled()
    await gone.wait()


async def test_a_connection_is_used_again_unless_it_was_closed(http, until):
    """After a response that was read to its end."""
    connections = 0
    closed = asyncio.Event()

    async def handle(reader, writer):
        nonlocal connections
        connections += 1
        for _ in range(2):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
            await writer.drain()
        writer.close()
        await writer.wait_closed()
        closed.set()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as listening:
        url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"
        pool = http._transport._pool
        for expected in (1, 1, 2):
            if expected == 2:
                await closed.wait()
                await until(lambda: all(idle.has_expired() for idle in pool.connections))
            assert (await http.get(url)).content == b""
            assert connections == expected
        await http.aclose()


# When it is used


def endpoint(url):
    return Endpoint(url, "", connect_timeout=30, read_timeout=30)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("proxy", [None, "http://127.0.0.1:9", "http://[::1]:9"])
async def test_it_is_used_unless_there_is_a_proxy(monkeypatch, scheme, proxy):
    if proxy:
        monkeypatch.setenv("ALL_PROXY", proxy)
    async with await endpoint(f"{scheme}://connector.test/stream/acme").http_client() as http:
        assert isinstance(http._transport, AsyncioTransport) is (proxy is None)
        assert any(http._mounts.values()) is (proxy is not None)


async def test_a_proxy_from_the_environment_gets_the_request(server, connect, event, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{server.port}")
    server.script(server.stream(event("s1", 1)))
    client = connect("http://connector.test/stream/acme")
    assert [payload.session_id async for payload in client.stream(limit=1)] == ["s1"]
    assert server.peers[0].head == "GET http://connector.test/stream/acme HTTP/1.1"


async def test_what_the_environment_trusts_is_trusted(certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    async def handle(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context) as listening:
        url = f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"
        async with await endpoint(url).http_client() as http:
            assert (await http.get(url)).content == b"hi"
            assert isinstance(http._transport, AsyncioTransport)


def test_a_loop_of_another_make_has_the_transport_of_httpx():
    """The sockets of the client are only tested with those of asyncio."""
    uvloop = pytest.importorskip("uvloop")

    async def kind():
        async with await endpoint("http://connector.test/").http_client() as http:
            return type(http._transport)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(kind()) is httpx.AsyncHTTPTransport

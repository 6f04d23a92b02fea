"""A raw-socket server that each test scripts byte by byte, and helpers for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest

from autoplay_rag.connector.client import AsyncConnectorClient

STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


class Peer:
    """The server's end of one connection.

    Attributes:
        head: The request's first line.
        headers: The request's headers, by lower-case name.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.head = ""
        self.headers: dict[str, str] = {}

    async def read_request(self) -> None:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("utf-8")
        self.head, *lines = head.rstrip().split("\r\n")
        self.headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def gone(self) -> None:
        """Wait until the client has closed its end."""
        while await self._reader.read(1024):
            pass

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


Answer = Callable[[Peer], Awaitable[None]]


class FaultServer:
    """Gives the first answer to the first request, and so on; repeats the last one.

    Attributes:
        url: The URL of a stream.
        peers: All connections so far that sent a request.
    """

    url = ""

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self._answers: list[Answer] = [self.stream()]
        self._changed = asyncio.Condition()

    def script(self, *answers: Answer) -> None:
        self._answers = list(answers)

    async def requests(self, n: int) -> None:
        """Wait for `n` requests."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.peers) >= n)

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[FaultServer]:
        server = await asyncio.start_server(self._handle, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/stream/acme"
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for peer in self.peers:
                peer._writer.transport.abort()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await peer.read_request()
            answer = self._answers[min(len(self.peers), len(self._answers) - 1)]
            async with self._changed:
                self.peers.append(peer)
                self._changed.notify_all()
            await answer(peer)
        writer.close()

    @staticmethod
    def stream(*pieces: bytes, then: str = "stay", headers: bytes = b"") -> Answer:
        """Send these parts as a stream; then "stay" open, "close", "reset", or "cut" a chunked body."""

        async def answer(peer: Peer) -> None:
            chunked = then == "cut"
            coding = b"Transfer-Encoding: chunked\r\n" if chunked else b"Connection: close\r\n"
            await peer.write(STREAM_HEAD + headers + coding + b"\r\n")
            for piece in pieces:
                await peer.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
            if then == "stay":
                await peer.gone()
            elif then == "reset":
                peer.reset()

        return answer

    @staticmethod
    def trickle(data: bytes) -> Answer:
        """Send a stream byte by byte, then stay open."""

        async def answer(peer: Peer) -> None:
            sock = peer._writer.get_extra_info("socket")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await peer.write(STREAM_HEAD + b"Connection: close\r\n\r\n")
            for i in range(len(data)):
                await peer.write(data[i : i + 1])
                await asyncio.sleep(0)
            await peer.gone()

        return answer

    @staticmethod
    def status(code: int, *headers: str, body: bytes = b"no") -> Answer:
        """Send a complete answer that is not a stream."""

        async def answer(peer: Peer) -> None:
            lines = [f"HTTP/1.1 {code} Whatever", f"Content-Length: {len(body)}", *headers]
            await peer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

        return answer

    @staticmethod
    def raw(data: bytes, *, then: str = "close") -> Answer:
        """Send these bytes instead of HTTP."""

        async def answer(peer: Peer) -> None:
            await peer.write(data)
            if then == "reset":
                peer.reset()
            elif then == "stay":
                await peer.gone()

        return answer


@pytest.fixture
async def server():
    async with FaultServer().serve() as running:
        yield running


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """Make one file with a self-signed certificate for 127.0.0.1 and its key."""
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    key, signed = path.with_suffix(".key"), path.with_suffix(".crt")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(signed)),
        ],
        check=True,
        capture_output=True,
    )
    path.write_bytes(key.read_bytes() + signed.read_bytes())
    return path


@pytest.fixture
def event():
    """Make one event of the wire format: `event("s1", 3)`, `event(None, kind="summary")`."""

    def make(
        session_id: str | None = "s1", n: int = 0, *, kind: str = "actions", id: str = ""
    ) -> bytes:
        body: dict = {"type": kind, "product_id": "acme", "session_id": session_id}
        if kind == "summary":
            body |= {"summary": f"Exported report {n}.", "replaces": n}
        else:
            body |= {"actions": [{"title": f"Report {n}", "index": n, "type": "click"}], "count": 1}
        head = f"id: {id}\n" if id else ""
        return f"{head}data: {json.dumps(body)}\n\n".encode()

    return make


@pytest.fixture
def until():
    """Poll for a condition that has no event: `await until(lambda: client.pending == 2)`."""

    async def wait(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0)

    return wait


@pytest.fixture
async def connect(server):
    """Make clients of the server with short waits between attempts; stop them at the end."""
    clients: list[AsyncConnectorClient] = []

    def make(
        url: str | None = None, token: str = "uk_live_secret", **options
    ) -> AsyncConnectorClient:
        options = {"initial_backoff_s": 0.01, "max_backoff_s": 0.05, "drain_timeout": 5.0} | options
        client = AsyncConnectorClient(url or server.url, token, **options)
        clients.append(client)
        return client

    yield make
    for client in clients:
        async with client:
            pass


@pytest.fixture
async def scripted():
    """Make an httpx client with one answer: a stream of exactly these reads, then silence."""
    made: list[httpx.AsyncClient] = []

    class Body(httpx.AsyncByteStream):
        def __init__(self, reads: list[bytes], *, stay: bool) -> None:
            self._reads = reads
            self._stay = stay

        async def __aiter__(self):
            for read in self._reads:
                yield read
            if self._stay:
                await asyncio.Event().wait()

    def make(
        reads: list[bytes], *, stay: bool = True, headers: dict | None = None
    ) -> httpx.AsyncClient:
        def answer(_request: httpx.Request) -> httpx.Response:
            given = {"Content-Type": "text/event-stream"} | (headers or {})
            return httpx.Response(200, headers=given, stream=Body(reads, stay=stay))

        made.append(httpx.AsyncClient(transport=httpx.MockTransport(answer)))
        return made[-1]

    yield make
    for http in made:
        await http.aclose()

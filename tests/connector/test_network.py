"""The client's sockets, against real ones: bytes, limits of time, ends, cancellation."""

import asyncio
import contextlib
import gc
import random
import socket
import ssl
import struct
from collections import Counter

import httpcore
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag.connector.connection import tls_fault
from autoplay_rag.connector.network import AsyncioBackend, _addresses

BACKEND = AsyncioBackend()
LIMIT = 30.0  # seconds; ends a test that hangs


@contextlib.asynccontextmanager
async def listening(answer, **options):
    """Serve connections; yield the port. `answer` has the reader and the writer."""

    async def handle(reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await answer(reader, writer)
        writer.transport.abort()

    async with await asyncio.start_server(handle, "127.0.0.1", 0, **options) as server:
        yield server.sockets[0].getsockname()[1]


@contextlib.asynccontextmanager
async def connected(port, *, trusting=None):
    stream = await BACKEND.connect_tcp("127.0.0.1", port, LIMIT)
    try:
        if trusting is not None:
            context = ssl.create_default_context(cafile=trusting)
            stream = await stream.start_tls(context, "127.0.0.1", LIMIT)
        yield stream
    finally:
        await stream.aclose()


async def read_all(stream, max_bytes=65_536):
    parts = []
    while part := await stream.read(max_bytes, LIMIT):
        assert len(part) <= max_bytes
        parts.append(part)
    return b"".join(parts)


def distinct(size):
    """Bytes that differ from place to place, so that a lost or a repeated read is seen."""
    return random.Random(size).randbytes(size)


@pytest.fixture
def server_tls(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


# Bytes


@pytest.mark.parametrize("tls", [False, True])
async def test_a_large_body_for_a_slow_reader_waits_at_the_sender(
    certificate, server_tls, until, tls
):
    body = distinct(24_000_000)  # more than the kernel holds for a connection
    sent = asyncio.Event()

    async def answer(_reader, writer):
        for start in range(0, len(body), 1_000_000):
            writer.write(body[start : start + 1_000_000])
            await writer.drain()
        sent.set()
        writer.close()
        await writer.wait_closed()

    async with (
        listening(answer, ssl=server_tls if tls else None) as port,
        connected(port, trusting=certificate if tls else None) as stream,
    ):
        await until(lambda: stream._paused)
        for _ in range(100):
            await asyncio.sleep(0)
        assert 65_536 < len(stream._received) <= 65_536 + 2 * 262_144
        assert not sent.is_set()
        assert await read_all(stream, 60_000) == body
        assert await stream.read(1, LIMIT) == b""


@given(
    st.lists(st.binary(min_size=1, max_size=200), max_size=8),
    st.lists(st.tuples(st.booleans(), st.integers(1, 300)), max_size=20),
)
def test_reads_that_are_cancelled_lose_nothing(writes, reads):
    async def answer(_reader, writer):
        for data in writes:
            writer.write(data)
            await asyncio.sleep(0)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def run():
        received = b""
        async with listening(answer) as port, connected(port) as stream:
            for cancelled, max_bytes in reads:
                reading = asyncio.create_task(stream.read(max_bytes, LIMIT))
                await asyncio.sleep(0)
                if cancelled:
                    reading.cancel()
                await asyncio.wait([reading])
                if not reading.cancelled():
                    received += reading.result()
            return received + await read_all(stream)

    assert asyncio.run(run()) == b"".join(writes)


async def test_a_backlog_does_not_keep_the_loop_from_other_tasks(until):
    async def answer(reader, writer):
        writer.write(bytes(60_000))
        await reader.read()

    async with listening(answer) as port, connected(port) as stream:
        await until(lambda: len(stream._received) == 60_000)
        turns = 0

        def count():
            nonlocal turns
            turns += 1
            asyncio.get_running_loop().call_soon(count)

        count()
        for _ in range(10):
            await stream.read(100, LIMIT)
        assert turns > 10


@pytest.mark.parametrize("tls", [False, True])
async def test_what_is_written_arrives_however_slowly_it_is_read(certificate, server_tls, tls):
    parts = [distinct(1_000_000 + number) for number in range(16)]
    go_on = asyncio.Event()

    async def answer(reader, writer):
        await go_on.wait()
        got = await reader.readexactly(sum(map(len, parts)))
        writer.write(b"same" if got == b"".join(parts) else b"different")
        await writer.drain()
        await reader.read()

    async with (
        listening(answer, ssl=server_tls if tls else None) as port,
        connected(port, trusting=certificate if tls else None) as stream,
    ):
        left = iter(parts)

        async def write_all(seconds):
            for part in left:
                await stream.write(part, seconds)

        with pytest.raises(httpcore.WriteTimeout, match=r"for 0\.01 s"):
            await write_all(0.01)
        go_on.set()
        await write_all(LIMIT)
        assert await stream.read(100, LIMIT) == b"same"


# Limits of time


async def test_a_read_that_brings_nothing_ends_in_time():
    async with listening(lambda reader, _: reader.read()) as port, connected(port) as stream:
        with pytest.raises(httpcore.ReadTimeout, match=r"for 0\.01 s"):
            await stream.read(1, 0.01)


@contextlib.asynccontextmanager
async def read_once(seconds):
    """Yield a connection whose first read waited, and a function to have another byte sent."""
    asked = asyncio.Queue()

    async def answer(_reader, writer):
        while await asked.get():
            writer.write(b"x")

    async with listening(answer) as port, connected(port) as stream:
        reading = asyncio.create_task(stream.read(1, seconds))
        await asyncio.sleep(0)
        asked.put_nowait(True)
        assert await reading == b"x"
        yield stream, lambda: asked.put_nowait(True)
        asked.put_nowait(False)


async def test_the_timer_of_a_read_does_not_end_a_later_one():
    async with read_once(LIMIT) as (stream, send):
        reading = asyncio.create_task(stream.read(1, LIMIT))
        await asyncio.sleep(0)
        stream._stop_timer()
        stream._time_is_over()  # as if the first read's timer were due
        assert stream._timer is not None
        send()
        assert await reading == b"x"


async def test_a_read_may_have_less_time_than_the_one_before():
    async with read_once(1_000) as (stream, _):
        with pytest.raises(httpcore.ReadTimeout):
            await stream.read(1, 0.01)


async def test_a_read_without_a_limit_is_not_ended_by_an_earlier_timer():
    async with read_once(LIMIT) as (stream, send):
        assert stream._timer is not None
        reading = asyncio.create_task(stream.read(1))
        await asyncio.sleep(0)
        assert stream._timer is None
        send()
        assert await reading == b"x"


@contextlib.contextmanager
def unanswering(host="127.0.0.1", port=0):
    """Yield the address of a socket that is full: who connects hears nothing."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind((host, port))
        full.listen(0)
        for _ in range(2):  # the kernel takes one more than it was asked to
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        yield full.getsockname()


async def test_a_connect_without_an_answer_ends_in_time():
    with unanswering() as address, pytest.raises(httpcore.ConnectTimeout, match=r"within 0\.05 s"):
        await BACKEND.connect_tcp(*address, 0.05)
    gc.collect()


async def test_a_handshake_without_an_answer_ends_in_time():
    async with listening(lambda reader, _: reader.read()) as port:
        stream = await BACKEND.connect_tcp("127.0.0.1", port)
        with pytest.raises(httpcore.ConnectTimeout, match=r"within 0\.05 s"):
            await stream.start_tls(ssl.create_default_context(), "127.0.0.1", 0.05)
        gc.collect()


@pytest.fixture
def resolved(monkeypatch):
    """Call it with the addresses of all hosts."""

    def give(*addresses):
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, 0))
            for address in addresses
        ]
        real = socket.getaddrinfo

        def answer(host, *args, **options):
            return found if host == "connector.test" else real(host, *args, **options)

        monkeypatch.setattr(socket, "getaddrinfo", answer)

    return give


async def greeting(reader, writer):
    writer.write(b"here")
    await reader.read()


async def test_the_next_address_is_tried_beside_one_that_does_not_answer(resolved):
    async with listening(greeting) as port:
        with unanswering("127.0.0.2", port):
            resolved("127.0.0.2", "127.0.0.1")
            stream = await BACKEND.connect_tcp("connector.test", port, LIMIT)
        assert await stream.read(100, LIMIT) == b"here"
        await stream.aclose()


async def test_the_next_address_is_tried_at_once_after_one_that_refuses(resolved):
    async with listening(greeting) as port:
        resolved("127.0.0.2", "127.0.0.3", "127.0.0.1")
        stream = await BACKEND.connect_tcp("connector.test", port, 0.2)  # less than a pause
        assert await stream.read(100, LIMIT) == b"here"
        await stream.aclose()


async def test_if_all_addresses_refuse_the_last_refusal_is_told(resolved, unused_port):
    resolved("127.0.0.2", "127.0.0.3")
    with pytest.raises(httpcore.ConnectError, match=r"127\.0\.0\.3"):
        await BACKEND.connect_tcp("connector.test", unused_port, LIMIT)


async def test_the_families_of_a_host_are_tried_in_turn(monkeypatch):
    found = [
        (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, 0))
        for family, address in (
            (socket.AF_INET6, "::2"), (socket.AF_INET6, "::3"), (socket.AF_INET6, "::2"),
            (socket.AF_INET, "127.0.0.2"),
        )
    ]  # fmt: skip
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: found)
    assert await _addresses("connector.test", 1) == ["::2", "127.0.0.2", "::3"]
    assert await _addresses("::7", 1) == ["::7"]


# Ends


async def test_a_refused_connection_says_where(unused_port):
    with pytest.raises(httpcore.ConnectError, match=f"127.0.0.1.*{unused_port}") as caught:
        await BACKEND.connect_tcp("127.0.0.1", unused_port, LIMIT)
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


@pytest.fixture
def unused_port():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


async def test_a_host_that_does_not_exist_is_a_connect_error(monkeypatch):
    def unknown(*_args, **_options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(httpcore.ConnectError, match="not known"):
        await BACKEND.connect_tcp("connector.test", 443, LIMIT)


async def test_a_reset_is_an_error_after_what_came_before(until):
    go_on = asyncio.Event()

    async def answer(_reader, writer):
        writer.write(b"first")
        await go_on.wait()
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async with listening(answer) as port, connected(port) as stream:
        await until(lambda: stream._received)
        go_on.set()
        await until(lambda: stream._ended)
        assert await stream.read(100, LIMIT) == b"first"
        for _ in range(2):
            with pytest.raises(httpcore.ReadError) as caught:
                await stream.read(100, LIMIT)
            assert isinstance(caught.value.__cause__, ConnectionResetError)
        with pytest.raises(httpcore.WriteError):
            await stream.write(b"more", LIMIT)


async def test_a_half_closed_connection_ends_after_what_came_before():
    async def answer(reader, writer):
        writer.write(b"all")
        writer.write_eof()
        await reader.read()

    async with listening(answer) as port, connected(port) as stream:
        assert await read_all(stream) == b"all"
        assert await stream.read(100, LIMIT) == b""
        assert stream.get_extra_info("is_readable")


@pytest.mark.parametrize("notify", [True, False])
async def test_tls_ends_with_and_without_close_notify(certificate, server_tls, notify):
    """Many servers send none; nothing that they sent before is lost."""
    body = distinct(1_000_000)

    def serve(sock):
        with sock.accept()[0] as plain, server_tls.wrap_socket(plain, server_side=True) as secure:
            secure.sendall(body)
            if notify:
                with contextlib.suppress(OSError):
                    secure.unwrap()

    with socket.create_server(("127.0.0.1", 0)) as sock:
        serving = asyncio.create_task(asyncio.to_thread(serve, sock))
        async with connected(sock.getsockname()[1], trusting=certificate) as stream:
            assert await read_all(stream) == body
        await serving


async def test_closing_ends_a_read_that_waits():
    async with listening(lambda reader, _: reader.read()) as port, connected(port) as stream:
        reading = asyncio.create_task(stream.read(1, LIMIT))
        await asyncio.sleep(0)
        await stream.aclose()
        with pytest.raises(httpcore.ReadError, match="was closed"):
            await reading
        await stream.aclose()  # again is fine


# TLS


async def test_tls_names_the_host_and_the_protocol(certificate, server_tls):
    named = asyncio.get_running_loop().create_future()
    server_tls.sni_callback = lambda _socket, name, _context: named.set_result(name)
    server_tls.set_alpn_protocols(["http/1.1"])

    async with listening(lambda reader, _: reader.read(), ssl=server_tls) as port:
        stream = await BACKEND.connect_tcp("127.0.0.1", port, LIMIT)
        context = ssl.create_default_context(cafile=certificate)
        context.check_hostname = False
        context.set_alpn_protocols(["http/1.1"])
        stream = await stream.start_tls(context, "connector.test", LIMIT)
        assert await named == "connector.test"
        assert stream.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        assert stream.get_extra_info("server_addr") == ("127.0.0.1", port)
        await stream.aclose()


@pytest.mark.parametrize(
    ("name", "trusted", "fault"),
    [
        ("127.0.0.1", False, "not trusted"),
        ("another.test", True, "not trusted (Hostname mismatch"),
    ],
)
async def test_a_certificate_that_does_not_fit_is_a_connect_error(
    certificate, server_tls, name, trusted, fault
):
    async with listening(lambda reader, _: reader.read(), ssl=server_tls) as port:
        stream = await BACKEND.connect_tcp("127.0.0.1", port, LIMIT)
        context = ssl.create_default_context(cafile=certificate if trusted else None)
        with pytest.raises(httpcore.ConnectError) as caught:
            await stream.start_tls(context, name, LIMIT)
        assert fault in tls_fault(caught.value)
        gc.collect()


async def test_a_handshake_that_is_cut_off_is_no_fault_of_the_certificate():
    async def answer(reader, _writer):
        await reader.read(10)

    async with listening(answer) as port:
        stream = await BACKEND.connect_tcp("127.0.0.1", port, LIMIT)
        with pytest.raises(httpcore.ConnectError) as caught:
            await stream.start_tls(ssl.create_default_context(), "127.0.0.1", LIMIT)
        assert tls_fault(caught.value) is None
        gc.collect()


async def test_a_server_that_speaks_at_once_is_read_through(certificate, server_tls):
    """What comes with the end of the handshake may be more than is buffered."""
    body = distinct(2_000_000)

    async def answer(_reader, writer):
        writer.write(body)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        server_tls.minimum_version = server_tls.maximum_version = version
        async with (
            listening(answer, ssl=server_tls) as port,
            connected(port, trusting=certificate) as stream,
        ):
            assert await read_all(stream) == body


# Cancellation


async def cancelled(work):
    """Let a coroutine begin, cancel it, and wait until it has ended."""
    task = asyncio.create_task(work)
    for _ in range(3):
        await asyncio.sleep(0)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gc.collect()


async def test_a_connect_that_is_cancelled_leaves_nothing():
    with unanswering() as address:
        await cancelled(BACKEND.connect_tcp(*address, LIMIT))


@pytest.mark.parametrize("addresses", [1, 2], ids=lambda count: f"{count} addresses")
async def test_no_socket_stays_open_whenever_a_connect_is_cancelled(resolved, addresses):
    """Also in the moment of the connection, where asyncio's own race of addresses leaves one."""
    ended = Counter()
    # Nobody accepts: the kernel answers.
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as server:
        port = server.getsockname()[1]
        resolved(*["127.0.0.1", "127.0.0.2"][:addresses])
        for turns in range(200):
            task = asyncio.create_task(BACKEND.connect_tcp("connector.test", port, LIMIT))
            for _ in range(turns % 40):
                await asyncio.sleep(0)
            if turns % 2:  # the name is resolved in a thread
                await asyncio.sleep(turns / 20_000)
            task.cancel()
            try:
                stream = await task
            except asyncio.CancelledError:
                ended["cancelled"] += 1
            else:
                ended["connected"] += 1
                await stream.aclose()
    gc.collect()
    assert set(ended) == {"cancelled", "connected"}


@contextlib.asynccontextmanager
async def listening_until_gone():
    """Serve connections; yield the port, and an event for the end of one."""
    gone = asyncio.Event()

    async def answer(reader, _writer):
        await reader.read()
        gone.set()

    async with listening(answer) as port:
        yield port, gone


async def test_a_handshake_that_is_cancelled_closes_the_connection():
    async with listening_until_gone() as (port, gone):
        stream = await BACKEND.connect_tcp("127.0.0.1", port, LIMIT)
        await cancelled(stream.start_tls(ssl.create_default_context(), "127.0.0.1", LIMIT))
        await gone.wait()


async def test_a_handshake_that_cannot_begin_closes_the_connection():
    async with listening_until_gone() as (port, gone):
        stream = await BACKEND.connect_tcp("127.0.0.1", port, LIMIT)
        with pytest.raises(ValueError, match="label empty"):
            await stream.start_tls(ssl.create_default_context(), ".connector.test", LIMIT)
        await gone.wait()


async def test_a_write_that_is_cancelled_leaves_the_connection_to_its_owner():
    go_on = asyncio.Event()

    async def answer(_reader, _writer):
        await go_on.wait()

    async with listening(answer) as port:
        stream = await BACKEND.connect_tcp("127.0.0.1", port, LIMIT)
        await cancelled(stream.write(bytes(24_000_000), LIMIT))
        await stream.aclose()
        go_on.set()


async def test_options_of_the_socket_and_the_local_address_are_used():
    keepalive = (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    async with listening(lambda reader, _: reader.read()) as port:
        stream = await BACKEND.connect_tcp("127.0.0.1", port, LIMIT, "127.0.0.2", [keepalive])
        sock = stream.get_extra_info("socket")
        assert sock.getsockopt(*keepalive[:2]) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert stream.get_extra_info("client_addr")[0] == "127.0.0.2"
        assert not stream.get_extra_info("is_readable")
        await stream.aclose()

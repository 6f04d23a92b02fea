"""Connections that break in every way."""

import asyncio
import logging
import random
import re
import ssl
import time

import httpx
import pytest
from httpx_sse import ServerSentEvent
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoplay_rag.connector import backoff as backoff_rule
from autoplay_rag.connector.backoff import Backoff
from autoplay_rag.connector.client import AsyncConnectorClient
from autoplay_rag.connector.connection import Endpoint, tls_fault
from autoplay_rag.connector.metrics import Recorder
from autoplay_rag.connector.stream import EventStream
from autoplay_rag.errors import (
    AuthenticationError,
    ConnectorError,
    NotAnEventStreamError,
    ProductNotFoundError,
)


def indexes(payloads):
    return [payload.actions[0].index for payload in payloads]


async def take(client, n):
    """Return the next `n` payloads."""
    return [payload async for payload in client.stream(limit=n)]


@pytest.mark.parametrize("then", ["close", "cut"])
async def test_a_broken_connection_is_made_anew(server, connect, event, then):
    server.script(server.stream(event("s1", 1), then=then), server.stream(event("s1", 2)))
    assert indexes(await take(connect(), 2)) == [1, 2]
    assert len(server.peers) == 2


async def test_a_reset_connection_is_made_anew(server, connect, event):
    # A reset may overtake data sent before it, so send none.
    server.script(server.stream(then="reset"), server.stream(event("s1", 1)))
    client = connect()
    assert indexes(await take(client, 1)) == [1]
    assert client.last_error is not None


@pytest.mark.parametrize("position", ["first byte", "inside", "before the blank line"])
@pytest.mark.parametrize("then", ["close", "reset"])
async def test_an_event_that_was_cut_off_does_not_appear(server, connect, event, position, then):
    whole = event("s1", 1)
    cut = {"first byte": 1, "inside": len(whole) // 2, "before the blank line": len(whole) - 1}
    server.script(server.stream(whole[: cut[position]], then=then), server.stream(event("s1", 2)))
    client = connect()
    assert indexes(await take(client, 1)) == [2]
    assert client.counts.skipped == 0


async def test_cut_at_random_bytes_whole_events_arrive_in_order(server, connect, event):
    rng = random.Random(7)
    answers, expected = [], []
    for n in range(30):
        events = [event("s1", 100 + 10 * n + k) for k in range(3)]
        cut = rng.randrange(3 * len(events[0]) + 1)
        expected += [100 + 10 * n + k for k in range(cut // len(events[0]))]
        answers.append(server.stream(b"".join(events)[:cut], then=rng.choice(["close", "cut"])))
    server.script(*answers, server.stream(event("s1", 999)))
    client = connect(initial_backoff_s=0.001, max_backoff_s=0.001)
    assert indexes(await take(client, len(expected) + 1)) == [*expected, 999]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01 this is no HTTP\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nbroken header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X-Long: " + b"x" * 200_000,
        b"",
    ],
)
async def test_garbage_instead_of_http_is_retried(server, connect, event, garbage):
    server.script(server.raw(garbage), server.stream(event("s1", 1)))
    assert indexes(await take(connect(), 1)) == [1]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_passing_refusals_are_retried(server, connect, event, status):
    server.script(server.status(status), server.status(status), server.stream(event("s1", 1)))
    assert indexes(await take(connect(), 1)) == [1]
    assert len(server.peers) == 3


async def test_nobody_listening_is_retried(connect, event, server):
    async def not_yet(peer):
        peer.reset()

    server.script(not_yet, server.stream(event("s1", 1)))
    assert indexes(await take(connect(), 1)) == [1]


async def test_retry_after_is_honoured(server, connect, caplog, until):
    server.script(server.status(429, "Retry-After: 120"))
    client = connect()
    task = client.run_in_background()
    await server.requests(1)
    await until(lambda: client.state == "waiting")
    client.stop()
    await task
    (line,) = [r.getMessage() for r in caplog.records if "trying again" in r.getMessage()]
    assert 120 <= float(line.split(" in ")[1].split(" ")[0]) <= 132
    assert "429" in line


async def test_the_servers_retry_field_is_honoured(server, connect, caplog, until):
    server.script(server.stream(b"retry: 90000\n\n", then="close"))
    client = connect()
    task = client.run_in_background()
    await until(lambda: client.state == "waiting")
    client.stop()
    await task
    (line,) = [r.getMessage() for r in caplog.records if "trying again" in r.getMessage()]
    assert 90 <= float(line.split(" in ")[1].split(" ")[0]) <= 99


async def test_the_last_event_id_is_sent_from_connection_to_connection(server, connect, event):
    server.script(
        server.stream(event("s1", 1, id="a"), event("s1", 2), then="close"),
        server.stream(event("s1", 3), then="close"),  # no id: the last one stays
        server.stream(event("s1", 4, id="b"), b"id: c\n\n", then="close"),  # an id alone counts
        server.stream(b"id\n", event("s1", 5), then="close"),  # an empty id clears it
        server.stream(event("s1", 6)),
    )
    payloads = await take(connect(), 6)
    assert indexes(payloads) == [1, 2, 3, 4, 5, 6]
    sent = [peer.headers.get("last-event-id") for peer in server.peers]
    assert sent == [None, "a", "a", "c", None]


async def test_the_id_outlives_a_stop(server, connect, event):
    server.script(server.stream(event("s1", 1, id="a")), server.stream(event("s1", 2)))
    client = connect()
    await take(client, 1)
    await take(client, 1)
    assert server.peers[1].headers["last-event-id"] == "a"


async def test_the_id_of_an_unfinished_event_is_not_taken(server, connect, event):
    server.script(
        server.stream(event("s1", 1, id="a"), b"id: b\ndata: {}\n", then="close"), server.stream()
    )
    connect().run_in_background()
    await server.requests(2)
    assert server.peers[1].headers["last-event-id"] == "a"


@pytest.mark.parametrize("stalled", ["before the answer", "inside the head", "inside an event"])
async def test_a_silent_connection_counts_as_lost(server, connect, event, stalled):
    answers = {
        "before the answer": server.raw(b"", then="stay"),
        "inside the head": server.raw(b"HTTP/1.1 200 OK\r\nConte", then="stay"),
        "inside an event": server.stream(event("s1", 0)[:-5]),
    }
    server.script(answers[stalled], server.stream(event("s1", 1)))
    client = connect(read_timeout=0.1)
    assert indexes(await take(client, 1)) == [1]
    assert "ReadTimeout" in repr(client.last_error)


async def test_any_byte_keeps_a_connection(server, connect, event):
    async def slowly(peer):
        await server.stream()(peer)

    async def comments(peer):
        await peer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        for _ in range(10):
            await asyncio.sleep(0.05)
            await peer.write(b":")
        await peer.write(b"\n" + event("s1", 1))
        await peer.gone()

    server.script(comments, slowly)
    assert indexes(await take(connect(read_timeout=0.4), 1)) == [1]
    assert len(server.peers) == 1


async def test_a_trickle_of_single_bytes_is_read_well(server, connect, event):
    text = event("é…", 1).replace(b"\n", b"\r\n") + event("s2", 2)
    server.script(server.trickle(text))
    assert indexes(await take(connect(), 2)) == [1, 2]


@pytest.mark.parametrize("status", [400, 401, 403, 405, 451])
async def test_a_single_refusal_in_the_middle_passes(server, connect, event, status, caplog):
    page = server.status(status, "Content-Type: text/html", body=b"<html>Just a moment...</html>")
    server.script(
        server.stream(event("s1", 1), then="close"),
        page,
        page,
        server.stream(event("s1", 2), then="close"),
        page,  # only consecutive ones count
        server.stream(event("s1", 3)),
    )
    assert indexes(await take(connect(), 3)) == [1, 2, 3]
    loud = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert [re.search(r"retry (\d) of 5", line).group(1) for line in loud] == ["1", "2", "1"]
    assert all(str(status) in line for line in loud)
    assert "Just a moment" not in caplog.text
    assert "uk_live" not in caplog.text


async def test_a_redirect_to_a_login_page_in_the_middle_passes(server, connect, event):
    login = server.status(302, "Location: https://login.test/")
    server.script(server.stream(event("s1", 1), then="close"), login, server.stream(event("s1", 2)))
    assert indexes(await take(connect(), 2)) == [1, 2]


async def test_lasting_refusals_in_the_middle_end_it(server, connect, event, caplog):
    server.script(server.stream(event("s1", 1), then="close"), server.status(401))
    payloads = connect().stream()
    assert indexes([await anext(payloads)]) == [1]
    with pytest.raises(AuthenticationError):
        await anext(payloads)
    assert len(server.peers) == 1 + 1 + 5
    assert sum(r.levelno == logging.ERROR for r in caplog.records) == 5


async def test_a_first_refusal_ends_it_at_once(server, connect):
    server.script(server.status(403))
    with pytest.raises(AuthenticationError):
        await connect().run()
    assert len(server.peers) == 1


@pytest.mark.parametrize("worked", [False, True])
async def test_refusals_are_retried_for_as_long_as_they_last_if_asked(
    server, connect, event, worked, caplog
):
    answers = [server.stream(event("s1", 1), then="close")] if worked else []
    for status, *header in ((401,), (403,), (404,), (400,), (302, "Location: https://login.test/")):
        answers += [server.status(status, *header)] * 3
    server.script(*answers, server.stream(event("s1", 2), event("s1", 3)))
    client = connect(retry_refusals=True)
    assert client.refusal is None
    payloads = client.stream(limit=2 + worked)
    seen = [(payload.actions[0].index, client.refusal) async for payload in payloads]
    assert seen[worked:] == [(2, None), (3, None)]
    assert len(server.peers) == 1 + 15 + worked
    assert "then the client ends" not in caplog.text
    assert "uk_live" not in caplog.text


async def test_a_refusal_is_named_until_there_is_a_connection(server, connect, event, until):
    server.script(server.status(401))
    client = connect(retry_refusals=True)
    task = client.run_in_background()
    await until(lambda: client.refusal is not None)
    assert isinstance(client.refusal, AuthenticationError)
    assert client.state in {"waiting", "connecting"}
    server.script(server.status(503))
    await until(lambda: client.refusal is None)  # it is not known whether it would still refuse
    server.script(server.status(404))
    await until(lambda: isinstance(client.refusal, ProductNotFoundError))
    server.script(server.stream(event("s1", 1), then="stay"))
    await client.wait_connected(30)
    assert client.refusal is None
    client.stop()
    await task


async def test_max_retries_also_ends_refusals_with_the_refusal_itself(server, connect, event):
    server.script(server.stream(event("s1", 1), then="close"), server.status(401))
    with pytest.raises(AuthenticationError):
        await connect(max_retries=2).run()
    assert len(server.peers) == 3


@pytest.mark.parametrize(
    ("given", "hint"), [("text/html; charset=utf-8", True), ("application/json", False)]
)
async def test_a_page_instead_of_a_refusal_is_named(server, connect, given, hint):
    server.script(server.status(403, f"Content-Type: {given}"))
    with pytest.raises(AuthenticationError) as caught:
        await connect().run()
    assert ("firewall" in str(caught.value)) == hint


@pytest.mark.parametrize(
    "pieces", [[], [b": hello\n\n"], [b":\n"], [b"retry: 1\n\n"], [b"event: heartbeat\ndata:\n\n"]]
)
async def test_a_proxy_that_ends_quiet_connections_uses_up_no_retries(
    server, connect, event, pieces, monkeypatch
):
    monkeypatch.setattr(backoff_rule, "_PROVEN_AFTER", 0.0)

    async def ended_by_a_proxy(peer):
        await peer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        for piece in pieces:
            await peer.write(piece)

    server.script(*[ended_by_a_proxy] * 6, server.stream(event("s1", 1)))
    assert indexes(await take(connect(max_retries=1), 1)) == [1]
    assert len(server.peers) == 7


async def test_connections_that_never_bring_a_byte_do_use_them_up(server, connect, monkeypatch):
    monkeypatch.setattr(backoff_rule, "_PROVEN_AFTER", 0.02)
    server.script(server.stream())
    with pytest.raises(RuntimeError, match=r"3 failed attempts.*ReadTimeout"):
        await connect(max_retries=2, read_timeout=0.05).run()


@pytest.mark.parametrize("given", ["text/event-stream", "Text/Event-Stream;charset=utf-8"])
async def test_two_equal_content_types_are_one(server, connect, event, given):
    twice = f"Content-Encoding: identity\r\nContent-Encoding: identity\r\nContent-Type: {given}\r\n"
    server.script(server.stream(event("s1", 1), headers=twice.encode()))
    assert indexes(await take(connect(), 1)) == [1]


@pytest.mark.parametrize("given", ["text/html", "text/plain", "application/json"])
async def test_two_different_content_types_are_no_stream(server, connect, given):
    server.script(server.stream(headers=f"Content-Type: {given}\r\n".encode()))
    with pytest.raises(NotAnEventStreamError, match=given):
        await connect().run()


# TLS


async def answer_in_plain_text(reader, writer):
    await reader.read(100)
    writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    await writer.drain()
    while await reader.read(100):
        pass
    writer.close()


@pytest.mark.parametrize(("max_retries", "tries"), [(None, 5), (9, 5), (1, 1), (0, 0)])
async def test_https_to_a_port_without_tls_ends_loudly(connect, caplog, max_retries, tries):
    async with await asyncio.start_server(answer_in_plain_text, "127.0.0.1", 0) as listening:
        url = f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}/stream/acme"
        with pytest.raises(ConnectorError, match=r"no TLS connection to https://.*SSL_CERT_FILE"):
            await connect(url, max_retries=max_retries).run()
    assert sum(r.levelno == logging.ERROR for r in caplog.records) == tries


def test_a_certificate_that_expires_in_the_middle_is_waited_for_loudly(caplog):
    endpoint = Endpoint("https://a.test/", "", connect_timeout=1, read_timeout=1)
    stream = EventStream(endpoint, Recorder(None))
    failure, backoff = httpx.ConnectError("no"), Backoff(1, 2)
    delays = [
        stream._delay_after_tls_fault(backoff, failure, "the certificate has expired", worked=True)
        for _ in range(20)
    ]
    assert max(delays) <= 2
    loud = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len(loud) == 20
    assert all("the certificate has expired" in line for line in loud)


async def test_a_certificate_that_nobody_trusts_ends_loudly(connect, certificate, caplog):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    listening = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0, ssl=context)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        with pytest.raises(ConnectorError, match="certificate is not trusted"):
            await connect(f"https://127.0.0.1:{port}/stream/acme").run()
    assert sum(r.levelno == logging.ERROR for r in caplog.records) == 5


async def test_a_trusted_certificate_is_taken_from_the_environment(
    connect, certificate, event, monkeypatch
):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + event("s1", 1))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as listening:
        port = listening.sockets[0].getsockname()[1]
        assert indexes(await take(connect(f"https://127.0.0.1:{port}/stream/acme"), 1)) == [1]


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] x"), "handshake failed"),
        (ssl.SSLEOFError(8, "cut off"), None),
        (ssl.SSLZeroReturnError(6, "closed"), None),
        (ConnectionResetError(), None),
        (TimeoutError(), None),
    ],
)
def test_only_a_handshake_that_was_not_cut_off_is_a_fault(error, fault):
    wrapped = httpx.ConnectError("no")
    wrapped.__cause__ = error
    found = tls_fault(wrapped)
    assert (found is None) if fault is None else fault in found


@pytest.mark.parametrize("passing", ["404", "a page", "gzip"])
async def test_what_passes_once_it_has_worked_is_retried(server, connect, event, passing, caplog):
    page = b"<html>back soon</html>"
    answer = {
        "404": server.status(404),
        "a page": server.status(200, "Content-Type: text/html", body=page),
        "gzip": server.stream(headers=b"Content-Encoding: gzip\r\n"),
    }[passing]
    server.script(
        server.stream(event("s1", 1), then="close"), answer, answer, server.stream(event("s1", 2))
    )
    assert indexes(await take(connect(), 2)) == [1, 2]
    assert len(server.peers) == 4
    assert caplog.text.count("trying again") == 3


async def test_a_refusal_after_a_stream_counts_towards_max_retries(server, connect, event):
    server.script(server.stream(event("s1"), then="close"), server.status(404))
    with pytest.raises(RuntimeError, match=r"3 failed attempts.*404"):
        await connect(max_retries=2).run()
    assert len(server.peers) == 3


async def test_a_new_run_has_to_work_first(server, connect, event):
    server.script(server.stream(event("s1", 1)), server.status(404))
    client = connect()
    await take(client, 1)
    with pytest.raises(ProductNotFoundError):
        await client.run()


async def test_failures_in_a_row_are_counted_over_short_connections(server, connect, event):
    server.script(server.stream(event("s1"), then="close"))
    client = connect(max_retries=3, max_backoff_s=0.01)
    with pytest.raises(RuntimeError, match="4 failed attempts"):
        await client.run()
    assert len(server.peers) == 4


async def test_the_state_tells_what_goes_on(server, connect, until):
    server.script(server.status(503), server.raw(b"", then="stay"))
    client = connect(initial_backoff_s=0.05, max_backoff_s=0.05)
    assert client.state == "idle"
    client.run_in_background()
    await until(lambda: client.state == "waiting")
    await server.requests(2)
    assert client.state == "connecting"
    assert client.last_event_at is None


# The contents of events


def read_all(events):
    """Return the payloads that a stream makes of events, without a connection."""
    recorder = Recorder(None)
    endpoint = Endpoint("http://a.test/", "", connect_timeout=1, read_timeout=1)
    stream = EventStream(endpoint, recorder)
    backoff = Backoff(1, 2)
    payloads = [
        payload
        for data in events
        if (payload := stream._read(ServerSentEvent(data=data), backoff)) is not None
    ]
    return payloads, recorder.counts


HOSTILE = [
    "not json",
    "{",
    '{"type": "actions"',
    "[]",
    "null",
    "NaN",
    '"actions"',
    "1" * 10_000,
    "[" * 100_000,
    '{"a":' * 100_000,
    '{"type": ["actions"]}',
    "{}",
    '{"type": "usertour_trigger"}',
    '{"type": "not invented yet", "x": 1}',
    "\x00",
    "\ufffd\ufffd",
]


@pytest.mark.parametrize("data", HOSTILE, ids=range(len(HOSTILE)))
def test_an_event_without_a_payload_is_skipped_and_counted(data):
    good = '{"type": "summary", "summary": "x"}'
    payloads, counts = read_all([good, data, good])
    assert [payload.summary for payload in payloads] == ["x", "x"]
    assert (counts.received, counts.skipped) == (2, 1)


@pytest.mark.parametrize(
    ("data", "repaired"),
    [
        ('{"type": "summary", "summary": "\\ud800x"}', 1),
        ('{"type": "summary", "summary": "x", "replaces": NaN}', 1),
        ('{"type": "summary", "summary": "x", "replaces": ' + "9" * 5000 + "}", 1),
        ('{"type": "summary", "summary": "x", "forwarded_at": 1e999}', 1),
        ('{"type": "summary", "summary": 7, "summary": "x"}', 0),
        ('{"type": "actions", "actions": [1, {"title": 2}, null]}', 3),
    ],
)
def test_a_bad_value_does_not_drop_its_event(data, repaired):
    payloads, counts = read_all([data])
    assert len(payloads) == 1
    assert (counts.received, counts.skipped, counts.repaired) == (1, 0, repaired)


@given(st.text() | st.builds(str, st.binary()))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_nothing_inside_an_event_ends_the_stream(data):
    payloads, counts = read_all([data])
    assert len(payloads) == counts.received
    assert counts.received + counts.skipped == (1 if data else 0)


async def test_skipped_events_are_logged_without_their_text_and_not_each(
    server, connect, event, caplog
):
    caplog.set_level(logging.DEBUG, logger="autoplay_rag")
    bad = [b"data: private text %d\n\n" % n for n in range(50)]
    repaired = b'data: {"type": "summary", "summary": ["private"]}\n\n'
    server.script(server.stream(*bad, repaired, event("s1", 1)))
    client = connect()
    await take(client, 2)
    assert client.counts.skipped == 50
    assert client.counts.repaired == 1
    assert "private" not in caplog.text
    assert caplog.text.count("skipped 1 event(s)") == 1


async def test_an_oversize_event_is_skipped_and_counted(server, connect, event):
    big = b'data: {"type": "summary", "summary": "' + b"x" * 5000 + b'"}\n\n'
    server.script(server.stream(event("s1", 1), big, event("s1", 2)))
    client = connect(max_event_bytes=1000)
    assert indexes(await take(client, 2)) == [1, 2]
    assert client.counts.skipped == 1


async def test_heartbeats_and_blocks_without_data_are_no_payloads(server, connect, event):
    server.script(
        server.stream(
            b"event: heartbeat\ndata:\n\n",
            b"event: heartbeat\ndata: {}\n\n",
            b"id: 1\n\n",
            b"event: actions\n\n",
            b"\n\n\n",
            b": comment\n\n",
            event("s1", 1),
        )
    )
    client = connect()
    before = time.time()
    assert indexes(await take(client, 1)) == [1]
    assert client.counts.skipped == 0
    assert before <= client.last_event_at <= time.time()


async def test_a_stream_can_be_read_without_a_client(server, event):
    server.script(server.stream(event("s1", 1), event("s1", 2)))
    endpoint = Endpoint(server.url, "", connect_timeout=5, read_timeout=5)
    found = []

    async def read():
        async for payloads in EventStream(endpoint, Recorder(None)):
            found.extend(payloads)
            if len(found) == 2:
                done.set()

    done = asyncio.Event()
    task = asyncio.create_task(read())
    await done.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_client_needs_no_loop_to_be_made():
    assert AsyncConnectorClient("http://a.test/stream/x").state == "idle"

"""LocalConnector over real HTTP: frames, statuses, pace, pushes and closing."""

import asyncio
import json
import logging
import signal
import socket
import sys
import time
from contextlib import asynccontextmanager

import httpx
import pytest

from autoplay_rag.connector.recording import RecordingWriter
from autoplay_rag.decoding import decode
from autoplay_rag.devserver import LocalConnector, samples
from autoplay_rag.devserver.subscriber import HEARTBEAT
from autoplay_rag.errors import (
    ClientStateError,
    ConfigurationError,
    MissingExtraError,
    RecordingError,
)
from autoplay_rag.payloads import ActionsPayload, SlimAction, SummaryPayload


def summaries(count, product_id="acme"):
    return [SummaryPayload(product_id, f"s{n}", f"Summary {n}.") for n in range(count)]


@asynccontextmanager
async def subscribed(connector, url=None, **headers):
    async with (
        httpx.AsyncClient(timeout=30) as http,
        http.stream("GET", url or connector.url, headers=headers) as response,
    ):
        yield response


async def read_frames(response, count):
    """Return the first `count` frames as bytes; a frame ends with an empty line."""
    buffer = b""
    async for piece in response.aiter_bytes():
        buffer += piece
        if buffer.count(b"\n\n") >= count:
            break
    return [part + b"\n\n" for part in buffer.split(b"\n\n")[:count]]


def payload_of(frame):
    assert frame.startswith(b"data: ")
    assert frame.endswith(b"\n\n")
    return decode(frame.removeprefix(b"data: "))


async def test_a_recording_goes_out_line_for_line(tmp_path):
    path = tmp_path / "visits.jsonl"
    odd = '{"type": "actions",  "product_id": "acme", "unknown": "é—\u2028"}'.encode()
    path.write_bytes(odd + b'\n\n{"type":"later_invention"}\r\n')
    async with LocalConnector(path) as connector, subscribed(connector) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        frames = await read_frames(response, 2)
    assert frames == [b"data: " + odd + b"\n\n", b'data: {"type":"later_invention"}\n\n']


async def test_every_subscriber_gets_all_from_the_beginning():
    sent = summaries(1000)
    async with LocalConnector(sent) as connector:
        async with subscribed(connector) as first, subscribed(connector) as second:
            assert connector.subscribers == 2
            both = await asyncio.gather(read_frames(first, 1000), read_frames(second, 1000))
        async with subscribed(connector) as late:
            third = await read_frames(late, 1000)
    for frames in (*both, third):
        assert [payload_of(frame) for frame in frames] == sent


async def test_heartbeats_come_once_the_recording_is_over():
    connector = LocalConnector(summaries(1), heartbeat=0.02)
    async with connector, subscribed(connector) as response:
        frames = await read_frames(response, 4)
    assert frames[1:] == [HEARTBEAT] * 3


async def test_heartbeats_come_between_slow_events_too():
    connector = LocalConnector(summaries(2), rate=2, heartbeat=0.1)
    async with connector, subscribed(connector) as response:
        frames = await read_frames(response, 4)
    assert payload_of(frames[0]).session_id == "s0"
    assert frames[1:4] == [HEARTBEAT] * 3


async def test_no_heartbeat_when_none_is_wanted():
    async with LocalConnector([], heartbeat=None) as connector, subscribed(connector) as response:
        await connector.send(SummaryPayload("acme", "s1"))
        assert payload_of((await read_frames(response, 1))[0]).session_id == "s1"


async def test_rate_holds_events_back():
    connector = LocalConnector(summaries(6), rate=25)
    began = time.monotonic()
    async with connector, subscribed(connector) as response:
        await read_frames(response, 6)
    assert time.monotonic() - began >= 5 / 25, "the sixth is due five periods on"


async def test_loop_starts_over():
    connector = LocalConnector(summaries(3), loop=True)
    async with connector, subscribed(connector) as response:
        frames = await read_frames(response, 7)
    assert [payload_of(f).session_id for f in frames] == ["s0", "s1", "s2", "s0", "s1", "s2", "s0"]


async def test_looping_over_nothing_stays_open():
    connector = LocalConnector([], loop=True, heartbeat=0.02)
    async with connector, subscribed(connector) as response:
        assert await read_frames(response, 1) == [HEARTBEAT]


async def test_statuses_are_the_connectors():
    connector = LocalConnector(summaries(1), token="uk_right", push_only=["pushed"])
    async with connector, httpx.AsyncClient() as http:
        base = connector.url.rsplit("/", 1)[0]

        async def status(product, authorization=None):
            headers = {"Authorization": authorization} if authorization else {}
            async with http.stream("GET", f"{base}/{product}", headers=headers) as response:
                return response.status_code

        assert await status("acme") == 401
        assert await status("acme", "Bearer uk_wrong") == 401
        assert await status("acme", "Basic uk_right") == 401
        assert await status("acme", "Bearer uk_right") == 200
        assert await status("nobody", "Bearer uk_right") == 404
        assert await status("nobody") == 401, "who has no token learns of no product"
        assert await status("pushed", "Bearer uk_right") == 400
        assert (await http.post(connector.url)).status_code == 405
        assert (
            await http.head(connector.url, headers={"Authorization": "Bearer uk_right"})
        ).is_success


async def test_without_a_token_any_is_welcome():
    connector = LocalConnector(summaries(1))
    async with connector, subscribed(connector, authorization="Bearer whatever") as response:
        assert response.status_code == 200


async def test_the_product_is_the_recordings_unless_given():
    async with LocalConnector(summaries(1, "a/b c")) as connector:
        assert connector.product_id == "a/b c"
        assert connector.url.endswith("/stream/a%2Fb%20c")
        async with subscribed(connector) as response:
            assert response.status_code == 200
    async with LocalConnector(summaries(1), product_id="other") as connector:
        assert connector.url.endswith("/stream/other")
    async with LocalConnector([]) as connector:
        assert connector.url.endswith("/stream/local")
    async with LocalConnector([b"nonsense", b'{"type":"summary","product_id":"p"}']) as connector:
        assert connector.url.endswith("/stream/p")


async def test_by_default_the_shipped_samples_are_served():
    async with LocalConnector() as connector, subscribed(connector) as response:
        frames = await read_frames(response, 5)
    lines = samples().read_bytes().splitlines()[:5]
    assert frames == [b"data: " + line + b"\n\n" for line in lines]


async def test_send_reaches_all_who_are_connected_and_says_how_many():
    action = SlimAction("Export", 'Clicked "Export"', "https://a.test/", 0, "click")
    payload = ActionsPayload("acme", "s9", actions=[action], count=1)
    async with LocalConnector([]) as connector:
        assert await connector.send(payload) == 0
        async with subscribed(connector) as first, subscribed(connector) as second:
            assert await connector.send(payload) == 2
            assert await connector.send(b'{"type":"later_invention"}') == 2
            for response in (first, second):
                frames = await read_frames(response, 2)
                assert payload_of(frames[0]) == payload
                assert frames[1] == b'data: {"type":"later_invention"}\n\n'


async def test_send_comes_ahead_of_a_slow_recording():
    connector = LocalConnector(summaries(2), rate=0.01)
    async with connector, subscribed(connector) as response:
        await read_first(response)
        await connector.send(SummaryPayload("acme", "pushed"))


async def read_first(response):
    assert payload_of((await read_frames(response, 1))[0]).session_id == "s0"


async def test_send_waits_for_a_reader_who_is_slow_until_that_one_leaves():
    big = SummaryPayload("acme", "s1", "x" * 100_000)
    async with LocalConnector([]) as connector:
        async with subscribed(connector):
            sending = asyncio.create_task(send_times(connector, big, 1000))
            done, _ = await asyncio.wait({sending}, timeout=0.5)
            assert not done, "nobody reads, so most of these 100 MB cannot have gone"
        await asyncio.wait_for(sending, 30)


async def send_times(connector, payload, count):
    for _ in range(count):
        await connector.send(payload)


async def test_a_subscriber_who_leaves_is_forgotten():
    async with LocalConnector(summaries(1)) as connector:
        async with subscribed(connector):
            assert connector.subscribers == 1
        async with asyncio.timeout(30):
            await connector.wait_subscribers(0)
        assert await connector.send(summaries(1)[0]) == 0


async def test_aclose_ends_open_streams_well_and_those_that_stall_too():
    big = [SummaryPayload("acme", "s1", "x" * 1_000_000) for _ in range(50)]
    connector = await LocalConnector(summaries(1)).start()
    stalling = await LocalConnector(big).start()
    before = asyncio.all_tasks()
    async with subscribed(connector) as open_, subscribed(stalling):
        ended = asyncio.create_task(open_.aread())
        async with asyncio.timeout(30):
            await asyncio.gather(connector.aclose(), stalling.aclose())
        assert (await ended).endswith(b"\n\n"), "the response ended with a whole event"
    assert asyncio.all_tasks() <= before, "no task is left"


async def test_start_and_aclose_twice_and_again():
    connector = LocalConnector(summaries(1))
    assert await connector.start() is connector
    url = connector.url
    await connector.start()
    assert connector.url == url
    assert url in repr(connector)
    await connector.aclose()
    await connector.aclose()
    assert "not started" in repr(connector)
    await connector.start()
    async with subscribed(connector) as response:
        await read_first(response)
    await connector.aclose()


async def test_what_needs_a_running_connector_says_so():
    connector = LocalConnector([])
    for attempt in (lambda: connector.url, lambda: connector.product_id):
        with pytest.raises(ClientStateError, match="start"):
            attempt()
    with pytest.raises(ClientStateError, match="start"):
        await connector.send(b"{}")


async def test_a_port_in_use_is_an_os_error():
    async with LocalConnector([]) as connector:
        port = httpx.URL(connector.url).port
        second = LocalConnector([], port=port)
        with pytest.raises(OSError, match="in use"):
            await second.start()
        await second.aclose()


async def test_a_missing_recording_is_an_os_error_on_start(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.jsonl"):
        await LocalConnector(tmp_path / "absent.jsonl").start()


@pytest.mark.parametrize("setting", [{"rate": 0}, {"rate": -1}, {"heartbeat": 0}])
def test_settings_that_cannot_work_are_refused(setting):
    with pytest.raises(ConfigurationError, match="above 0"):
        LocalConnector([], **setting)


async def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "autoplay_rag.devserver.serving", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'autoplay-rag\[devserver\]'"):
        await LocalConnector([]).start()


async def test_signal_handlers_and_logging_are_left_alone():
    names = ("uvicorn", "uvicorn.error", "uvicorn.access")

    def state():
        loggers = [logging.getLogger(name) for name in names]
        logs = [(lg.level, lg.propagate, lg.disabled, tuple(lg.handlers)) for lg in loggers]
        return logs, signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    before = state()
    async with LocalConnector([]):
        assert state() == before
    assert state() == before


async def test_a_recording_written_by_the_writer_is_served(tmp_path):
    with RecordingWriter(tmp_path / "r.jsonl") as writer:
        for payload in summaries(300):
            writer.write(payload)
    async with LocalConnector(tmp_path / "r.jsonl") as connector, subscribed(connector) as response:
        frames = await read_frames(response, 300)
    assert [json.loads(f.removeprefix(b"data: "))["session_id"] for f in frames] == [
        f"s{n}" for n in range(300)
    ]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
async def test_events_leave_at_once(host):
    # With Nagle's algorithm each event would wait 40 ms for the previous acknowledgement.
    connector = LocalConnector(summaries(1), host=host)
    async with connector, subscribed(connector) as response:
        await read_frames(response, 1)
        [connection] = connector._server.server_state.connections
        sock = connection.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_recording_in_utf_16_is_replayed(tmp_path):
    path = tmp_path / "visits.jsonl"
    path.write_bytes('{"type":"summary","product_id":"é"}\r\n'.encode("utf-16"))
    async with LocalConnector(path) as connector, subscribed(connector) as response:
        assert connector.product_id == "é"
        frames = await read_frames(response, 1)
    assert frames == ['data: {"type":"summary","product_id":"é"}\n\n'.encode()]


async def test_what_is_no_recording_is_refused_at_the_start(tmp_path):
    path = tmp_path / "visits.zip"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(RecordingError, match="zip archive"):
        await LocalConnector(path).start()

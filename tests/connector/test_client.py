import asyncio
import contextlib
import gc
import inspect
import logging
import threading
import time
import traceback

import httpx
import pytest

from autoplay_rag.connector.client import AsyncConnectorClient
from autoplay_rag.errors import (
    AuthenticationError,
    ClientStateError,
    ConfigurationError,
    NotStreamModeError,
    ProductNotFoundError,
    RetriesExhaustedError,
)

SECRET = "uk_live_secret"


class Collector:
    """Collects payloads and signals when there are enough."""

    def __init__(self):
        self.payloads = []
        self._changed = asyncio.Condition()

    async def __call__(self, payload):
        async with self._changed:
            self.payloads.append(payload)
            self._changed.notify_all()

    async def have(self, n):
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.payloads) >= n)

    @property
    def texts(self):
        return [payload.to_text() for payload in self.payloads]


@pytest.fixture
async def collector():
    return Collector()


async def test_actions_and_summaries_reach_their_callbacks(server, connect, event, collector):
    heartbeat = b"event: heartbeat\ndata:\n\n"
    server.script(
        server.stream(event("s1", 1), heartbeat, event("s1", 2, kind="summary"), event(None, 3))
    )
    client = connect()
    assert client.on_actions(collector).on_summary(collector) is client
    task = client.run_in_background()
    await collector.have(3)
    assert [payload.kind for payload in collector.payloads] == ["actions", "summary", "actions"]
    assert client.state == "connected"
    assert time.time() - client.last_event_at < 5
    client.stop()
    await task
    assert client.state == "stopped"
    assert (client.counts.received, client.counts.delivered, client.pending) == (3, 3, 0)


async def test_the_request_is_what_the_connector_expects(server, connect):
    client = connect()
    client.run_in_background()
    await client.wait_connected(5)
    assert server.peers[0].head == "GET /stream/acme HTTP/1.1"
    headers = server.peers[0].headers
    assert headers["authorization"] == f"Bearer {SECRET}"
    assert headers["accept"] == "text/event-stream"
    assert headers["accept-encoding"] == "identity"
    assert "last-event-id" not in headers


async def test_the_token_comes_from_the_environment(server, monkeypatch):
    monkeypatch.setenv("AUTOPLAY_APP_UNKEY_TOKEN", "uk_live_env\n")
    async with AsyncConnectorClient(server.url) as client:
        client.run_in_background()
        await client.wait_connected(5)
    assert server.peers[0].headers["authorization"] == "Bearer uk_live_env"


async def test_without_a_token_none_is_sent(server, monkeypatch):
    monkeypatch.delenv("AUTOPLAY_APP_UNKEY_TOKEN", raising=False)
    async with AsyncConnectorClient(server.url) as client:
        client.run_in_background()
        await client.wait_connected(5)
    assert "authorization" not in server.peers[0].headers


@pytest.mark.parametrize(
    "options",
    [
        {"url": "ftp://host/stream/a"},
        {"url": "not a url"},
        {"url": "http://"},
        {"url": "http://[::1"},
        {"token": "uk live"},
        {"token": "schlüssel"},
        {"session_concurrency": 0},
        {"connect_timeout": 0},
        {"read_timeout": float("nan")},
        {"initial_backoff_s": 2.0, "max_backoff_s": 1.0},
        {"max_retries": -1},
        {"drain_timeout": -1},
        {"max_pending": 0},
        {"overflow": "drop_newest"},
        {"max_event_bytes": 0},
        {"on_error": "print"},
        {"on_drop": Collector().__call__},
    ],
)
def test_what_can_never_work_is_refused_at_once(options):
    url = options.pop("url", "http://127.0.0.1/stream/a")
    with pytest.raises(ConfigurationError) as caught:
        AsyncConnectorClient(url, **options)
    assert "schlüssel" not in str(caught.value)


def test_arguments_may_be_given_by_position_as_the_public_sdk_takes_them():
    parameters = inspect.signature(AsyncConnectorClient).parameters.values()
    assert [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD] == [
        "url", "token", "connect_timeout", "session_concurrency", "initial_backoff_s",
        "max_backoff_s", "max_retries", "on_connect", "on_disconnect", "metrics",
    ]  # fmt: skip


def test_a_callback_must_be_callable():
    with pytest.raises(ConfigurationError):
        AsyncConnectorClient("http://127.0.0.1/stream/a").on_actions(None)


# Stopping


async def test_stop_ends_an_idle_stream_at_once(server, connect):
    client = connect()
    task = client.run_in_background()
    await client.wait_connected(5)
    client.stop()
    async with asyncio.timeout(5):
        await task


async def test_stop_ends_a_wait_between_attempts_at_once(until, server, connect):
    server.script(server.status(503))
    client = connect(initial_backoff_s=30.0, max_backoff_s=30.0)
    task = client.run_in_background()
    await server.requests(1)
    await until(lambda: client.state == "waiting")
    client.stop()
    async with asyncio.timeout(5):
        await task


async def test_stop_before_the_first_step_of_a_background_run(server, connect):
    client = connect()
    task = client.run_in_background()
    client.stop()
    async with asyncio.timeout(5):
        await task
    assert client.state == "stopped"
    assert server.peers == []


async def test_stop_from_another_thread(server, connect):
    client = connect()
    task = client.run_in_background()
    await client.wait_connected(5)
    thread = threading.Thread(target=client.stop)
    thread.start()
    async with asyncio.timeout(5):
        await task
    thread.join()


async def test_stop_twice_and_stop_without_a_run_do_no_harm(server, connect):
    client = connect()
    client.stop()
    task = client.run_in_background()
    await client.wait_connected(5)
    client.stop()
    client.stop()
    await task
    client.stop()


def test_stop_after_its_loop_has_closed_does_no_harm():
    client = AsyncConnectorClient("http://127.0.0.1:9/stream/a")

    async def abandon():
        client.run_in_background().cancel()

    asyncio.run(abandon())
    client.stop()


async def test_a_run_whose_loop_was_closed_is_over(server, connect, event, collector, until):
    client = connect().on_actions(collector)

    async def begin():
        client._begin(client._dispatcher())  # without tasks: Python reports their destruction

    await asyncio.to_thread(asyncio.run, begin())
    assert (client.state, client.pending) == ("stopped", 0)
    async with asyncio.timeout(5):
        async with client:  # nothing to wait for
            pass
        with pytest.raises(ClientStateError):
            await client.wait_connected()
    server.script(server.stream(event("s1", 1)))
    task = client.run_in_background()
    await collector.have(1)
    client.stop()
    await task
    assert client.state == "stopped"


async def test_after_a_stop_it_runs_again(server, connect, event, collector):
    server.script(server.stream(event("s1", 1)), server.stream(event("s1", 2)))
    client = connect().on_actions(collector)
    for n in (1, 2):
        task = client.run_in_background()
        await collector.have(n)
        client.stop()
        await task
    assert client.counts.received == 2


async def test_two_runs_at_once_are_an_error(server, connect):
    client = connect()
    task = client.run_in_background()
    with pytest.raises(ClientStateError):
        client.run_in_background()
    with pytest.raises(ClientStateError):
        await client.run()
    with pytest.raises(ClientStateError):
        await anext(client.stream(seconds=0))
    await client.wait_connected(5)
    assert not task.done()


async def test_stop_lets_callbacks_in_flight_and_waiting_payloads_end(
    until, server, connect, event
):
    server.script(server.stream(*(event("s1", n) for n in range(10))))
    client = connect(session_concurrency=2)
    release, ended = asyncio.Event(), []

    async def slow(payload):
        await release.wait()
        ended.append(payload.actions[0].index)

    task = client.on_actions(slow).run_in_background()
    await until(lambda: client.pending >= 10)
    client.stop()
    await asyncio.sleep(0)
    assert client.state == "stopping"
    release.set()
    await task
    assert ended == list(range(10))


async def test_the_drain_takes_no_longer_than_it_may(until, server, connect, event, caplog):
    server.script(server.stream(*(event("s1", n) for n in range(6))))
    dropped = []
    client = connect(drain_timeout=0.05, on_drop=lambda payload, total: dropped.append(total))
    never = asyncio.Event()

    async def hang(payload):
        await never.wait()

    task = client.on_actions(hang).run_in_background()
    await until(lambda: client.pending >= 6)
    client.stop()
    await task
    assert (client.pending, client.dropped_count, client.counts.delivered) == (0, 6, 0)
    assert dropped == [1, 2, 3, 4, 5, 6]
    assert "6 payloads were still pending" in caplog.text


async def test_async_with_stops_and_waits_for_the_work(server, connect, event):
    server.script(server.stream(event("s1", 1)))
    ended, started = [], asyncio.Event()

    async def slow(payload):
        started.set()
        await asyncio.sleep(0.02)
        ended.append(payload)

    async with connect().on_actions(slow) as client:
        task = client.run_in_background()
        await started.wait()
    assert ended
    assert client.state == "stopped"
    await task


# Cancelling


async def test_cancelling_run_cancels_the_callbacks_waits_for_them_and_is_not_swallowed(
    until, server, connect, event
):
    server.script(server.stream(event("s1", 1), event("s2", 2)))
    cancelled, running = [], []

    async def work(payload):
        running.append(payload.session_id)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            cancelled.append(payload.session_id)

    client = connect().on_actions(work)
    task = asyncio.create_task(client.run())
    await until(lambda: len(running) >= 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(cancelled) == ["s1", "s2"]
    assert (client.state, client.pending, client.dropped_count) == ("stopped", 0, 2)


async def test_a_background_task_cancelled_before_its_first_step_leaves_nothing(server, connect):
    client = connect()
    client.run_in_background().cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert client.state == "stopped"
    task = client.run_in_background()
    await client.wait_connected(5)
    client.stop()
    await task


async def test_cancelling_during_the_drain_cancels_the_callbacks(until, server, connect, event):
    server.script(server.stream(event("s1", 1)))
    started, ended = asyncio.Event(), []

    async def hang(payload):
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(payload)

    client = connect(drain_timeout=60).on_actions(hang)
    task = client.run_in_background()
    await started.wait()
    client.stop()
    await until(lambda: client.state == "stopping")
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended


# Errors that end a run


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, NotStreamModeError),
        (401, AuthenticationError),
        (403, AuthenticationError),
        (404, ProductNotFoundError),
    ],
)
async def test_a_refusal_raises_at_once(server, connect, status, error):
    server.script(server.status(status))
    with pytest.raises(error) as caught:
        await connect().run()
    assert isinstance(caught.value, httpx.HTTPStatusError)
    assert caught.value.status_code == caught.value.response.status_code == status
    assert len(server.peers) == 1


async def test_a_background_failure_is_logged_once_even_if_nobody_awaits_it(
    server, connect, caplog
):
    server.script(server.status(401))
    client = connect()
    client.run_in_background()
    with pytest.raises(AuthenticationError):
        await client.wait_connected(5)
    await asyncio.sleep(0)
    gc.collect()
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert "401" in errors[0].getMessage()
    assert client.state == "failed"
    with pytest.raises(AuthenticationError):
        await client.wait_connected(5)


async def test_what_was_received_before_a_failure_is_still_worked_on(
    server, connect, event, collector
):
    server.script(server.stream(event("s1", 1), then="close"), server.status(401))

    async def slow(payload):
        await asyncio.sleep(0.1)
        await collector(payload)

    with pytest.raises(AuthenticationError):
        await connect().on_actions(slow).run()
    assert len(collector.payloads) == 1


async def test_state_and_last_error_are_read_from_other_threads(server, connect, event, until):
    server.script(server.stream(event("s1", 1), then="close"), server.status(401))
    client = connect()
    go_on, seen = asyncio.Event(), []

    async def slow(payload):
        await go_on.wait()

    stop = threading.Event()

    def look():
        while not stop.is_set():
            state, error = client.state, client.last_error
            if not seen or seen[-1][0] != state:
                seen.append((state, error))
        seen.append((client.state, client.last_error))

    looking = asyncio.create_task(asyncio.to_thread(look))
    task = client.on_actions(slow).run_in_background()
    # Refused, while a callback still runs.
    await until(lambda: client.state == "stopping")
    assert isinstance(client.last_error, AuthenticationError)
    go_on.set()
    await asyncio.wait([task])
    stop.set()
    await looking
    assert seen[-1][0] == "failed"
    assert isinstance(seen[-1][1], AuthenticationError)
    assert "stopped" not in {state for state, _ in seen}


async def test_an_error_before_the_first_attempt_is_the_last_error(connect, monkeypatch):
    def broken(_):
        raise OSError("no certificates")

    monkeypatch.setattr("autoplay_rag.connector.connection.Endpoint.http_client", broken)
    client = connect()
    with pytest.raises(OSError, match="no certificates"):
        await client.run()
    assert client.state == "failed"
    assert isinstance(client.last_error, OSError)


def test_the_url_shows_no_secret():
    client = AsyncConnectorClient("https://user:pass@host.test/stream/acme?key=secret#top", "t")
    assert client.url == "https://host.test/stream/acme"


async def test_exhausted_retries_raise_a_runtime_error_with_its_cause(server, connect):
    server.script(server.status(503))
    client = connect(max_retries=2)
    with pytest.raises(RetriesExhaustedError) as caught:
        await client.run()
    assert isinstance(caught.value, RuntimeError)
    assert "503" in str(caught.value)
    assert caught.value.__cause__ is client.last_error
    assert len(server.peers) == 3


async def test_wait_connected(server, connect):
    client = connect()
    with pytest.raises(ClientStateError):
        await client.wait_connected(1)
    server.script(server.status(503))
    task = client.run_in_background()
    with pytest.raises(TimeoutError):
        await client.wait_connected(0.02)
    client.stop()
    await task
    with pytest.raises(ClientStateError):
        await client.wait_connected(1)


# Secrets


def everything_said(error):
    """An error and all its causes, as text and as attributes."""
    said = ["".join(traceback.format_exception(error))]
    while error is not None:
        said += [repr(error), repr(error.args), repr(vars(error))]
        request = None
        with contextlib.suppress(RuntimeError):
            request = getattr(error, "request", None)
        if request is not None:
            said += [repr(request.headers.raw), str(request.url)]
        error = error.__cause__ or error.__context__
    return "\n".join(said)


@pytest.mark.parametrize("fault", ["refused", "401", "302", "html", "reset", "garbage", "none"])
async def test_secrets_appear_nowhere(server, connect, event, caplog, fault):
    caplog.set_level(logging.DEBUG, logger="autoplay_rag")
    body = b'data: {"type": "actions", "session_id": "payload-secret"}'
    server.script(
        {
            "refused": server.status(503),
            "none": server.stream(event("s1"), body + b"x\n\n", then="close"),
            "401": server.status(401),
            "302": server.status(302, "Location: http://other.invalid/?q=query-secret"),
            "html": server.status(200, "Content-Type: text/html", body=body),
            "reset": server.raw(b"HTTP/1.1 200 OK\r\n", then="reset"),
            "garbage": server.raw(body + b"\r\n\r\n"),
        }[fault]
    )
    url = server.url.replace("//", "//user:userinfo-secret@") + "?key=query-secret"
    client = connect(url, max_retries=0)
    with pytest.raises(Exception) as caught:
        await client.run()
    assert server.peers[0].headers["authorization"] == f"Bearer {SECRET}"
    said = everything_said(caught.value) + everything_said(client.last_error)
    said += caplog.text + repr(client) + repr(vars(client)) + str(client.last_error)
    for secret in (SECRET, "userinfo-secret", "query-secret", "payload-secret"):
        assert secret not in said


# Callbacks


async def test_each_callback_fails_separately_and_the_failure_is_reported(
    server, connect, event, caplog
):
    server.script(server.stream(event("s1", 1), event("s1", 2)))
    told, good = [], Collector()

    async def bad(payload):
        raise KeyError("broken")

    client = connect(on_error=lambda payload, error: told.append((payload, error)))
    client.on_actions(bad).on_actions(good)
    task = client.run_in_background()
    await good.have(2)
    client.stop()
    await task
    assert len(told) == 2
    assert isinstance(told[0][1], KeyError)
    assert (client.counts.failed, client.counts.delivered) == (2, 0)
    assert "Traceback" in caplog.text
    assert "bad" in caplog.text


async def test_an_error_handler_may_fail_too(server, connect, event, caplog):
    server.script(server.stream(event("s1", 1), event("s1", 2)))
    done = Collector()

    async def bad(payload):
        await done(payload)
        raise ValueError

    async def worse(payload, error):
        raise OSError

    async with connect(on_error=worse).on_actions(bad) as client:
        client.run_in_background()
        await done.have(2)
    assert client.counts.failed == 2
    assert "on_error raised" in caplog.text


async def test_plain_functions_run_in_threads_of_the_client_in_order(
    server, connect, event, monkeypatch
):
    # With several threads, the operating system decides which of two functions starts first. The
    # client hands them over in order.
    monkeypatch.setattr("autoplay_rag.connector.callbacks._THREADS", 1)
    server.script(server.stream(*(event("s1", n) for n in range(20))))
    loop_thread = threading.get_ident()
    order, enough = [], threading.Event()

    def plain(payload):
        assert threading.get_ident() != loop_thread
        order.append((payload.actions[0].index, threading.current_thread().name))
        if len(order) == 20:
            enough.set()

    async with connect().on_actions(plain) as client:
        client.run_in_background()
        await asyncio.to_thread(enough.wait, 5)
    assert [index for index, _ in order] == list(range(20))
    assert all(name.startswith("autoplay-callback") for _, name in order)


async def test_a_plain_function_may_hand_back_a_coroutine(server, connect, event, collector):
    server.script(server.stream(event("s1", 1)))
    async with connect().on_actions(lambda payload: collector(payload)) as client:  # noqa: PLW0108 - a plain function
        client.run_in_background()
        await collector.have(1)


async def test_a_blocking_plain_function_holds_up_no_other_session(
    server, connect, event, collector
):
    server.script(server.stream(event("slow", 1), event("fast", 2)))
    release = threading.Event()

    def block(payload):
        if payload.session_id == "slow":
            release.wait(5)

    async def other(payload):
        if payload.session_id == "fast":
            await collector(payload)

    async with connect().on_actions(block).on_actions(other) as client:
        client.run_in_background()
        await collector.have(1)
        release.set()


async def test_callbacks_in_all_threads_hold_up_neither_hooks_nor_on_error(
    server, connect, event, monkeypatch, until
):
    monkeypatch.setattr("autoplay_rag.connector.callbacks._THREADS", 1)
    server.script(server.stream(event("bad"), event("slow"), event("bad"), then="close"))
    release, told = threading.Event(), []

    def block(payload):
        assert release.wait(5)

    async def bad(payload):
        raise ZeroDivisionError

    client = connect(
        initial_backoff_s=30.0,
        max_backoff_s=30.0,
        on_disconnect=lambda: told.append("lost"),
        on_error=lambda payload, error: told.append(payload.session_id),
    )
    async with client.on_actions(block).on_actions(bad):
        client.run_in_background()
        try:
            await until(lambda: sorted(told) == ["bad", "bad", "lost", "slow"])
            assert client.counts.failed == 0  # `block` has not ended
        finally:
            release.set()


# Hooks


@pytest.mark.parametrize("plain", [True, False])
async def test_hooks_are_called_for_every_connection(server, connect, event, plain):
    server.script(server.stream(event("s1"), then="close"), server.stream(event("s1")))
    calls, got = [], Collector()

    def hook(name):
        async def call():
            calls.append(name)

        return (lambda: calls.append(name)) if plain else call

    client = connect(on_connect=hook("on"), on_disconnect=hook("off")).on_actions(got)
    async with client:
        client.run_in_background()
        await got.have(2)
    assert calls == ["on", "off", "on", "off"]
    assert client.counts.connections == 2


async def test_callbacks_wait_for_on_connect_but_reading_does_not(until, server, connect, event):
    server.script(server.stream(event("s1"), event("s2")))
    order, reset = [], asyncio.Event()

    async def on_connect():
        await reset.wait()
        order.append("reset")

    async def work(payload):
        order.append(payload.session_id)

    async with connect(on_connect=on_connect).on_actions(work) as client:
        client.run_in_background()
        await until(lambda: client.pending >= 2)
        assert order == []
        reset.set()
    assert order == ["reset", "s1", "s2"]


async def test_an_on_connect_that_waits_for_nothing_keeps_the_order(server, connect, event):
    server.script(server.stream(*(event("s1", n) for n in range(4))))
    seen, done = [], asyncio.Event()

    async def on_connect():
        seen.append("connected")

    async def work(payload):
        seen.append(payload.actions[0].index)
        if len(seen) == 5:
            done.set()

    async with connect(on_connect=on_connect).on_actions(work) as client:
        client.run_in_background()
        await done.wait()
    assert seen == ["connected", 0, 1, 2, 3]


async def test_hooks_fail_separately(server, connect, event, collector, caplog):
    server.script(server.stream(event("s1"), then="close"), server.stream(event("s1")))

    def broken():
        raise ZeroDivisionError

    async with connect(on_connect=broken, on_disconnect=broken).on_actions(collector) as client:
        client.run_in_background()
        await collector.have(2)
    assert "on_connect raised" in caplog.text
    assert "on_disconnect raised" in caplog.text


# A reader's pace


async def test_a_slow_session_holds_up_no_other(server, connect, event, collector):
    server.script(server.stream(event("slow", 0), *(event(f"s{n}", n) for n in range(95))))
    release = asyncio.Event()

    async def work(payload):
        if payload.session_id == "slow":
            await release.wait()
        else:
            await collector(payload)

    async with connect().on_actions(work) as client:
        client.run_in_background()
        await collector.have(95)
        assert client.pending == 1
        release.set()


async def test_overflow_wait_stops_reading_and_loses_nothing(until, server, connect, event, caplog):
    collector = Collector()
    server.script(server.stream(*(event("s1", n) for n in range(50))))
    release = asyncio.Event()
    pending, pauses = [], []

    class Metrics:
        def __getattr__(self, name):
            return lambda *_: None

        def pending(self, n):
            pending.append(n)

        def paused(self, seconds):
            pauses.append(client.counts.received)

    async def work(payload):
        await release.wait()
        await collector(payload)

    async with connect(max_pending=5, metrics=Metrics()).on_actions(work) as client:
        client.run_in_background()
        await until(lambda: "max_pending" in caplog.text)  # logged before the reader pauses
        assert (client.pending, client.counts.received) == (5, 6)
        release.set()
        await collector.have(50)
    assert max(pending) == 5
    assert pauses[0] == 6  # none was read until there was room
    assert [payload.actions[0].index for payload in collector.payloads] == list(range(50))
    assert client.dropped_count == 0
    assert caplog.text.count("max_pending") == 1


async def test_a_stop_while_the_reader_waits_loses_not_the_payload_in_its_hand(
    until, server, connect, event, collector
):
    server.script(server.stream(*(event("s1", n) for n in range(9))))
    release = asyncio.Event()

    async def work(payload):
        await release.wait()
        await collector(payload)

    client = connect(max_pending=3).on_actions(work)
    task = client.run_in_background()
    await until(lambda: client.counts.received >= 4)
    client.stop()
    release.set()
    await task
    assert client.counts.received == client.counts.delivered == 4


async def test_overflow_drop_oldest_counts_and_tells(until, server, connect, event, collector):
    server.script(server.stream(*(event("s1", n) for n in range(20))))
    dropped, release = [], asyncio.Event()

    async def work(payload):
        await release.wait()
        await collector(payload)

    client = connect(
        max_pending=5,
        session_concurrency=1,
        overflow="drop_oldest",
        on_drop=lambda payload, total: dropped.append((payload.actions[0].index, total)),
    ).on_actions(work)
    async with client:
        client.run_in_background()
        await until(lambda: client.counts.received >= 20)
        release.set()
        await collector.have(5)
    assert [payload.actions[0].index for payload in collector.payloads] == [0, 16, 17, 18, 19]
    assert dropped == [(n, n) for n in range(1, 16)]
    assert client.dropped_count == 15


def driven_without_asyncio(awaitable):
    """Run a coroutine as trio does: no asyncio loop is running."""
    with contextlib.closing(awaitable) as coroutine:
        coroutine.send(None)


@pytest.mark.parametrize("use", ["run", "run_in_background", "stream", "wait"])
def test_without_asyncio_it_says_what_to_use(use):
    client = AsyncConnectorClient("http://127.0.0.1:9/stream/acme")

    async def using():
        match use:
            case "run":
                await client.run()
            case "run_in_background":
                client.run_in_background()
            case "stream":
                async for _ in client.stream():
                    pass
            case "wait":
                async with client:
                    client.run_in_background()

    with pytest.raises(ClientStateError, match=r"needs asyncio.*trio.*ConnectorClient"):
        driven_without_asyncio(using())
    assert client.state == "idle"

"""The client for code without an event loop, with real connectors in other threads."""

import asyncio
import inspect
import logging
import queue
import subprocess
import sys
import threading
import time

import pytest

from autoplay_rag.connector import sync
from autoplay_rag.connector.client import AsyncConnectorClient
from autoplay_rag.connector.sync import ConnectorClient
from autoplay_rag.errors import (
    AuthenticationError,
    ClientStateError,
    ConfigurationError,
    RetriesExhaustedError,
)
from autoplay_rag.payloads import SummaryPayload

TOKEN = "uk_live_secret"
NOWHERE = "http://127.0.0.1:9/stream/acme"


def summary(n, session_id=None):
    return SummaryPayload("acme", session_id or f"s{n}", str(n))


@pytest.fixture(autouse=True)
def _no_thread_is_left(request):
    """Fail a test that leaves a thread running. The tests' connector ends after this check."""
    if "local_connector" in request.fixturenames:
        request.getfixturevalue("local_connector")
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 5
    for thread in set(threading.enumerate()) - before:
        if thread.name != "local_connector":
            thread.join(max(0.0, deadline - time.monotonic()))
            assert not thread.is_alive(), f"{thread} is left behind"


@pytest.fixture
def connect():
    """Make clients with short waits between attempts; stop them after the test."""
    clients = []

    def make(url, token="", *args, **options):
        options = {"initial_backoff_s": 0.01, "max_backoff_s": 0.05} | options
        clients.append(ConnectorClient(url, token, *args, **options))
        return clients[-1]

    yield make
    for client in clients:
        client.__exit__(None, None, None)


class Inbox(queue.SimpleQueue):
    """A callback that collects texts; `take(n)` waits for the next n."""

    def __call__(self, payload, *_):
        self.put(payload)

    def take(self, n):
        return [self.get(timeout=5).to_text() for _ in range(n)]


def until(condition):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_payloads_come_in_order_in_one_thread(local_connector, make_payload, connect):
    recording = [summary(n) if n % 3 else make_payload(f"Clicked {n}") for n in range(300)]
    connector = local_connector(recording, token=TOKEN)
    seen, threads = [], set()
    done = threading.Event()

    def note(payload):
        seen.append(payload)
        threads.add(threading.current_thread())
        if len(seen) == len(recording):
            done.set()

    client = connect(connector.url, TOKEN)
    assert client.on_actions(note).on_summary(note) is client
    with client as entered:
        assert entered is client
        thread = client.run_in_background()
        assert isinstance(thread, threading.Thread)
        assert thread.daemon
        assert done.wait(5)
    assert seen == recording
    assert threads == {thread}
    assert not thread.is_alive()
    assert client.dropped_count == 0


def test_run_calls_back_in_the_thread_that_calls_it(local_connector, connect):
    client = connect(local_connector([summary(n) for n in range(3)]).url)
    seen = []

    def note(payload):
        seen.append((payload.summary, threading.current_thread()))
        if len(seen) == 3:
            client.stop()

    client.on_summary(note).run()
    assert seen == [(str(n), threading.current_thread()) for n in range(3)]


def test_async_functions_are_run_in_the_thread_that_calls_back(local_connector, connect, caplog):
    inbox, loops, threads = Inbox(), set(), set()

    async def work(payload):
        await asyncio.sleep(0)
        loops.add(asyncio.get_running_loop())
        threads.add(threading.current_thread())
        inbox(payload)
        if payload.to_text() == "1":
            raise ZeroDivisionError

    url = local_connector([summary(n) for n in range(3)]).url
    client = connect(url).on_summary(work).on_summary(lambda payload: work(payload))  # noqa: PLW0108 - a plain function
    with client:
        thread = client.run_in_background()
        assert inbox.take(6) == ["0", "0", "1", "1", "2", "2"]
    assert threads == {thread}
    assert len(loops) == 1  # what is bound to a loop, such as a connection, keeps working
    assert loops.pop().is_closed()
    # One line for each of the two callbacks; the stream continued.
    assert len([r for r in caplog.records if "raised" in r.getMessage()]) == 2


async def test_inside_a_running_loop_an_async_function_is_recognised(
    local_connector, connect, caplog
):
    async def work(payload):
        raise AssertionError("never run")

    client = connect(local_connector([summary(1)]).url)
    client.on_summary(work).on_summary(lambda payload: client.stop()).run()
    assert "work is async, and nothing here can await it" in caplog.text.replace("\n", " ")


async def test_run_works_inside_a_running_loop(local_connector, connect):
    client = connect(local_connector([summary(1)]).url)
    client.on_summary(lambda payload: client.stop()).run()
    assert asyncio.get_running_loop().is_running()


def test_a_full_queue_drops_the_oldest_and_says_so(local_connector, connect):
    connector = local_connector([])
    inbox, dropped = Inbox(), Inbox()
    began, go_on = threading.Event(), threading.Event()
    totals = []

    def slow(payload):
        if payload.summary != "quick":
            began.set()
            assert go_on.wait(5)
        inbox(payload)

    client = connect(connector.url, "", 2).on_summary(slow)
    assert client.on_drop(dropped).on_drop(lambda payload, total: totals.append(total)) is client
    with client:
        client.run_in_background()
        until(lambda: connector.subscribers == 1)
        for _ in range(2):
            connector.send(summary("quick"))
            assert inbox.take(1) == ["quick"]
        connector.send(summary(0))
        assert began.wait(5)
        for n in range(1, 6):
            connector.send(summary(n))
        assert dropped.take(3) == ["1", "2", "3"]
        until(lambda: client.queue_size == 2)
        go_on.set()
        assert inbox.take(3) == ["0", "4", "5"]
    assert totals == [1, 2, 3]
    assert client.dropped_count == 3
    assert client.queue_size == 0


def test_a_payload_without_a_callback_evicts_nothing(local_connector, make_payload, connect):
    connector = local_connector([])
    go_on, began = threading.Event(), threading.Event()
    inbox, dropped = Inbox(), Inbox()

    def slow(payload):
        began.set()
        assert go_on.wait(5)
        inbox(payload)

    with connect(connector.url, "", 2).on_actions(slow).on_drop(dropped) as client:
        client.run_in_background()
        connector.wait_subscribers()
        wanted = [make_payload(f"Clicked {n}") for n in range(3)]
        connector.send(wanted[0])
        assert began.wait(5)
        for payload in (*wanted[1:], summary(1), summary(2), summary(3)):
            connector.send(payload)
        until(lambda: client.counts.received == 6)
        assert client.queue_size == 2
        go_on.set()
        assert inbox.take(3) == [payload.to_text() for payload in wanted]
    assert dropped.empty()
    assert (client.counts.skipped, client.counts.dropped) == (3, 0)


def test_a_callback_that_raises_is_counted(local_connector, connect, caplog):
    inbox, threads = Inbox(), set()

    def broken(payload):
        threads.add(threading.current_thread())
        if payload.to_text() == "1":
            raise LookupError

    client = connect(local_connector([summary(n) for n in range(3)]).url)
    with client.on_summary(broken).on_summary(inbox):
        thread = client.run_in_background()
        assert inbox.take(3) == ["0", "1", "2"]
    assert threads == {thread}
    assert (client.counts.received, client.counts.delivered, client.counts.failed) == (3, 2, 1)


def test_a_run_that_an_exception_ends_counts_its_payload(local_connector, connect):
    def interrupted(payload):
        raise KeyboardInterrupt

    client = connect(local_connector([summary(1)]).url).on_summary(interrupted)
    with pytest.raises(KeyboardInterrupt):
        client.run()
    assert (client.counts.received, client.counts.failed) == (1, 1)
    assert client.state == "stopped"


def test_state_and_last_error_of_a_run(local_connector, connect):
    client = connect(local_connector([summary(1)]).url + "?key=secret", "")
    assert (client.state, client.last_error) == ("idle", None)
    assert "secret" not in client.url
    assert client.url.startswith("http://127.0.0.1:")
    began, go_on = threading.Event(), threading.Event()

    def slow(payload):
        began.set()
        assert go_on.wait(5)

    with client.on_summary(slow):
        client.run_in_background()
        assert client.state in ("connecting", "connected")
        assert began.wait(5)
        assert client.state == "connected"
        client.stop()
        until(lambda: client.state == "stopping")
        go_on.set()
    assert client.state == "stopped"
    client.stop()


def test_state_and_last_error_after_a_refusal(local_connector, connect):
    client = connect(local_connector([summary(1)], token=TOKEN).url, "wrong")
    client.run_in_background().join(5)
    assert client.state == "failed"
    assert isinstance(client.last_error, AuthenticationError)
    client.run_in_background().join(5)
    assert client.state == "failed"


def test_the_reader_does_not_wait_for_a_callback(local_connector, connect):
    connector = local_connector([summary(n) for n in range(2000)])
    go_on = threading.Event()
    inbox = Inbox()

    def slow(payload):
        assert go_on.wait(5)
        inbox(payload)

    with connect(connector.url, "", 5000).on_summary(slow) as client:
        client.run_in_background()
        until(lambda: client.queue_size == 1999)
        go_on.set()
        assert inbox.take(2000) == [str(n) for n in range(2000)]
    assert client.dropped_count == 0


def test_callbacks_that_raise_disturb_nobody(local_connector, connect, caplog):
    inbox = Inbox()

    def broken(*_):
        raise LookupError("no such table")

    client = connect(local_connector([summary(n) for n in range(3)]).url)
    with client.on_summary(broken).on_summary(inbox):
        client.run_in_background()
        assert inbox.take(3) == ["0", "1", "2"]
    failures = [r for r in caplog.records if "broken" in r.getMessage()]
    assert len(failures) == 3
    assert failures[0].exc_info[0] is LookupError


def test_a_drop_callback_that_raises_disturbs_nobody(local_connector, connect, caplog):
    connector = local_connector([summary(n) for n in range(10)])
    go_on, dropped = threading.Event(), Inbox()

    def broken(payload, total):
        raise LookupError

    client = connect(connector.url, "", 1).on_summary(lambda _: go_on.wait(5))
    with client.on_drop(broken).on_drop(dropped):
        client.run_in_background()
        dropped.take(8)
        go_on.set()
    assert "broken" in caplog.text


def test_a_stop_lets_what_was_received_be_done(local_connector, connect):
    connector = local_connector([summary(n) for n in range(50)])
    began, go_on = threading.Event(), threading.Event()
    inbox = Inbox()

    def slow(payload):
        began.set()
        assert go_on.wait(5)
        inbox(payload)

    client = connect(connector.url).on_summary(slow)
    thread = client.run_in_background()
    assert began.wait(5)
    until(lambda: client.queue_size == 49)
    client.stop()
    client.stop()
    go_on.set()
    thread.join(5)
    assert not thread.is_alive()
    assert inbox.take(50) == [str(n) for n in range(50)]


def test_what_is_not_done_in_time_after_a_stop_is_dropped(
    local_connector, connect, caplog, monkeypatch
):
    monkeypatch.setattr(sync, "_DRAIN_SECONDS", 0.0)
    began, go_on = threading.Event(), threading.Event()
    dropped = Inbox()

    def slow(payload):
        began.set()
        assert go_on.wait(5)

    client = connect(local_connector([summary(n) for n in range(50)]).url)
    thread = client.on_summary(slow).on_drop(dropped).run_in_background()
    assert began.wait(5)
    until(lambda: client.queue_size == 49)
    client.stop()
    go_on.set()
    thread.join(5)
    assert not thread.is_alive()
    assert dropped.take(49) == [str(n) for n in range(1, 50)]
    assert "49 payloads still waited" in caplog.text


def test_a_callback_that_never_ends_does_not_hold_up_the_exit(
    local_connector, connect, caplog, monkeypatch
):
    monkeypatch.setattr(sync, "_DRAIN_SECONDS", 0.05)
    monkeypatch.setattr(sync, "_GRACE_SECONDS", 0.05)
    began, go_on = threading.Event(), threading.Event()

    def stuck(payload):
        began.set()
        go_on.wait(5)

    with connect(local_connector([summary(1)]).url).on_summary(stuck) as client:
        thread = client.run_in_background()
        assert began.wait(5)
    assert "does not end" in caplog.text
    assert thread.is_alive()
    go_on.set()
    thread.join(5)


def test_stop_from_a_callback_ends_it(local_connector, connect, caplog):
    seen = []
    client = connect(local_connector([summary(1), summary(2)], loop=True).url)

    def once(payload):
        seen.append(payload)
        client.stop()
        with client:  # leaving it here must not wait for this thread
            pass

    client.on_summary(once).run()
    assert seen
    assert "does not end" not in caplog.text


def test_stop_at_once_ends_a_run_that_has_hardly_begun(local_connector, connect):
    url = local_connector([]).url
    for _ in range(50):
        client = connect(url)
        client.stop()  # no effect before a run
        thread = client.run_in_background()
        client.stop()
        thread.join(5)
        assert not thread.is_alive()


def test_stop_ends_a_wait_between_attempts(connect):
    client = connect(NOWHERE, initial_backoff_s=20, max_backoff_s=30)
    thread = client.run_in_background()
    until(lambda: "waiting" in repr(client))
    client.stop()
    thread.join(5)
    assert not thread.is_alive()


def test_many_threads_may_stop_it(local_connector, connect):
    client = connect(local_connector([summary(1)], loop=True).url).on_summary(lambda _: None)
    thread = client.run_in_background()
    stoppers = [threading.Thread(target=client.stop) for _ in range(8)]
    for each in stoppers:
        each.start()
    for each in (*stoppers, thread):
        each.join(5)
        assert not each.is_alive()


def test_it_can_run_again_but_not_twice_at_once(local_connector, connect):
    inbox = Inbox()
    client = connect(local_connector([summary(1)]).url).on_summary(inbox)
    for _ in range(2):
        thread = client.run_in_background()
        with pytest.raises(ClientStateError, match="running already"):
            client.run_in_background()
        with pytest.raises(ClientStateError, match="running already"):
            client.run()
        assert inbox.take(1) == ["1"]
        client.stop()
        thread.join(5)


def test_run_raises_what_ended_it(local_connector, connect):
    url = local_connector([], token="another").url
    with pytest.raises(AuthenticationError) as caught:
        connect(url, TOKEN).run()
    assert TOKEN not in str(caught.value)
    with pytest.raises(RetriesExhaustedError):
        connect(NOWHERE, max_retries=1).run()


def test_a_background_run_logs_once_what_ended_it(local_connector, connect, caplog):
    client = connect(local_connector([], token="another").url, TOKEN)
    client.run_in_background().join(5)
    errors = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert "401" in errors[0].getMessage()
    assert TOKEN not in caplog.text
    assert errors[0].exc_info is None
    client.run_in_background().join(5)  # a new run can start


def test_hooks_are_called_for_connections(local_connector, connect):
    told = queue.SimpleQueue()
    connector = local_connector([summary(1)])
    client = connect(
        connector.url,
        on_connect=lambda: told.put("connected"),
        on_disconnect=lambda: told.put("disconnected"),
    )
    with client:
        client.run_in_background()
        assert told.get(timeout=5) == "connected"
    assert told.get(timeout=5) == "disconnected"


def test_metrics_are_called(local_connector, connect):
    inbox = Inbox()
    received = []

    class Metrics:
        def __getattr__(self, name):
            return lambda *_: None

        def received(self, kind):
            received.append(kind)

    with connect(local_connector([summary(1)]).url, metrics=Metrics()).on_summary(inbox) as client:
        client.run_in_background()
        inbox.take(1)
    assert received == ["summary"]


def test_a_silent_connection_is_made_anew(local_connector, connect):
    connections = queue.SimpleQueue()
    connector = local_connector([], heartbeat=None)
    client = connect(connector.url, read_timeout_s=0.05, on_connect=lambda: connections.put(1))
    with client:
        client.run_in_background()
        for _ in range(2):
            connections.get(timeout=5)


def test_what_it_shares_with_the_async_client_has_the_same_name_and_default():
    # Left out: which parameters are positional, and the names of these two. The public SDK sets both.
    ours, theirs = (
        {(each.name, each.default) for each in inspect.signature(made).parameters.values()}
        for made in (ConnectorClient, AsyncConnectorClient)
    )
    assert ours - theirs == {("max_queue_size", 500), ("read_timeout_s", None)}


def test_arguments_that_cannot_work_are_refused():
    with pytest.raises(ConfigurationError, match="max_queue_size"):
        ConnectorClient(NOWHERE, TOKEN, 0)
    with pytest.raises(ConfigurationError, match="max_backoff_s"):
        ConnectorClient(NOWHERE, TOKEN, initial_backoff_s=5, max_backoff_s=1)
    client = ConnectorClient(NOWHERE, TOKEN)

    async def coroutine(*_):
        raise AssertionError("never run")

    with pytest.raises(ConfigurationError, match="plain function"):
        client.on_drop(coroutine)
    for register in (client.on_actions, client.on_summary, client.on_drop):
        with pytest.raises(ConfigurationError, match="must be a function"):
            register("print")


def test_its_repr_says_where_and_how_it_is_without_the_token():
    client = ConnectorClient(NOWHERE, TOKEN)
    assert repr(client) == f"ConnectorClient('{NOWHERE}', state='idle')"


SCRIPT = """
import signal, sys, threading
from autoplay_rag.connector.sync import ConnectorClient

seen = threading.Event()
client = ConnectorClient(sys.argv[1]).on_summary(lambda payload: seen.set())
if sys.argv[2] == "background":
    client.run_in_background()
    assert seen.wait(5)
else:
    # Python's own handler: a KeyboardInterrupt in the main thread.
    client.on_summary(lambda payload: signal.raise_signal(signal.SIGINT))
    try:
        client.run()
    except KeyboardInterrupt:
        print([thread.name for thread in threading.enumerate()])
"""


@pytest.mark.parametrize(("how", "said"), [("background", ""), ("foreground", "['MainThread']\n")])
def test_neither_a_daemon_nor_ctrl_c_keeps_a_process_alive(local_connector, how, said):
    url = local_connector([summary(1)]).url
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, url, how],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, said, "")


def test_arguments_may_be_given_by_position_as_the_public_sdk_takes_them():
    names = list(inspect.signature(ConnectorClient).parameters)
    assert names == [
        "url", "token", "max_queue_size", "connect_timeout", "read_timeout_s", "initial_backoff_s",
        "max_backoff_s", "max_retries", "on_connect", "on_disconnect", "metrics",
    ]  # fmt: skip
    ConnectorClient(NOWHERE, TOKEN, 500, 5.0, None, 1.0, 30.0, None, None, None, None)

import asyncio
import re
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from autoplay_rag.connector.client import AsyncConnectorClient
from autoplay_rag.connector.metrics import ConnectorMetrics, Recorder
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.payloads import ActionsPayload

PAGE = Path(__file__).parents[2] / "docs" / "recipes" / "opentelemetry.md"


class Noted:
    """Metrics that record every call."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *values: self.calls.append((name, *values))

    def of(self, name):
        return [call[1:] for call in self.calls if call[0] == name]


@pytest.fixture
def opentelemetry_metrics():
    """The class from the documentation page, unchanged."""
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    names = {}
    exec(compile(code, str(PAGE), "exec"), names)
    return names["OpenTelemetryMetrics"]


def read_values(reader):
    """Map name and attributes to the value, or to the count of a histogram."""
    found = {}
    for resource in reader.get_metrics_data().resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    key = (metric.name, *point.attributes.values())
                    found[key] = getattr(point, "value", None) or getattr(point, "count", 0)
    return found


async def test_the_opentelemetry_recipe(server, connect, event, opentelemetry_metrics, until):
    server.script(
        server.stream(event("s1", 1), b"data: broken\n\n", then="close"),
        server.stream(event("s1", 2), event("s1", 3, kind="summary")),
    )
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    metrics = opentelemetry_metrics(provider.get_meter("autoplay"))
    assert isinstance(metrics, ConnectorMetrics)

    async def work(payload):
        await asyncio.sleep(0)
        if payload.actions[0].title == "Report 2":
            raise ZeroDivisionError

    client = connect(metrics=metrics).on_actions(work)
    async with client:
        client.run_in_background()
        await until(lambda: client.counts.received == 3)
    values = read_values(reader)
    provider.shutdown()
    assert values == {
        ("autoplay.payloads.received", "actions"): 2,
        ("autoplay.payloads.received", "summary"): 1,
        ("autoplay.payloads.delivered", "actions"): 1,
        ("autoplay.payloads.failed", "actions"): 1,
        ("autoplay.skipped", "malformed"): 1,
        ("autoplay.skipped", "no_callback"): 1,
        ("autoplay.reconnects",): 1,
        ("autoplay.payloads.pending",): 0,
        ("autoplay.callback.duration",): 2,
    }


async def test_every_kind_of_call(server, connect, event, until):
    big = b'data: {"type": "summary", "summary": "' + b"x" * 500 + b'"}\n\n'
    bad_value = b'data: {"type": "actions", "session_id": [7]}\n\n'
    unknown = b'data: {"type": "usertour_trigger"}\n\n'
    server.script(server.stream(big, bad_value, unknown, event("s1", 1), event("s1", 2)))
    metrics, release = Noted(), asyncio.Event()

    async def work(payload):
        await release.wait()

    client = connect(
        metrics=metrics, max_event_bytes=300, max_pending=1, overflow="drop_oldest"
    ).on_actions(work)
    async with client:
        client.run_in_background()
        await until(lambda: client.counts.received == 3)
        release.set()
    assert metrics.of("skipped") == [("oversize",), ("value",), ("unknown_type",)]
    assert metrics.of("received") == [("actions",)] * 3
    assert metrics.of("dropped") == [("actions",)] * 2
    assert metrics.of("delivered") == [("actions",)]
    assert metrics.of("pending") == [(1,), (0,)]
    assert len(metrics.of("callback_seconds")) == 1
    assert metrics.of("reconnected") == []


async def test_a_pause_of_the_reader_is_reported(server, connect, event, until):
    server.script(server.stream(event("s1", 1), event("s1", 2)))
    metrics, release = Noted(), asyncio.Event()

    async def work(payload):
        await release.wait()

    client = connect(metrics=metrics, max_pending=1).on_actions(work)
    async with client:
        client.run_in_background()
        await until(lambda: client.counts.received == 2)
        release.set()
        await until(lambda: client.counts.delivered == 2)
    assert len(metrics.of("paused")) == 1
    assert metrics.of("paused")[0][0] > 0


async def test_metrics_that_fail_never_disturb_the_stream_and_are_logged_once(
    server, connect, event, until, caplog
):
    class Broken:
        def __getattr__(self, name):
            raise ZeroDivisionError

    server.script(server.stream(*(event("s1", n) for n in range(5))))

    async def work(payload):
        pass

    async with connect(metrics=Broken()).on_actions(work) as client:
        client.run_in_background()
        await until(lambda: client.counts.delivered == 5)
    assert caplog.text.count("metrics.received raised") == caplog.text.count("raised;") == 1


async def test_a_hook_of_the_public_sdk_gets_the_calls_it_defines(server, connect, event, until):
    class Hook:
        def __init__(self):
            self.drops, self.depths = [], []

        def record_event_dropped(self, *, reason, event_type, session_id, product_id):
            self.drops.append((reason, event_type, session_id, product_id))

        def record_queue_depth(self, *, depth):
            self.depths.append(depth)

    server.script(server.stream(event("s1", 1), event("s2", 2)))
    hook, release = Hook(), asyncio.Event()

    async def work(payload):
        await release.wait()

    client = connect(metrics=hook, max_pending=1, overflow="drop_oldest").on_actions(work)
    async with client:
        client.run_in_background()
        await until(lambda: client.dropped_count == 1)
        release.set()
    assert hook.drops == [("queue_full", "actions", "s2", "acme")]
    assert hook.depths == [1, 0]


async def test_a_hook_of_the_public_sdk_may_leave_methods_out(caplog):
    class Hook:
        def record_queue_depth(self, *, depth):
            depths.append(depth)

    depths = []
    recorder = Recorder(Hook())
    recorder.received("actions")
    recorder.dropped(ActionsPayload())
    recorder.pending(3)
    assert depths == [3]
    assert recorder.counts.dropped == 1
    assert caplog.text == ""


@pytest.mark.parametrize("metrics", [object(), {}, "statsd"])
def test_an_object_without_a_known_method_is_refused(metrics):
    with pytest.raises(ConfigurationError, match="none of the methods"):
        AsyncConnectorClient("http://127.0.0.1/stream/a", metrics=metrics)

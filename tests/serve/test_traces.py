"""The spans of requests: they continue the client's trace, and have no personal data."""

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from serve_server import KEYS

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}


@pytest.fixture
def spans(monkeypatch):
    """The spans that ended since."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter.get_finished_spans
    provider.shutdown()


async def test_a_request_continues_the_trace_of_its_client(running, spans):
    async with running.client(KEYS.read) as client:
        await client.post("/v1/search", json={"query": "exported"}, headers=PARENT)
    named = {span.name: span for span in spans()}
    request, search = named["POST /v1/search"], named["retrieval MemoryStore"]
    assert request.kind is trace.SpanKind.SERVER
    assert dict(request.attributes) == {
        "http.request.method": "POST",
        "http.route": "/v1/search",
        "http.response.status_code": 200,
    }
    assert f"{request.parent.span_id:x}" == "b7ad6b7169203331"
    assert search.parent.span_id == request.context.span_id
    assert {f"{span.context.trace_id:032x}" for span in spans()} == {TRACE}


async def test_no_query_no_path_and_no_body_is_in_a_span(running, spans):
    async with running.client(KEYS.read) as client:
        await client.get("/", params={"q": "secret-question", "user_id": "secret-user"})
        await client.get("/v1/sessions", params={"matching": "secret-words"})
        await client.get("/v1/sessions/secret-session")
        await client.post("/v1/search", json={"query": "secret-body", "k": 0})
        await client.get("/", params={"key": "secret-key"})
        await client.get("/secret-path")
        await client.request("SECRET", "/")
    written = "".join(span.to_json() for span in spans())
    assert "GET /v1/sessions/{session_id}" in written
    assert "secret" not in written.lower()
    # FastAPI makes spans of its own, with queries in them, unless told not to.
    assert {span.instrumentation_scope.name for span in spans()} == {"autoplay_rag"}


async def test_a_failure_is_an_error_by_its_status(running, spans, monkeypatch):
    async def fail(*_, **__):
        raise RuntimeError("secret of the database")

    monkeypatch.setattr(running.pipeline, "search", fail)
    async with running.client(KEYS.read) as client:
        await client.post("/v1/search", json={"query": "x"})
        await client.post("/v1/search", json={})
    failed, refused = (span for span in spans() if span.name == "POST /v1/search")
    assert failed.attributes["error.type"] == "500"
    assert "error.type" not in refused.attributes
    assert "secret" not in failed.to_json()


async def test_probes_and_metrics_are_not_traced(running, spans):
    async with running.client(KEYS.read) as client:
        for path in ("/healthz", "/readyz", "/metrics"):
            await client.get(path)
    assert spans() == ()

"""Spans for OpenTelemetry: names, attributes, parents, errors, and what must not be in them."""

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from autoplay_rag import _tracing
from autoplay_rag._tracing import captures_content, traced
from autoplay_rag.errors import ConfigurationError, EmbedderRejectedError
from autoplay_rag.stores import MemoryStore

SECRET = "bobsecret"
CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"


@pytest.fixture
def exporter(monkeypatch):
    """The spans that end in this test. The provider is set for this test alone."""
    found = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(found))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield found
    provider.shutdown()


@pytest.fixture
def spans(exporter):
    """All spans that ended, or those of a name."""

    def find(name=None):
        ended = exporter.get_finished_spans()
        return [span for span in ended if name in (None, span.name)]

    return find


def everything(spans):
    """All text in all spans."""
    return "".join(span.to_json() for span in spans())


# -- searches ---------------------------------------------------------------------------------


async def test_a_search_is_a_retrieval_with_its_parts(make_pipeline, make_actions, spans):
    async with make_pipeline() as pipeline:
        await pipeline.accept(make_actions("s1", f"opened {SECRET}", user="ann"))
        await pipeline.drain()
        await pipeline.search(SECRET, k=3)
    (search,) = spans("retrieval MemoryStore")
    assert dict(search.attributes) == {
        "gen_ai.operation.name": "retrieval",
        "gen_ai.data_source.id": "MemoryStore",
        "gen_ai.request.model": "scripted",
        "gen_ai.retrieval.top_k": 3,
        "openinference.span.kind": "RETRIEVER",
        "autoplay_rag.search.mode": "hybrid",
        "autoplay_rag.search.hits": 1,
        "autoplay_rag.search.degraded": False,
    }
    assert search.parent is None
    parts = {
        span.name
        for span in spans()
        if span.parent is not None and span.parent.span_id == search.context.span_id
    }
    assert parts == {"embeddings scripted", "search store", "search text", "search score"}


async def test_parts_of_concurrent_searches_have_their_own_parents(
    make_pipeline, make_actions, spans
):
    async with make_pipeline() as pipeline:
        await pipeline.accept(make_actions("s1", "opened reports"))
        await pipeline.drain()
        tracer = trace.get_tracer("test")

        async def one(number):
            with tracer.start_as_current_span(f"caller {number}"):
                await pipeline.search_sessions("reports")

        await asyncio.gather(*(one(number) for number in range(5)))
    callers = {span.context.span_id: span for span in spans() if span.name.startswith("caller")}
    searches = {span.context.span_id: span for span in spans("retrieval MemoryStore")}
    assert {span.parent.span_id for span in searches.values()} == callers.keys()
    for name in ("search store", "search text", "search score"):
        assert {span.parent.span_id for span in spans(name)} == searches.keys()


async def test_a_search_from_a_thread_is_a_child_of_its_caller(make_pipeline, make_actions, spans):
    async with make_pipeline() as pipeline:
        await pipeline.accept(make_actions("s1", "opened reports"))
        await pipeline.drain()

        def ask():
            with trace.get_tracer("test").start_as_current_span("caller"):
                return pipeline.search_sync("reports")

        assert len(await asyncio.to_thread(ask)) == 1
    (caller,), (search,) = spans("caller"), spans("retrieval MemoryStore")
    assert search.parent.span_id == caller.context.span_id
    assert {span.context.trace_id for span in spans("search text")} == {caller.context.trace_id}


# -- ingest -----------------------------------------------------------------------------------


async def test_ingest_makes_traces_of_its_own_that_are_linked(make_pipeline, make_actions, spans):
    with trace.get_tracer("test").start_as_current_span("start of the application"):
        async with make_pipeline() as pipeline:
            await pipeline.accept(make_actions("s1", "one", "two"))
            await pipeline.drain()
    (plan,), (embed,), (store,) = spans("plan"), spans("embeddings scripted"), spans("store upsert")
    assert [span.parent for span in (plan, embed, store)] == [None, None, None]
    assert dict(plan.attributes) == {
        "autoplay_rag.payloads": 1,
        "autoplay_rag.batches": 1,
        "autoplay_rag.chunks": 1,
    }
    assert embed.attributes["gen_ai.operation.name"] == "embeddings"
    assert embed.attributes["gen_ai.request.model"] == "scripted"
    assert embed.attributes["autoplay_rag.texts"] == 1
    assert dict(store.attributes) == {
        "gen_ai.data_source.id": "MemoryStore",
        "autoplay_rag.chunks": 1,
    }
    for span in (embed, store):
        assert [link.context for link in span.links] == [plan.context]


# -- errors -----------------------------------------------------------------------------------


async def test_an_error_is_recorded_by_its_type_alone(make_pipeline, embedder, spans):
    def refuse(texts):
        raise EmbedderRejectedError(f"cannot embed {texts[0]}")

    async with make_pipeline() as pipeline:
        embedder.script = refuse
        with pytest.raises(EmbedderRejectedError):
            await pipeline.search(SECRET, mode="dense")
    for name in ("retrieval MemoryStore", "embeddings scripted"):
        (span,) = spans(name)
        assert span.attributes["error.type"] == "EmbedderRejectedError"
        assert span.status.status_code is trace.StatusCode.ERROR
        assert span.status.description is None
        assert span.events == ()
    assert SECRET not in everything(spans)


async def test_a_degraded_search_is_no_error(make_pipeline, make_actions, embedder, spans):
    async with make_pipeline() as pipeline:
        await pipeline.accept(make_actions("s1", "opened reports"))
        await pipeline.drain()

        def be_out(texts):
            raise ConnectionError

        embedder.script = be_out
        assert len(await pipeline.search("reports")) == 1
    (search,) = spans("retrieval MemoryStore")
    assert search.attributes["autoplay_rag.search.degraded"] is True
    assert "error.type" not in search.attributes
    assert spans("embeddings scripted")[-1].attributes["error.type"] == "ConnectionError"


async def test_a_cancelled_search_ends_its_span(make_pipeline, embedder, spans):
    async with make_pipeline() as pipeline:
        embedder.script = lambda texts: asyncio.Event().wait()
        embedder.requested.clear()
        task = asyncio.create_task(pipeline.search("reports", mode="dense"))
        await embedder.requested.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    (search,) = spans("retrieval MemoryStore")
    assert search.attributes["error.type"] == "CancelledError"


@pytest.mark.parametrize("method", ["on_start", "on_end"])
async def test_a_failing_exporter_harms_nothing(
    make_pipeline, make_actions, monkeypatch, caplog, method
):
    def fail(self, *_, **__):
        raise RuntimeError("broken")

    provider = TracerProvider()
    provider.add_span_processor(type("Broken", (SpanProcessor,), {method: fail})())
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    async with make_pipeline() as pipeline:
        await pipeline.accept(make_actions("s1", "opened reports"))
        await pipeline.drain()
        assert pipeline.ledger.stored == 1
        assert pipeline.health.state == "ok"
        assert len(await pipeline.search("reports")) == 1
        with pytest.raises(ConfigurationError):
            await pipeline.search(" ")
    assert "a span could not be" in caplog.text
    assert trace.get_current_span() is trace.INVALID_SPAN


# -- content ----------------------------------------------------------------------------------


async def search_and_list(pipeline, make_actions):
    async with pipeline:
        await pipeline.accept(make_actions("s1", f"opened {SECRET}", user="bob-user"))
        await pipeline.drain()
        await pipeline.search(f"who opened {SECRET}", user_id="bob-user")
        await pipeline.search_sessions(f"who opened {SECRET}")


async def test_no_content_by_default(make_pipeline, make_actions, spans, monkeypatch):
    monkeypatch.delenv(CAPTURE, raising=False)
    await search_and_list(make_pipeline(), make_actions)
    assert len(spans()) > 10
    for word in (SECRET, "bob-user", "s1", "who opened"):
        assert f'"{word}' not in everything(spans)
        assert f" {word}" not in everything(spans)


async def test_content_if_asked_for(make_pipeline, make_actions, spans):
    await search_and_list(make_pipeline(trace_content=True), make_actions)
    for span in spans("retrieval MemoryStore"):
        assert span.attributes["gen_ai.retrieval.query.text"] == f"who opened {SECRET}"
        (document,) = json.loads(span.attributes["gen_ai.retrieval.documents"])
        assert f"opened {SECRET}" in document["content"]
        assert document.keys() == {"id", "score", "content"}


@pytest.mark.parametrize(
    ("variable", "given", "expected"),
    [
        (None, None, False),
        ("true", None, True),
        ("SPAN_ONLY", None, True),
        ("span_and_event", None, True),
        ("event_only", None, False),
        ("false", None, False),
        ("true", False, False),
        (None, True, True),
    ],
)
def test_the_argument_decides_then_the_variable(monkeypatch, variable, given, expected):
    monkeypatch.delenv(CAPTURE, raising=False)
    if variable is not None:
        monkeypatch.setenv(CAPTURE, variable)
    assert captures_content(given) is expected


# -- without OpenTelemetry --------------------------------------------------------------------


def test_without_a_provider_nothing_is_made(monkeypatch):
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    with traced("search", {"k": 1}) as span:
        assert not span.is_recording()
        assert trace.get_current_span() is trace.INVALID_SPAN
    assert _tracing.current_origin() is None


def test_another_provider_gets_the_next_span(exporter, monkeypatch):
    with traced("first"):
        pass
    other = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(other))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    with traced("second"):
        pass
    assert [span.name for span in exporter.get_finished_spans()] == ["first"]
    assert [span.name for span in other.get_finished_spans()] == ["second"]


def test_the_package_works_without_opentelemetry_and_does_not_import_it():
    code = """
import asyncio, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
from autoplay_rag import ActionsPayload, IngestPipeline, SlimAction
from autoplay_rag.embedders import Embedder
from autoplay_rag.stores import MemoryStore
class Ones(Embedder):
    model = "ones"
    async def embed(self, texts):
        return [[1.0, 2.0] for _ in texts]
async def main():
    async with IngestPipeline(MemoryStore(), Ones(), batch_window=0) as pipeline:
        await pipeline.accept(ActionsPayload("acme", "s1", actions=[SlimAction("Export")]))
        await pipeline.drain()
        print(len(await pipeline.search("export")))
asyncio.run(main())
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[:2] == ["1", "[]"], done.stderr


def test_a_store_is_called_by_its_class():
    assert MemoryStore().data_source == "MemoryStore"


def test_the_recipe_shows_the_spans_of_a_search(tmp_path):
    page = Path(__file__).parents[1] / "docs" / "recipes" / "opentelemetry.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    (block,) = [one for one in blocks if "TracerProvider" in one]
    code = f"""{block}
import asyncio
from autoplay_rag import ActionsPayload, IngestPipeline, SlimAction
from autoplay_rag.embedders import Embedder
from autoplay_rag.stores import MemoryStore
class Ones(Embedder):
    model = "ones"
    async def embed(self, texts):
        return [[1.0, 2.0] for _ in texts]
async def main():
    async with IngestPipeline(MemoryStore(), Ones(), batch_window=0) as pipeline:
        await pipeline.accept(ActionsPayload("acme", "s1", actions=[SlimAction("Export")]))
        await pipeline.drain()
        await pipeline.search("export")
asyncio.run(main())
provider.shutdown()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    made = set(re.findall(r'"name": "([^"]+)"', done.stdout))
    told = page.read_text()
    for name in made:
        general = name.replace("MemoryStore", "{store}").replace("ones", "{model}")
        assert f"`{general}`" in told
    assert {"retrieval MemoryStore", "plan", "store upsert", "search text"} <= made

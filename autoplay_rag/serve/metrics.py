"""The metrics of a pipeline for Prometheus. They are read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Final

from prometheus_client.core import (
    CounterMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from autoplay_rag._timings import BOUNDS
from autoplay_rag.ingest.pipeline import IngestPipeline
from autoplay_rag.serve.cluster_metrics import replica_metrics, topic_metrics
from autoplay_rag.serve.families import Exposed, client_states, gauge, health
from autoplay_rag.serve.serving import Serving

__all__ = ["Metrics"]

_COUNTED: Final = {
    "received": "Payloads received.",
    "stored": "Payloads stored.",
    "duplicate": "Payloads received again.",
    "discarded": "Payloads discarded by the user, or forgotten before they were stored.",
    "filtered": "Payloads that select rejected, and empty ones.",
    "refused": "Late or repeated payloads of forgotten people and sessions.",
    "overflow": "Payloads LOST, because the queue or the disk was full.",
    "chunks": "Chunks stored since the start.",
    "embed_requests": "Requests to the embedder since the start.",
    "embed_texts": "Texts in these requests.",
    "embed_tokens": "Tokens in these requests.",
    "embed_reused": "Texts whose vector was known already.",
    "retries": "Failed requests to the embedder or the store that were retried.",
    "pulled": "Actions that only a pull source brought.",
    "recovered": "Of these, actions that a stream had missed.",
    "beyond_recovery": "Users of whom a stream missed 50 actions or more.",
}
_MEASURED: Final = {"pending": "Payloads that wait.", "dead": "Dead letters."}
_TIMED: Final = {
    "lag": ("Seconds from received to settled.", ""),
    "search": ("Seconds of searches, by what is returned.", "answer"),
    "search_part": ("Seconds of the parts of searches.", "part"),
    "plan": ("Seconds of planning batches.", ""),
    "embedder": ("Seconds of requests to the embedder for chunks.", "request"),
    "store": ("Seconds of writes to the store.", "request"),
}


class Metrics(Exposed):
    """Collects the metrics of one application.

    Args:
        serving: The application.
    """

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        super().__init__()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as of now."""
        pipeline = self._serving.pipeline
        if pipeline.is_running:
            yield from _ledger(pipeline)
            yield from _durations(pipeline)
            yield client_states("client_state", pipeline.client_states)
            yield from _disk(pipeline)
            if (replicas := pipeline.replicas) is not None:
                yield from replica_metrics(replicas)
            if (topic := pipeline.topic) is not None:
                yield from topic_metrics(topic)
        yield gauge("up", "Whether the pipeline runs.", float(pipeline.is_running))
        yield health("health", "1 for the state of the pipeline.", pipeline.health.state)
        yield _events(self._serving)
        yield gauge("live_sessions", "Live sessions.", len(pipeline.live))
        yield gauge("subscribers", "Open event streams.", len(self._serving.streams))


def _ledger(pipeline: IngestPipeline) -> Iterator[Metric]:
    ledger = pipeline.ledger
    for name, text in _COUNTED.items():
        yield CounterMetricFamily(f"autoplay_rag_{name}", text, value=getattr(ledger, name))
    for name, text in _MEASURED.items():
        yield gauge(name, text, getattr(ledger, name))
    yield gauge("watermark", "Everything up to this number is settled.", pipeline.watermark)
    yield gauge("oldest_pending_seconds", "How long the oldest waits.", pipeline.lag)


def _durations(pipeline: IngestPipeline) -> Iterator[Metric]:
    found = pipeline.timings.all()
    for kind, (text, label) in _TIMED.items():
        labels = [label] if label else []
        durations = HistogramMetricFamily(f"autoplay_rag_{kind}_seconds", text, labels=labels)
        errors = CounterMetricFamily(
            f"autoplay_rag_{kind}_errors", f"Failures. {text}", labels=labels
        )
        for (one, part), made in found.items():
            if one == kind:
                values = [part] if label else []
                bounds = [*map(str, BOUNDS), "+Inf"]
                counts = list(zip(bounds, accumulate(made.buckets), strict=True))
                durations.add_metric(values, buckets=counts, sum_value=made.seconds)
                errors.add_metric(values, made.errors)
        yield durations
        if kind != "lag":
            yield errors


def _events(serving: Serving) -> Metric:
    events = CounterMetricFamily(
        "autoplay_rag_webhook_events",
        "Events of analytics tools, by what became of them.",
        labels=["tool", "outcome"],
    )
    for (tool, outcome), count in sorted(serving.event_counts.items()):
        events.add_metric([tool, outcome], count)
    return events


def _disk(pipeline: IngestPipeline) -> Iterator[Metric]:
    # Without files there is no limit, and `free` says nothing.
    if (space := pipeline.space) is not None and (space.journal, space.store) != (None, None):
        yield gauge("disk_free_bytes", "Free bytes on the disk of journal and store.", space.free)
        yield gauge("disk_needed_bytes", "How many have to be free.", space.needed)

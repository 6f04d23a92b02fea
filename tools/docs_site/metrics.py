"""The reference of the metrics, from what `/metrics` of a running pipeline and of a relay has."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from prometheus_client import Metric

from autoplay_rag import IngestPipeline
from autoplay_rag.embedders import Embedder
from autoplay_rag.journal.inflow import TopicStatus
from autoplay_rag.journal.ownership import Replicas
from autoplay_rag.kafka.address import TopicAddress
from autoplay_rag.relay import Relay
from autoplay_rag.relay.metrics import RelayMetrics
from autoplay_rag.serve import Keys, create_app
from autoplay_rag.serve.cluster_metrics import replica_metrics, topic_metrics
from autoplay_rag.stores import MemoryStore

__all__ = ["metrics_reference"]


class _Unused(Embedder):
    model = "unused"

    async def embed(self, texts: Sequence[str]) -> list[Sequence[float]]:
        """Embed nothing: nothing is stored here."""
        raise NotImplementedError


def metrics_reference() -> str:
    """Return a table of Markdown with all metrics."""
    return "\n".join(_table(asyncio.run(_collected())))


async def _collected() -> list[Metric]:
    keys = Keys(admin="only for the documentation, where nothing is served")
    with tempfile.TemporaryDirectory() as folder:
        # Some metrics are about files, so there is one.
        pipeline = IngestPipeline(MemoryStore(), _Unused(), journal=Path(folder) / "journal.db")
        app = create_app(pipeline, keys=keys)
        async with pipeline:
            async with asyncio.timeout(30):
                while pipeline.space is None:  # noqa: ASYNC110 - measured at start, and no event tells
                    await asyncio.sleep(0.01)
            shared = [
                *replica_metrics(Replicas((), (), 0.0)),
                *topic_metrics(TopicStatus("", "", ())),
            ]
            relay = Relay(
                TopicAddress("broker.test:9092", "events"), outbox=Path(folder) / "relay.db"
            )
            return [*app.state.metrics.collect(), *shared, *RelayMetrics(relay).collect()]


def _table(metrics: Sequence[Metric]) -> Iterator[str]:
    yield "| metric | meaning | type | labels |"
    yield "|---|---|---|---|"
    for metric in metrics:
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        labels = ", ".join(f"`{label}`" for label in getattr(metric, "_labelnames", ()))
        yield f"| `{name}` | {metric.documentation} | {metric.type} | {labels} |"

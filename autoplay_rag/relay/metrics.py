"""The metrics of a relay for Prometheus. They are read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from autoplay_rag.relay.relay import Relay

__all__ = ["RelayMetrics"]

_COUNTED: Final = {
    "received": "Payloads received.",
    "delivered": "Payloads that the topic has for good.",
    "overflow": "Payloads LOST, because the outbox or the disk was full.",
}
_MEASURED: Final = {
    "waiting": "Payloads that wait for the broker.",
    "unread": "Delivered payloads that are kept until the readers of the topic have them.",
    "dead": "Payloads that the topic refuses.",
    "bytes": "The bytes of what is in the outbox.",
}
_STATES: Final = ("ok", "degraded", "failed")


class RelayMetrics(Collector):
    """Collects the metrics of one relay.

    Args:
        relay: The relay.
    """

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        """Return the metrics in the text format."""
        made: bytes = generate_latest(self._registry)
        return made

    def describe(self) -> Iterator[Metric]:
        """Describe nothing, so that registering does not collect."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as of now."""
        relay = self._relay
        counts = relay.counts
        for name, text in _COUNTED.items():
            yield CounterMetricFamily(
                f"autoplay_rag_relay_{name}", text, value=getattr(counts, name)
            )
        for name, text in _MEASURED.items():
            yield _gauge(name, text, getattr(counts, name))
        yield _gauge("up", "Whether the relay runs.", float(relay.is_running))
        yield _gauge("broker_up", "Whether the broker answers.", float(relay.is_available))
        health = GaugeMetricFamily(
            "autoplay_rag_relay_health", "1 for the state of the relay.", labels=["state"]
        )
        for state in _STATES:
            health.add_metric([state], float(relay.health.state == state))
        yield health
        clients = GaugeMetricFamily(
            "autoplay_rag_relay_client_state",
            "1 for the state of the client of each stream.",
            labels=["product", "state"],
        )
        for product, state in dict(relay.client_states).items():
            clients.add_metric([product, state], 1.0)
        yield clients


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"autoplay_rag_relay_{name}", text, value=value)

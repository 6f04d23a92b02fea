"""The metrics of a relay for Prometheus. They are read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, Metric

from autoplay_rag.relay.relay import Relay
from autoplay_rag.serve.families import Exposed, client_states, gauge, health

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


class RelayMetrics(Exposed):
    """Collects the metrics of one relay.

    Args:
        relay: The relay.
    """

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        super().__init__()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as of now."""
        relay = self._relay
        counts = relay.counts
        for name, text in _COUNTED.items():
            yield CounterMetricFamily(
                f"autoplay_rag_relay_{name}", text, value=getattr(counts, name)
            )
        for name, text in _MEASURED.items():
            yield gauge(f"relay_{name}", text, getattr(counts, name))
        yield gauge("relay_up", "Whether the relay runs.", float(relay.is_running))
        yield gauge("relay_broker_up", "Whether the broker answers.", float(relay.is_available))
        yield health("relay_health", "1 for the state of the relay.", relay.health.state)
        yield client_states("relay_client_state", relay.client_states)

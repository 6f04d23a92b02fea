"""Families of metrics with this package's prefix, and what they are collected by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

__all__ = ["Exposed", "client_states", "counter", "gauge", "health", "labelled"]

_STATES: Final = ("ok", "degraded", "failed")


class Exposed(Collector):
    """Metrics that are read when they are asked for. Subclasses implement `collect`."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        """Return the metrics in the text format."""
        made: bytes = generate_latest(self._registry)
        return made

    def describe(self) -> Iterator[Metric]:
        """Describe nothing, so that registering does not collect."""
        return iter(())


def gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    """Return a gauge with one value."""
    return GaugeMetricFamily(f"autoplay_rag_{name}", text, value=value)


def labelled(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    """Return a gauge with a value for each combination of labels, and none yet."""
    return GaugeMetricFamily(f"autoplay_rag_{name}", text, labels=labels)


def counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    """Return a counter, as `labelled` does."""
    return CounterMetricFamily(f"autoplay_rag_{name}", text, labels=labels)


def health(name: str, text: str, current: str) -> GaugeMetricFamily:
    """Return a gauge with 1 for the current state of health, and 0 for the others."""
    found = labelled(name, text, "state")
    for state in _STATES:
        found.add_metric([state], float(state == current))
    return found


def client_states(name: str, states: Iterable[tuple[str, str]]) -> GaugeMetricFamily:
    """Return a gauge with 1 for the state of each client."""
    found = labelled(name, "1 for the state of the client of each stream.", "product", "state")
    for product, state in dict(states).items():
        found.add_metric([product, state], 1.0)
    return found

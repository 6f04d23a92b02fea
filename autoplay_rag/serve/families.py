"""Families of metrics with this package's prefix."""

from __future__ import annotations

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

__all__ = ["counter", "gauge", "labelled"]


def gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    """Return a gauge with one value."""
    return GaugeMetricFamily(f"autoplay_rag_{name}", text, value=value)


def labelled(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    """Return a gauge with a value for each combination of labels, and none yet."""
    return GaugeMetricFamily(f"autoplay_rag_{name}", text, labels=labels)


def counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    """Return a counter, as `labelled` does."""
    return CounterMetricFamily(f"autoplay_rag_{name}", text, labels=labels)

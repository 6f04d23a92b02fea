"""How often work is done, how long it takes, and how often it fails; for metrics and traces."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from autoplay_rag._tracing import Attribute, Origin, Span, traced

__all__ = ["BOUNDS", "Durations", "Timings"]

BOUNDS: Final = (
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip
"""The upper bounds of the buckets, in seconds. A last bucket has no bound."""


@dataclass(slots=True)
class Durations:
    """The durations of one kind of work.

    Attributes:
        buckets: How many took at most each of `BOUNDS`, and not the one before; then the others.
        seconds: Their sum.
        errors: How many failed. They are counted in the buckets, too.
    """

    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    seconds: float = 0.0
    errors: int = 0


class Timings:
    """Durations by kind of work and part. All methods may be called from any thread.

    Example:
        >>> timings = Timings()
        >>> with timings.measured("store", "upsert"):
        ...     pass
        >>> sum(timings.all()["store", "upsert"].buckets)
        1
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._durations: dict[tuple[str, str], Durations] = {}

    @contextmanager
    def measured(
        self,
        kind: str,
        part: str = "",
        *,
        span: str | None = None,
        attributes: Mapping[str, Attribute] | None = None,
        root: bool = False,
        origins: Collection[Origin] = (),
    ) -> Iterator[Span]:
        """Measure the block, and make it a span. A cancelled one counts as failed.

        Args:
            kind: The kind of work.
            part: The part of it.
            span: The name of the span; by default kind and part.
            attributes: Attributes of the span.
            root: Whether the span begins a new trace.
            origins: Spans that led to this one.
        """
        began = time.perf_counter()
        failed = True
        try:
            name = span or f"{kind} {part}".rstrip()
            with traced(name, attributes, root=root, origins=origins) as made:
                yield made
            failed = False
        finally:
            self.add(kind, part, time.perf_counter() - began, failed=failed)

    def add(self, kind: str, part: str, seconds: float, *, failed: bool = False) -> None:
        """Count one."""
        with self._lock:
            found = self._durations.setdefault((kind, part), Durations())
            found.buckets[bisect_left(BOUNDS, seconds)] += 1
            found.seconds += seconds
            found.errors += failed

    def all(self) -> dict[tuple[str, str], Durations]:
        """Return a copy of the durations, by kind and part."""
        with self._lock:
            return {
                name: Durations(list(one.buckets), one.seconds, one.errors)
                for name, one in self._durations.items()
            }

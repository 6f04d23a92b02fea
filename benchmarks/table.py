"""The table of figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

HEAD = "| what | measured | beside it | bar | met |\n|---|---|---|---|---|"


@dataclass(frozen=True)
class Figure:
    """One row: what was measured, the baseline of the same run, and the bar."""

    what: str
    measured: str
    baseline: str
    bar: str
    met: bool

    def __str__(self) -> str:
        """The row in Markdown."""
        met = "yes" if self.met else "NO"
        return f"| {self.what} | {self.measured} | {self.baseline} | {self.bar} | {met} |"


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def rows(figures: Iterable[Figure]) -> Iterator[str]:
    """Yield the lines of a Markdown table, each as soon as its figure is there."""
    yield HEAD
    yield from map(str, figures)


def show(figures: Iterable[Figure]) -> None:
    """Print a Markdown table."""
    for row in rows(figures):
        print(row, flush=True)

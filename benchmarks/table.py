"""The table of figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One row: what was measured, the baseline of the same run, and the bar."""

    what: str
    measured: str
    baseline: str
    bar: str
    met: bool


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def show(figures: list[Figure]) -> None:
    """Print rows as a Markdown table."""
    print("| what | measured | baseline | bar | met |")
    print("|---|---|---|---|---|")
    for figure in figures:
        met = "yes" if figure.met else "NO"
        print(
            f"| {figure.what} | {figure.measured} | {figure.baseline} | {figure.bar} | {met} |",
            flush=True,
        )

"""How far a long task is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Progress"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a long task is that goes through all chunks, or through all bytes.

    Attributes:
        done: The chunks or bytes that are done.
        total: Those that there are to do; 0 if unknown.
        rate: How many per second in this run; 0.0 at its beginning.
        problem: What the embedder or the store fails with, in one line; None if nothing fails.
        unit: What is counted.

    Example:
        >>> str(Progress(done=500, total=2000, rate=50.0))
        '500 of 2,000 chunks, 50 a second, about 30 s left'
        >>> str(Progress(done=30 << 20, total=90 << 20, rate=10 << 20, unit="bytes"))
        '30 of 90 MB, 10 a second, about 6 s left'
    """

    done: int
    total: int
    rate: float
    problem: str | None = None
    unit: Literal["chunks", "bytes"] = "chunks"

    @property
    def seconds_left(self) -> float | None:
        """The estimated time that is left, in seconds; None if unknown."""
        return max(0, self.total - self.done) / self.rate if self.rate else None

    def __str__(self) -> str:
        size, unit = (2**20, "MB") if self.unit == "bytes" else (1, "chunks")
        text = f"{self.done / size:,.0f} of {self.total / size:,.0f} {unit}"
        if self.seconds_left is not None:
            text += f", {self.rate / size:,.0f} a second, about {self.seconds_left:,.0f} s left"
        return text if self.problem is None else f"{text}; {self.problem}"

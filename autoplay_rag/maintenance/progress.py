"""How far a long task is."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Progress"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a long task is that goes through all chunks.

    Attributes:
        done: The chunks that are done.
        total: The chunks that there are to do; 0 if unknown.
        rate: Chunks per second in this run; 0.0 at its beginning.
        problem: What the embedder or the store fails with, in one line; None if nothing fails.

    Example:
        >>> str(Progress(done=500, total=2000, rate=50.0))
        '500 of 2,000 chunks, 50 a second, about 30 s left'
    """

    done: int
    total: int
    rate: float
    problem: str | None = None

    @property
    def seconds_left(self) -> float | None:
        """The estimated time that is left, in seconds; None if unknown."""
        return max(0, self.total - self.done) / self.rate if self.rate else None

    def __str__(self) -> str:
        text = f"{self.done:,} of {self.total:,} chunks"
        if self.seconds_left is not None:
            text += f", {self.rate:,.0f} a second, about {self.seconds_left:,.0f} s left"
        return text if self.problem is None else f"{text}; {self.problem}"

"""The lag from received to stored, computed from the journal on demand."""

from __future__ import annotations

from typing import Final, NamedTuple

from autoplay_rag.journal.rows import Connection
from autoplay_rag.journal.schema import PayloadState

__all__ = ["NO_LAG", "Lag", "lag_of"]

_LAST: Final = 1000
_BEYOND: Final = 5000
"""How far above the watermark to look for stored payloads. Most payloads above it are queued."""


class Lag(NamedTuple):
    """Seconds from received to stored.

    Attributes:
        p50: The median of the last payloads; None if none is stored.
        p99: The 99th percentile of the last payloads; None if none is stored.
    """

    p50: float | None = None
    p99: float | None = None

    @classmethod
    def of(cls, seconds: list[float]) -> Lag:
        """Compute the quantiles of measured values.

        Example:
            >>> Lag.of([3.0, 1.0, 2.0]), Lag.of([])
            (Lag(p50=2.0, p99=3.0), Lag(p50=None, p99=None))
        """
        ordered = sorted(max(0.0, one) for one in seconds)
        if not ordered:
            return NO_LAG
        return cls(*(ordered[min(len(ordered) - 1, int(q * len(ordered)))] for q in (0.5, 0.99)))


NO_LAG: Final = Lag()


def lag_of(connection: Connection, watermark: int) -> Lag:
    """Compute the lag of the last 1,000 stored payloads, by sequence number.

    Args:
        connection: A connection to the journal's database.
        watermark: All payloads up to this sequence number are settled.
    """
    rows = connection.execute(
        f"SELECT ended - at FROM payload WHERE seq <= ? AND state = {PayloadState.STORED:d} "
        "AND seq > 0 AND ended IS NOT NULL ORDER BY seq DESC LIMIT ?",
        (watermark + _BEYOND, _LAST),
    )
    return Lag.of([seconds for (seconds,) in rows])

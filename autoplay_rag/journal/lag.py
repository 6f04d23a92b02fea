"""How long payloads take from received to stored, computed from the journal on demand."""

from __future__ import annotations

import sqlite3
from typing import Final, NamedTuple

from autoplay_rag.journal.schema import PayloadState

__all__ = ["NO_LAG", "Lag", "lag_of"]

_LAST: Final = 1000
_BEYOND: Final = 5000
"""How far above the watermark stored payloads are looked for: above it most still wait."""


class Lag(NamedTuple):
    """Seconds from received to stored.

    Attributes:
        p50: Of half of the last payloads at most; None if none is stored.
        p99: Of 99 in 100 of them at most; None if none is stored.
    """

    p50: float | None = None
    p99: float | None = None

    @classmethod
    def of(cls, seconds: list[float]) -> Lag:
        """The quantiles of measured values.

        Example:
            >>> Lag.of([3.0, 1.0, 2.0]), Lag.of([])
            (Lag(p50=2.0, p99=3.0), Lag(p50=None, p99=None))
        """
        ordered = sorted(max(0.0, one) for one in seconds)
        if not ordered:
            return NO_LAG
        return cls(*(ordered[min(len(ordered) - 1, int(q * len(ordered)))] for q in (0.5, 0.99)))


NO_LAG: Final = Lag()


def lag_of(connection: sqlite3.Connection, watermark: int) -> Lag:
    """The lag of the last 1,000 payloads that were stored, by sequence number.

    Args:
        connection: The journal's database.
        watermark: Up to which sequence number all is settled.
    """
    rows = connection.execute(
        f"SELECT ended - at FROM payload WHERE seq <= ? AND state = {PayloadState.STORED:d} "
        "AND seq > 0 AND ended IS NOT NULL ORDER BY seq DESC LIMIT ?",
        (watermark + _BEYOND, _LAST),
    )
    return Lag.of([seconds for (seconds,) in rows])

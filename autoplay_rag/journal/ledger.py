"""The ledger: counts that show that no payload was lost unnoticed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from autoplay_rag._html import table_html

__all__ = ["COUNTERS", "Counts", "Ledger"]

Counts: TypeAlias = Mapping[str, int]
"""A journal's counts by name; the names are in `COUNTERS`."""

COUNTERS = (
    "received", "stored", "pending", "duplicate", "dead", "discarded", "filtered", "refused",
    "overflow",
)  # fmt: skip
"""Names of the durable counts. The transaction that moves a payload updates them."""

_SECONDS = ("oldest_pending", "lag_p50", "lag_p99")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """The state of the payloads a pipeline received, at one moment.

    The first nine attributes count payloads. The transaction that moves a payload updates them in
    the journal, so they continue after a restart. The others count work since the pipeline
    started.

    Attributes:
        received: Submitted to the pipeline.
        stored: Stored, and confirmed by the store.
        pending: Queued or being stored.
        duplicate: Received again.
        dead: In the dead letters.
        discarded: Deleted from the dead letters by the user, or forgotten before they were stored.
        filtered: Rejected by `select`, or empty.
        refused: Late or repeated events of a forgotten person or session.
        overflow: Lost, because the queue or the disk was full.
        chunks: Chunks stored.
        embed_requests: Requests to the embedder. This and the next three stay 0 if the store
            embeds texts itself.
        embed_texts: Texts in these requests.
        embed_tokens: Tokens in these requests, as the embedder counts them.
        embed_reused: Texts not sent, because the vector of an equal text was available.
        retries: Failed requests to the embedder or the store that were retried.
        pulled: Actions that a pull source brought, and no other source before.
        recovered: Of these, actions that a stream had missed while it was not connected.
        beyond_recovery: Users who did 50 actions or more while a stream was not connected, summed
            over its gaps. Earlier ones may be missing.
        oldest_pending: Seconds that the oldest pending payload has waited; None if none waits. This
            and the next two are measurements: comparing two ledgers ignores them.
        lag_p50: Seconds from received to stored, the median of the last 1,000 payloads; None if
            none is stored. A running pipeline measures it every few seconds and after a drain.
        lag_p99: The same for the slowest of 100.

    Example:
        >>> Ledger(received=3, stored=2, duplicate=1).balanced
        True
    """

    received: int = 0
    stored: int = 0
    pending: int = 0
    duplicate: int = 0
    dead: int = 0
    discarded: int = 0
    filtered: int = 0
    refused: int = 0
    overflow: int = 0
    chunks: int = 0
    embed_requests: int = 0
    embed_texts: int = 0
    embed_tokens: int = 0
    embed_reused: int = 0
    retries: int = 0
    pulled: int = 0
    recovered: int = 0
    beyond_recovery: int = 0
    oldest_pending: float | None = field(default=None, compare=False)
    lag_p50: float | None = field(default=None, compare=False)
    lag_p99: float | None = field(default=None, compare=False)

    @property
    def balanced(self) -> bool:
        """True if `received` equals the sum of the other eight payload counts."""
        return self.received == (
            self.stored
            + self.pending
            + self.duplicate
            + self.dead
            + self.discarded
            + self.filtered
            + self.refused
            + self.overflow
        )

    def _repr_html_(self) -> str:
        work = [name for name in self.__slots__ if name not in (*COUNTERS, *_SECONDS)]
        waits = [(name, getattr(self, name)) for name in _SECONDS]
        return (
            table_html(
                ("payloads", "count"), [(name, f"{getattr(self, name):,}") for name in COUNTERS]
            )
            + table_html(
                ("work since the start", "count"),
                [(name, f"{getattr(self, name):,}") for name in work],
            )
            + table_html(
                ("lag", "seconds"),
                [(name, "" if at is None else f"{at:.1f}") for name, at in waits],
            )
        )

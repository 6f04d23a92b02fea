"""The counts that prove nothing went missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from autoplay_rag._html import table_html

__all__ = ["COUNTERS", "Counts", "Ledger"]

Counts: TypeAlias = Mapping[str, int]
"""A journal's counts by name, as in `COUNTERS`."""

COUNTERS = (
    "received", "stored", "pending", "duplicate", "dead", "discarded", "filtered", "refused",
    "overflow",
)  # fmt: skip
"""What is counted durably, in the transaction that moves the payload."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """What became of the payloads a pipeline received, at one moment.

    The first nine count payloads. They are kept in the journal, in the transaction that moves
    the payload, and continue over restarts. The others count work since the pipeline started.

    Attributes:
        received: Handed to the pipeline.
        stored: In the vector store, confirmed.
        pending: Waiting or under way.
        duplicate: Known already: delivered more than once.
        dead: In the dead letters.
        discarded: Dropped from the dead letters by the user.
        filtered: `select` said no, or there was nothing in it.
        refused: Belong to a person or session that was forgotten; 0 while nobody was.
        overflow: Not accepted because the queue or the disk was full: these are lost.
        chunks: Chunks stored.
        embed_requests: Requests made to the embedder; this and the next three stay 0 where the
            store embeds for itself.
        embed_texts: Texts sent in them.
        embed_tokens: Tokens sent in them, as the embedder counts.
        embed_reused: Texts not sent because an equal one's vector was at hand.
        retries: Requests to embedder or store that failed and were made again.

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

    @property
    def balanced(self) -> bool:
        """Whether every payload received is accounted for."""
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
        work = [name for name in self.__slots__ if name not in COUNTERS]
        return table_html(
            ("payloads", "count"), [(name, f"{getattr(self, name):,}") for name in COUNTERS]
        ) + table_html(
            ("work since the start", "count"), [(name, f"{getattr(self, name):,}") for name in work]
        )

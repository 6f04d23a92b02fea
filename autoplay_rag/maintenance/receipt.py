"""The receipt of a request to forget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

__all__ = ["Receipt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What was forgotten, and how far that has come. It holds no id.

    Attributes:
        number: The number of the request, for `IngestPipeline.receipt`; 0 for a dry run.
        asked: A keyed hash of each id that was given, by name. Only this journal can make the same
            hash of an id again.
        asked_at: When it was asked, in Unix seconds.
        until: Only what happened up to then; None for no limit.
        block: Whether later events are refused too.
        dry_run: Whether it was only counted.
        payloads: Payloads concerned, in any state.
        chunks: Chunks deleted from the store.
        sessions: Sessions concerned, whole or in part.
        pending: Payloads that waited; in the ledger they are now discarded.
        dead_letters: Dead letters; in the ledger they are now discarded.
        text_only: Payloads of other people that shared a chunk with forgotten ones and were not
            kept (`keep_payloads=False`). Full text still finds them, but no chunk has them.
        deleted_at: When no search and no listing found it any more; None until then.
        erased_at: When no file of the journal or of an embedded store held its bytes any more; None
            until then.
        remaining: What may still hold it, a sentence each.
    """

    number: int
    asked: Mapping[str, str] = field(default_factory=dict)
    asked_at: float
    until: float | None = None
    block: bool = False
    dry_run: bool = False
    payloads: int = 0
    chunks: int = 0
    sessions: int = 0
    pending: int = 0
    dead_letters: int = 0
    text_only: int = 0
    deleted_at: float | None = None
    erased_at: float | None = None
    remaining: tuple[str, ...] = ()

    @property
    def deleted(self) -> bool:
        """Whether no search and no listing finds it any more."""
        return self.deleted_at is not None

    @property
    def erased(self) -> bool:
        """Whether no file of the journal or of an embedded store holds its bytes any more."""
        return self.erased_at is not None

    def __str__(self) -> str:
        what = (
            f"{self.payloads:,} payloads in {self.chunks:,} chunks of {self.sessions:,} sessions, "
            f"{self.dead_letters:,} of them dead letters"
        )
        if self.dry_run:
            return f"would be forgotten: {what}"
        deleted, erased = _said(self.deleted_at), _said(self.erased_at)
        return f"forgotten: {what}; deleted: {deleted}; erased: {erased}"


def _said(at: float | None) -> str:
    return "not yet" if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"

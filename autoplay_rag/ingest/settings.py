"""The validated arguments of a pipeline. `IngestPipeline` documents each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from autoplay_rag._checks import check_above, check_at_least, check_choice, check_function
from autoplay_rag.cluster.address import JournalAddress
from autoplay_rag.content.render import Render
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.ingest.pairing import check_options
from autoplay_rag.journal.base import Durability
from autoplay_rag.journal.database import Clock, wall_clock
from autoplay_rag.journal.expiring import Days
from autoplay_rag.journal.ledger import Ledger
from autoplay_rag.payloads import Payload

__all__ = ["Settings", "Summaries"]

Summaries: TypeAlias = Literal["replace", "keep"]
"""What becomes of the actions that a summary replaces."""

_KINDS = ("actions", "summary", "chat")

_MINIMUMS = {
    "journal_max_bytes": 1,
    "batch_window": 0,
    "drain_timeout": 0,
    "remember_keys_days": 0,
}
_MINIMUM_COUNTS = {
    "max_batch_actions": 1,
    "embed_concurrency": 1,
    "max_attempts": 1,
    "remembered_vectors": 0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options of one `IngestPipeline`.

    Raises:
        ConfigurationError: If one of them is not valid.
    """

    journal: Path | JournalAddress | None
    durability: Durability
    journal_max_bytes: int
    keep_payloads: bool
    rebuild: bool
    adopt: bool
    batch_window: float
    max_batch_actions: int
    embed_concurrency: int
    max_attempts: int
    select: Callable[[Payload], bool] | None
    redact: Callable[[Any], Payload] | None
    render: Render
    include_email: bool
    max_embed_tokens_per_day: int | None
    remembered_vectors: int
    drain_timeout: float
    summaries: Summaries
    retention_days: Days
    remember_keys_days: float
    erasure_register: Path | None
    trace_content: bool
    on_progress: Callable[[Ledger], None] | None
    takes_work: bool = True
    lease_seconds: float = 10.0
    clock: Clock = wall_clock
    """Tests and benchmarks simulate weeks with it."""

    def __post_init__(self) -> None:
        for name, least in _MINIMUMS.items():
            check_at_least(name, getattr(self, name), least)
        for name, least in _MINIMUM_COUNTS.items():
            check_at_least(name, getattr(self, name), least, whole=True)
        check_at_least("max_embed_tokens_per_day", self.max_embed_tokens_per_day, 1, optional=True)
        for name in ("select", "redact", "render", "on_progress"):
            check_function(name, getattr(self, name))
        check_above("lease_seconds", self.lease_seconds)
        check_choice("summaries", self.summaries, get_args(Summaries))
        _check_retention(self.retention_days, has_file=self.journal is not None)
        check_choice("durability", self.durability, get_args(Durability))
        if not self.takes_work and not isinstance(self.journal, JournalAddress):
            raise ConfigurationError(
                "takes_work=False needs a journal in PostgreSQL: with any other, nothing would ever "
                "be stored"
            )
        check_options(has_file=self.journal is not None, rebuild=self.rebuild, adopt=self.adopt)

    @property
    def journal_file(self) -> Path | None:
        """The journal, if it is a file."""
        return self.journal if isinstance(self.journal, Path) else None


def _check_retention(days: Any, *, has_file: bool) -> None:
    if isinstance(days, Mapping):
        for kind, some in days.items():
            check_choice("retention_days key", kind, _KINDS)
            check_above(f"retention_days of {kind!r}", some)
    else:
        check_above("retention_days", days, optional=True)
    if days is not None and not has_file:
        raise ConfigurationError(
            "retention_days needs a journal file, because a journal in memory does not know what "
            "the store has from earlier: give journal=..."
        )

"""How a pipeline works: its arguments, checked once. `IngestPipeline` says what each means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoplay_rag.content.render import Render
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.ingest.journal_rows import Durability
from autoplay_rag.ingest.ledger import Ledger
from autoplay_rag.payloads import Payload

__all__ = ["Settings"]

_LEAST = {
    "journal_max_bytes": 1,
    "journal_recent_seconds": 0,
    "batch_window": 0,
    "max_batch_actions": 1,
    "embed_concurrency": 1,
    "max_attempts": 1,
    "remembered_vectors": 0,
    "drain_timeout": 0,
}

_COUNTS = {"max_batch_actions", "embed_concurrency", "max_attempts", "remembered_vectors"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options of one `IngestPipeline`.

    Raises:
        ConfigurationError: If one of them can never work.
    """

    journal: Path | None
    durability: Durability
    journal_max_bytes: int
    journal_recent_seconds: float
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
    on_progress: Callable[[Ledger], None] | None

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if not isinstance(value, int | float) or not value >= least:
                raise ConfigurationError(f"{name} must be at least {least}, not {value!r}")
            if name in _COUNTS and not isinstance(value, int):
                raise ConfigurationError(f"{name} must be a whole number, not {value!r}")
        if self.max_embed_tokens_per_day is not None and not self.max_embed_tokens_per_day >= 1:
            raise ConfigurationError(
                f"max_embed_tokens_per_day must be at least 1 or None, not {self.max_embed_tokens_per_day!r}"
            )
        for name in ("select", "redact", "render", "on_progress"):
            if (value := getattr(self, name)) is not None and not callable(value):
                raise ConfigurationError(f"{name} must be a function, not {value!r}")
        if self.durability not in ("normal", "full"):
            raise ConfigurationError(f"durability is 'normal' or 'full', not {self.durability!r}")

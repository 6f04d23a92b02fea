"""What `autoplay-rag status` says: as rows, as JSON, and what is wrong."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from autoplay_rag.cli.console import clean
from autoplay_rag.journal.inflow import TopicStatus
from autoplay_rag.journal.ledger import COUNTERS
from autoplay_rag.journal.reader import JournalStatus
from autoplay_rag.maintenance.space import Space

__all__ = ["as_json", "problems_of", "rows_of"]

_PIPELINE = {True: "running", False: "not running", None: "unknown"}


def as_json(found: JournalStatus, space: Space) -> dict[str, Any]:
    """Return everything by name."""
    counters = {name: getattr(found.ledger, name) for name in COUNTERS}
    copy = found.copy
    return {
        **counters,
        "queue_bytes": found.queue_bytes,
        "oldest_at": found.oldest_at,
        "oldest_pending": found.ledger.oldest_pending,
        "lag_p50": found.ledger.lag_p50,
        "lag_p99": found.ledger.lag_p99,
        "watermark": found.watermark,
        "health": found.health.state,
        "reasons": found.health.reasons,
        "running": found.running,
        "model": found.model,
        "reembedding": copy and {"model": copy.model, "done": copy.done, "total": copy.total},
        "topic": found.topic and _topic(found.topic),
        "journal_bytes": space.journal,
        "store_bytes": space.store,
        "free_bytes": space.free,
        "space_is_low": space.is_low,
    }


def rows_of(found: JournalStatus, space: Space) -> list[tuple[str, str]]:
    """Return names and values for people."""
    rows = [(name, f"{getattr(found.ledger, name):,}") for name in COUNTERS]
    rows.append(("queue bytes", f"{found.queue_bytes:,}"))
    if found.oldest_at is not None:
        rows.append(("waiting s", f"{max(0.0, time.time() - found.oldest_at):,.0f}"))
    for name in ("p50", "p99"):
        seconds = getattr(found.ledger, f"lag_{name}")
        if seconds is not None:
            rows.append((f"lag {name} s", f"{seconds:,.1f}"))
    if (copy := found.copy) is not None:
        rows.append(("re-embedded", f"{copy.done:,} of {copy.total:,} with {clean(copy.model)}"))
    if (topic := found.topic) is not None:
        rows.append(("topic", f"{clean(topic.topic)}, group {clean(topic.group)}"))
        rows.append(("topic lag", f"{topic.lag:,}"))
        if topic.missed:
            rows.append(("missed", f"{topic.missed:,}"))
    rows.append(("journal", _megabytes(space.journal)))
    rows.append(("store", _megabytes(space.store)))
    rows.append(("disk free", _megabytes(space.free)))
    rows.append(("pipeline", _PIPELINE[found.running]))
    rows.append(("health", clean(str(found.health))))
    return rows


def problems_of(found: JournalStatus) -> list[str]:
    """Return the problems of a journal, a few words each."""
    problems = []
    if not found.running:
        unknown = found.running is None
        problems.append(
            "only the pipeline's own user can see whether it is running"
            if unknown
            else "the pipeline is not running"
        )
    if found.health.state != "ok":
        # A stopped pipeline has no current health: this is the last one it noted.
        last = "" if found.running else "last noted: "
        problems.append(f"{last}{clean(str(found.health))}")
    if found.ledger.overflow:
        problems.append(f"{found.ledger.overflow:,} payloads lost to overflow")
    if (topic := found.topic) is not None:
        if topic.unread:
            numbers = ", ".join(map(str, topic.unread))
            problems.append(f"no process reads the partitions {numbers} of the topic")
        if topic.missed:
            problems.append(
                f"{topic.missed:,} messages lost: the topic deleted them before they were read"
            )
    return problems


def _topic(topic: TopicStatus) -> dict[str, Any]:
    parts = [asdict(part) | {"lag": part.lag} for part in topic.parts]
    return asdict(topic) | {"lag": topic.lag, "missed": topic.missed, "parts": parts}


def _megabytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**20:,.1f} MB"

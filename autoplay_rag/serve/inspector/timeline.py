"""A session's events as the rows of a timeline: events, gaps, days and pages. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from autoplay_rag.search.timeline import SessionEvent
from autoplay_rag.serve.inspector.texts import day

__all__ = ["Row", "rows_of"]

_GAP_SECONDS: Final = 60.0
"""A longer time without an event is shown as a gap."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        kind: "event", "gap", "day" or "page".
        event: The event; of a gap the one after it, of a day or a page the first one.
        seconds: How long a gap is.
    """

    kind: Literal["event", "gap", "day", "page"]
    event: SessionEvent
    seconds: float = 0.0


def rows_of(events: Iterable[SessionEvent]) -> list[Row]:
    """Return the rows of some events in order."""
    rows: list[Row] = []
    page, today = "", ""
    ended: float | None = None
    for event in events:
        if event.started_at is not None and ended is not None:
            seconds = event.started_at - ended
            if seconds >= _GAP_SECONDS:
                rows.append(Row("gap", event, seconds))
        if (date := day(event.started_at)[:10]) and date != today:
            if today:
                rows.append(Row("day", event))
            today = date
        if event.page and event.page != page:
            rows.append(Row("page", event))
            page = event.page
        rows.append(Row("event", event))
        end = _end(event)
        if end is not None:
            ended = end if ended is None else max(ended, end)
    return rows


def _end(event: SessionEvent) -> float | None:
    return event.ended_at if event.kind == "actions" else event.started_at

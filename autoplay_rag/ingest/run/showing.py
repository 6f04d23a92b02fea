"""Shows accepted payloads in the live sessions."""

from __future__ import annotations

import logging
import time
from typing import Final

from autoplay_rag.content.keys import session_lane
from autoplay_rag.journal.base import Queue
from autoplay_rag.journal.ownership import AcceptedPayload
from autoplay_rag.live import Feed, LiveSessions
from autoplay_rag.payloads import ActionsPayload, Payload
from autoplay_rag.sources.age import arrived_at
from autoplay_rag.sources.sessions import is_pulled

__all__ = ["LIVE_PAYLOADS", "LIVE_SECONDS", "resume_live", "show", "show_accepted"]

_log = logging.getLogger(__name__)

LIVE_SECONDS: Final = 3600.0
LIVE_PAYLOADS: Final = 10_000
"""The age and number of journalled payloads to fill live sessions with at start."""


def show(live: LiveSessions, payload: Payload, *, at: float | None) -> None:
    """Add a payload to the live sessions. A failure is logged.

    Args:
        live: The live sessions.
        payload: The payload.
        at: When it arrived, in Unix seconds; None for now.
    """
    try:
        if at is None:  # what a subclass that notices payloads of now may be limited to
            live.add(payload)
        else:
            live.add(payload, at=at)
    except Exception as error:  # noqa: BLE001 - a redacted payload may hold anything
        _log.error(
            "a payload is missing in the live sessions, but will be stored: %s",
            type(error).__name__,
        )


def show_accepted(live: LiveSessions, row: AcceptedPayload) -> None:
    """Add a payload that any process of the journal accepted."""
    at = row.at
    if isinstance(row.payload, ActionsPayload) and is_pulled(row.payload):
        at = arrived_at(row.payload, at)
    show(live, row.payload, at=at)


async def resume_live(queue: Queue, live: LiveSessions, feed: Feed) -> None:
    """Fill live sessions, if they are empty, and subscribers with the last payloads of the journal."""
    filling = not len(live)
    for at, payload in await queue.recent(time.time() - LIVE_SECONDS, LIVE_PAYLOADS):
        if filling:
            show(live, payload, at=at)
        if payload.session_id:
            feed.know(session_lane(payload.product_id, payload.session_id), payload)

"""The live sessions that a request may see."""

from __future__ import annotations

from typing import Final

from autoplay_rag.live import LiveSession
from autoplay_rag.serve.access import Access, Ids

__all__ = ["FEW_LIVE", "MOST_LIVE", "live_key", "live_of"]

FEW_LIVE: Final = 8
MOST_LIVE: Final = 200
"""The live sessions above a list of stored ones, and the most of any list."""


def live_of(access: Access, ids: Ids, limit: int = MOST_LIVE) -> list[LiveSession]:
    """Return the newest live sessions.

    Args:
        access: The request.
        ids: Selected by `Access.select`, so that a token's own are among them.
        limit: The most sessions.
    """
    return access.pipeline.live.sessions(
        limit, user_id=ids.user_id, session_id=ids.session_id, product_id=ids.product_id
    )


def live_key(sessions: list[LiveSession]) -> tuple[object, ...]:
    """Return what changes when the list does."""
    return tuple(
        (one.product_id, one.session_id, one.user_id, len(one.events), one.events[-1].at)
        for one in sessions
    )

"""When pulled actions would have arrived. Pure."""

from __future__ import annotations

from typing import Final

from autoplay_rag.content.times import own_time
from autoplay_rag.payloads import ActionsPayload

__all__ = ["arrived_at"]

_DAY: Final = 86_400.0


def arrived_at(payload: ActionsPayload, now: float) -> float:
    """Return when pulled actions would have arrived: as long ago as the last one was for the server.

    Args:
        payload: The actions. `forwarded_at` is the server's time of the answer.
        now: The time here, in Unix seconds.

    Example:
        >>> from autoplay_rag.payloads import SlimAction
        >>> click = SlimAction("Export", timestamp_start=100.0)
        >>> arrived_at(ActionsPayload("acme", "s1", actions=[click], forwarded_at=130.0), now=5030.0)
        5000.0
    """
    last = max((own_time(action.timestamp_start) for action in payload.actions), default=0.0)
    age = payload.forwarded_at - last
    # An age of days is a replayed recording, or a wrong clock.
    return now - (age if 0.0 <= age <= _DAY else 0.0)

"""What an HTTP status of a service means: the one rule for all retries and their messages."""

from __future__ import annotations

from typing import Final

__all__ = ["REJECTING_STATUSES", "hint_of"]

REJECTING_STATUSES: Final = frozenset({400, 413, 422})
"""The same request gets the same answer again. Every other error status may pass later."""

_HINTS: Final = {
    401: "check the API key",
    402: "check the quota and the balance of the account",
    403: "check what the API key may do",
    404: "check the model's name and base_url",
    405: "check base_url",
    407: "check the proxy",
    410: "check the model's name and base_url",
}


def hint_of(status: int | None) -> str | None:
    """What to check after a status that will hardly change by itself; None for other statuses.

    Example:
        >>> hint_of(401), hint_of(503)
        ('check the API key', None)
    """
    return None if status is None else _HINTS.get(status)

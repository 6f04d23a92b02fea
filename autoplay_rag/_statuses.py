"""HTTP statuses that blame the request, not the service: the one rule for all retries."""

from __future__ import annotations

from typing import Final

__all__ = ["REJECTING_STATUSES"]

REJECTING_STATUSES: Final = frozenset({400, 413, 422})
"""The same request gets the same answer again. Every other error status may pass later."""

"""HTTP statuses that several rooms judge alike."""

from __future__ import annotations

from typing import Final

__all__ = ["REJECTING_STATUSES"]

REJECTING_STATUSES: Final = frozenset({400, 413, 422})
"""A service answers with one of these because of the input: the same input will be refused again.
Any other error status is an outage, which passes."""

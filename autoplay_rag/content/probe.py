"""The text that asks a service whether it works."""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

__all__ = ["PROBE", "PROBE_ID"]

PROBE: Final = "Is anybody there?"
"""A text that any healthy service takes."""
PROBE_ID: Final = blake2b(PROBE.encode(), digest_size=16).hexdigest()
"""The id under which it is in a store for a moment; no search returns it."""

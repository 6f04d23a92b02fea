"""What differs between a chunk of the catalog and the same chunk in the store. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Literal, TypeAlias, get_args

from autoplay_rag.journal.base import Recorded
from autoplay_rag.stores.base import Changes, Chunk

__all__ = ["KINDS", "Kind", "NumberSet", "changes_to", "is_stale", "same_metadata"]

Kind: TypeAlias = Literal["missing", "extra", "stale", "doubled", "undeleted"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

_TEXT_KEYS: Final = frozenset(("product_id", "session_id", "user_id", "conversation_id", "kind"))
"""The journal keeps these as text."""


def is_stale(recorded: Recorded, stored: Chunk) -> bool:
    """Whether text or metadata differ. False if the journal does not know the text.

    Metadata that the store still has to change are not compared.

    Example:
        >>> chunk = Chunk("c1", "Opened billing", {"started_at": 5.0})
        >>> is_stale(Recorded(1, chunk, True, True), Chunk("c1", "Opened billing", {"started_at": 5}))
        False
        >>> is_stale(Recorded(1, chunk, True, True), Chunk("c1", "Opened", {"started_at": 5.0}))
        True
    """
    if not recorded.has_text:
        return False
    chunk = recorded.chunk
    if chunk.text != stored.text:
        return True
    return not (recorded.outdated or same_metadata(chunk.metadata, stored.metadata))


def same_metadata(
    recorded: Mapping[str, str | int | float], stored: Mapping[str, str | int | float]
) -> bool:
    """Whether two mappings are equal, whatever the types of their numbers are."""
    if recorded == stored:
        return True
    return not changes_to(recorded, stored)


def changes_to(
    recorded: Mapping[str, str | int | float], stored: Mapping[str, str | int | float]
) -> Changes:
    """Return the changes that make the store's metadata equal to the journal's.

    Example:
        >>> changes_to({"user_id": "ann", "n": 1}, {"n": 1.0, "old": 2})
        {'user_id': 'ann', 'old': None}
    """
    changes: dict[str, str | int | float | None] = {
        key: value
        for key, value in recorded.items()
        if key not in stored or not _equal(key, value, stored[key])
    }
    return changes | dict.fromkeys(stored.keys() - recorded.keys())


def _equal(key: str, recorded: str | float, stored: str | float) -> bool:
    if isinstance(recorded, float) and isinstance(stored, int | float):
        # Chroma returns a time with 17 digits as one with 16.
        return math.isclose(recorded, stored, rel_tol=1e-14)
    return recorded == stored or (key in _TEXT_KEYS and recorded == str(stored))


class NumberSet:
    """A set of chunk numbers that takes one bit per number.

    Example:
        >>> seen = NumberSet()
        >>> seen.add(7), seen.add(7), 7 in seen, 8 in seen
        (True, False, True, False)
    """

    def __init__(self) -> None:
        self._bits = bytearray()

    def add(self, number: int) -> bool:
        """Add a number; returns whether it is new."""
        at, bit = number >> 3, 1 << (number & 7)
        if at >= len(self._bits):
            self._bits.extend(bytes(at + 1 + len(self._bits) // 2 - len(self._bits)))
        new = not self._bits[at] & bit
        self._bits[at] |= bit
        return new

    def __contains__(self, number: int) -> bool:
        at = number >> 3
        return at < len(self._bits) and bool(self._bits[at] & 1 << (number & 7))

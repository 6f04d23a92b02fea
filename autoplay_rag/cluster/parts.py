"""The partitions of the sessions. Pure."""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

__all__ = ["PARTITIONS", "channel_of", "part_of"]

PARTITIONS: Final = 64
"""A process works on whole partitions. The tables have the number too: it cannot be changed."""


def part_of(lane: int) -> int:
    """Return the partition of a session.

    Example:
        >>> part_of(130), part_of(-1)
        (2, 63)
    """
    return lane % PARTITIONS


def channel_of(schema: str) -> str:
    """Return the channel of NOTIFY on which new payloads are announced.

    The message has the partitions of the payloads, separated by commas.

    Example:
        >>> channel_of("autoplay")[:9], len(channel_of("x" * 63))
        ('autoplay_', 41)
    """
    return f"autoplay_{blake2b(schema.encode(), digest_size=16).hexdigest()}"

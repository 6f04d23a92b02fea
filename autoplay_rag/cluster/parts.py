"""The channel on which the processes of one journal wake each other. Pure."""

from __future__ import annotations

from hashlib import blake2b

__all__ = ["channel_of"]


def channel_of(schema: str) -> str:
    """Return the channel of NOTIFY on which new payloads are announced.

    The message has the partitions of the payloads, separated by commas.

    Example:
        >>> channel_of("autoplay")[:9], len(channel_of("x" * 63))
        ('autoplay_', 41)
    """
    return f"autoplay_{blake2b(schema.encode(), digest_size=16).hexdigest()}"

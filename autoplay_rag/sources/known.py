"""Which actions are known already, where no key of a payload tells. Pure.

A pulled action has no session, and comes in another batch than in the stream. So it is known by its
person, time, type, page and title. An action without a time cannot be recognised.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

import msgspec

from autoplay_rag.content.times import own_time
from autoplay_rag.payloads import SlimAction

__all__ = ["SeenActions", "action_key"]

_encode = msgspec.msgpack.Encoder().encode
_MOST: Final = 200
"""Four times the actions that a pull endpoint keeps of one user."""


def action_key(product_id: str, user_id: str, action: SlimAction) -> int | None:
    """Return what identifies an action in every source: 64 bits; None without a time.

    Args:
        product_id: The product.
        user_id: The person.
        action: The action.

    Example:
        >>> click = SlimAction("Export", "User clicked Export", "https://a.test/r", 3, "click", 9.5)
        >>> moved = SlimAction("Export", "", "https://a.test/r", 0, "click", 9.5)
        >>> action_key("acme", "u1", click) == action_key("acme", "u1", moved)
        True
        >>> action_key("acme", "u1", SlimAction("Export"))
    """
    if not action.timestamp_start > 0:
        return None
    moment = round(own_time(action.timestamp_start) * 1000)
    page = action.canonical_url or action.raw_url
    content = _encode((product_id, user_id, moment, action.type, page, action.title))
    return int.from_bytes(blake2b(content, digest_size=8).digest())


class SeenActions:
    """The keys of the latest actions of one person, in bounded memory.

    Example:
        >>> seen = SeenActions()
        >>> seen.add([1, 2])
        >>> 1 in seen, 3 in seen
        (True, False)
    """

    __slots__ = ("_keys",)

    def __init__(self) -> None:
        self._keys: dict[int, None] = {}

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def add(self, keys: Iterable[int]) -> None:
        """Add keys. Beyond 200, those added first are forgotten."""
        for key in keys:
            self._keys.pop(key, None)
            self._keys[key] = None
        while len(self._keys) > _MOST:
            del self._keys[next(iter(self._keys))]

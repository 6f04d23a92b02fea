"""Which actions are known already, where no key of a payload tells. Pure.

A pulled action has no session, and comes in another batch than in the stream. So it is known by its
person, time, type, page and title. An action without a time cannot be recognised.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

import msgspec

from autoplay_rag.content.times import own_time
from autoplay_rag.payloads import SlimAction

__all__ = ["SeenActions", "SeenByPerson", "action_key"]

_encode = msgspec.msgpack.Encoder().encode
_MOST: Final = 100
"""Twice the actions that a pull endpoint keeps of one user."""


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
    try:
        content = _encode((product_id, user_id, moment, action.type, page, action.title))
    except UnicodeEncodeError:  # a lone surrogate, which did not come from `decode`
        return None
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

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, keys: Iterable[int]) -> None:
        """Add keys. Beyond 100, those added first are forgotten."""
        for key in keys:
            self._keys.pop(key, None)
            self._keys[key] = None
        while len(self._keys) > _MOST:
            del self._keys[next(iter(self._keys))]

    def discard(self, keys: Iterable[int]) -> None:
        """Remove keys that should not count as seen."""
        for key in keys:
            self._keys.pop(key, None)


class SeenByPerson:
    """The keys of the latest actions of many people, in bounded memory.

    Args:
        most: The most people. Those without a new action for longest are forgotten first.

    Example:
        >>> seen = SeenByPerson()
        >>> seen.of("acme", "ann").add([1])
        >>> seen.find("acme", "ann") is not None, seen.find("acme", "bob") is not None
        (True, False)
    """

    def __init__(self, most: int = 10_000) -> None:
        self._most = most
        self._people: OrderedDict[tuple[str, str], SeenActions] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._people)

    def of(self, product_id: str, user_id: str) -> SeenActions:
        """Return what is seen of a person, to be added to."""
        who = (product_id, user_id)
        seen = self._people.get(who)
        if seen is None:
            seen = self._people[who] = SeenActions()
            if len(self._people) > self._most:
                self._people.popitem(last=False)
        else:
            self._people.move_to_end(who)
        return seen

    def find(self, product_id: str, user_id: str) -> SeenActions | None:
        """Return what is seen of a person; None if nothing is."""
        return self._people.get((product_id, user_id))

    def clear(self) -> None:
        """Forget everybody."""
        self._people.clear()

    def forget(self, user_id: str) -> None:
        """Forget a person, in all products."""
        for who in [who for who in self._people if who[1] == user_id]:
            del self._people[who]

"""What each user did: the answers of the pull endpoint of `LocalConnector`."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

from autoplay_rag.content.identity import parts_by_person, people_of
from autoplay_rag.content.times import own_time
from autoplay_rag.decoding import decode
from autoplay_rag.devserver.pace import Pace
from autoplay_rag.devserver.source import Source
from autoplay_rag.errors import DecodeError
from autoplay_rag.payloads import ActionsPayload, SlimAction

__all__ = ["MOST_ACTIONS", "Activity"]

MOST_ACTIONS: Final = 50
"""The most actions kept of one user, as in the real endpoint."""
_KEPT_SECONDS: Final = 24 * 3600.0
_MOST_USERS: Final = 100_000
_FIELDS: Final = (
    "type", "title", "description", "timestamp_start", "timestamp_end", "raw_url",
    "canonical_url", "index",
)  # fmt: skip


class _Kept(NamedTuple):
    came: float
    action: SlimAction


class Activity:
    """The last actions of each user: at most 50, for 24 hours after they were sent.

    What counts as sent is what a subscriber that connected at the start would have, and everything
    that was pushed with `LocalConnector.send`, whether or not somebody was connected. An action that
    is sent again is kept once. Actions without a user are left out, as in the real endpoint.

    Args:
        source: The recording.
        pace: How fast it is played.
        clock: Returns the time in Unix seconds.
    """

    def __init__(self, source: Source, pace: Pace, clock: Callable[[], float]) -> None:
        self._source = source
        self._lines = source.lines()
        self._lot: deque[bytes] = deque()
        self._over = False
        self._pace = pace
        self._clock = clock
        self._started = clock()
        self._played = 0
        self._playing = asyncio.Lock()
        self._users: OrderedDict[str, OrderedDict[bytes, _Kept]] = OrderedDict()

    def add(self, line: bytes) -> None:
        """Add the actions of a payload that was sent. Other events are left out."""
        try:
            payload = decode(line)
        except DecodeError:
            return
        now = self._clock()
        for part in parts_by_person(payload):
            user_id = people_of(part).user_id
            if user_id is None or not isinstance(part, ActionsPayload):
                continue
            kept = self._users.setdefault(user_id, OrderedDict())
            self._users.move_to_end(user_id)
            for action in part.actions:
                kept.setdefault(_digest(action), _Kept(now, action))
            while len(kept) > 2 * MOST_ACTIONS:  # `answer` keeps the latest by their own times
                kept.popitem(last=False)
        while len(self._users) > _MOST_USERS:
            self._users.popitem(last=False)

    async def answer(self, product_id: str, user_id: str, limit: int) -> tuple[dict[str, Any], str]:
        """Return the endpoint's answer, and a tag that changes with the actions in it.

        Args:
            product_id: The product, for the answer.
            user_id: The user.
            limit: The most actions; 0 or less means 50.
        """
        async with self._playing:
            await self._play()
        now = self._clock()
        kept = self._users.get(user_id, OrderedDict())
        newest = sorted(kept.items(), key=lambda one: own_time(one[1].action.timestamp_start))
        for digest, _ in newest[:-MOST_ACTIONS]:
            del kept[digest]
        actions = [
            {name: getattr(one.action, name) for name in _FIELDS}
            for _, one in newest[-MOST_ACTIONS:]
            if one.came >= now - _KEPT_SECONDS
        ]
        if 0 < limit < len(actions):
            actions = actions[-limit:]
        tag = hashlib.blake2b(msgspec.json.encode(actions), digest_size=8).hexdigest()
        return {
            "product_id": product_id,
            "user_id": user_id,
            "count": len(actions),
            "as_of": now,
            "actions": actions,
        }, f'"{tag}"'

    async def _play(self) -> None:
        """Add what the recording has sent by now."""
        allowed = self._pace.allowed(self._clock() - self._started, self._played)
        while allowed > 0 and not self._over:
            if not self._lot:
                self._lot.extend(await self._source.take(self._lines))
                self._over = not self._lot
            while self._lot and allowed > 0:
                self.add(self._lot.popleft())
                self._played += 1
                allowed -= 0 if allowed == math.inf else 1


def _digest(action: SlimAction) -> bytes:
    content = [getattr(action, name) for name in _FIELDS if name != "index"]
    return hashlib.blake2b(msgspec.json.encode(content), digest_size=16).digest()

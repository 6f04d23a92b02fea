"""Takes in pulled actions: those that no other source brought, in the sessions they fall into."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import msgspec

from autoplay_rag.content.identity import people_of
from autoplay_rag.ingest.catalog_actions import CatalogActions
from autoplay_rag.journal.base import Outcome
from autoplay_rag.journal.finder import AsyncTimeline
from autoplay_rag.payloads import ActionsPayload, Payload, SlimAction
from autoplay_rag.sources.age import arrived_at
from autoplay_rag.sources.known import SeenByPerson, action_key
from autoplay_rag.sources.sessions import CUT_PREFIX, is_cut_name, is_pulled

__all__ = ["HOLD_SECONDS", "PulledActions"]

HOLD_SECONDS: Final = 30.0
"""Beside a source that names sessions, pulled actions wait until they are this old. A connector
forwards an active session about every 10 s."""
_NAMED_SECONDS: Final = 600.0
"""A product whose payloads named sessions within this time has such a source."""
_DAY: Final = 86_400.0
_MOST_PAYLOADS: Final = 20_000


class Accept(Protocol):
    """Accepts a payload."""

    def __call__(self, payload: Payload, *, at: float) -> Awaitable[Outcome]:
        """Accept a payload that belongs to this time, in Unix seconds."""


class PulledActions:
    """What a pipeline knows of pulled actions.

    A pulled action is known by user, time, type, page and title. It is taken in once, whichever source
    brings it first. It goes into the session of its user that it falls into by its time, at most 30
    minutes from it, and otherwise into one that the source cut. In a session of the product, its own
    `session_id` keeps the name that the source gave, so that its origin can be seen.

    Nothing happens here until `begin` was called: without a pull source, other sources cost nothing.

    Args:
        timeline: Reads the catalog.
        committed: Waits until what was accepted before is in the catalog.
        accept: Accepts a payload.
        redact: Returns a payload as it would be kept.

    Attributes:
        taken: The number of actions taken in.
        hold: Beside a source that names sessions, actions wait until they are this old, in seconds.
    """

    def __init__(
        self,
        timeline: AsyncTimeline,
        committed: Callable[[], Awaitable[object]],
        accept: Accept,
        redact: Callable[[ActionsPayload], Payload],
    ) -> None:
        self.taken = 0
        self.hold = HOLD_SECONDS
        self._timeline = timeline
        self._committed = committed
        self._accept = accept
        self._catalog = CatalogActions(timeline, redact)
        self._begun = False
        self._loaded = False
        self._lock = asyncio.Lock()
        self._pulled = SeenByPerson()
        self._named = SeenByPerson()
        self._named_at: dict[str, float] = {}

    def begin(self) -> None:
        """Remember from now on what other sources bring."""
        self._begun = True

    async def load(self, *, again: bool = False) -> None:
        """Remember what was pulled in the last day, before an earlier run ended.

        Args:
            again: Also if it was loaded before: another process may have pulled since.
        """
        if (not self._begun) if again else self._loaded:
            return
        self._loaded = True
        since = time.time() - _DAY
        for payload in await self._timeline.beginning(CUT_PREFIX, since, _MOST_PAYLOADS):
            if isinstance(payload, ActionsPayload) and payload.user_id:
                seen = self._pulled.of(payload.product_id, payload.user_id)
                seen.add(_keys(payload.product_id, payload.user_id, payload.actions))

    def forget(self, user_id: str) -> None:
        """Forget a person."""
        self._pulled.forget(user_id)
        self._named.forget(user_id)

    def names_sessions(self, product_id: str) -> bool:
        """Whether another source brought a session of this product within ten minutes."""
        return time.monotonic() - self._named_at.get(product_id, float("-inf")) < _NAMED_SECONDS

    def clear(self) -> None:
        """Forget what was pulled, for example because a person was forgotten. See `load`."""
        self._pulled.clear()
        self._named.clear()

    def note(self, payload: Payload) -> None:
        """Remember what another process of the journal accepted."""
        if not self._begun or not isinstance(payload, ActionsPayload) or not payload.session_id:
            return
        user_id = people_of(payload).user_id
        pulled = is_pulled(payload)
        if not pulled:
            self._named_at[payload.product_id] = time.monotonic()
        if user_id is not None:
            seen = (self._pulled if pulled else self._named).of(payload.product_id, user_id)
            seen.add(_keys(payload.product_id, user_id, payload.actions))

    # -- other sources ------------------------------------------------------------------------

    def unknown(self, payload: Payload) -> Payload | None:
        """Return what of another source's payload was not pulled before; None if all was.

        An action is only left out if it was pulled. Two deliveries of one batch have the same key,
        which the journal knows.
        """
        if not self._begun or not isinstance(payload, ActionsPayload) or not payload.session_id:
            return payload
        self._named_at[payload.product_id] = time.monotonic()
        user_id = people_of(payload).user_id
        if user_id is None:
            return payload
        keys = [action_key(payload.product_id, user_id, action) for action in payload.actions]
        pulled = self._pulled.find(payload.product_id, user_id)
        if pulled is not None and any(key in pulled for key in keys):
            new = [a for key, a in zip(keys, payload.actions, strict=True) if key not in pulled]
            if not new:
                return None
            payload = msgspec.structs.replace(payload, actions=new, count=len(new))
            keys = [key for key in keys if key not in pulled]
        self._named.of(payload.product_id, user_id).add(key for key in keys if key is not None)
        return payload

    # -- pulled -------------------------------------------------------------------------------

    async def take(self, payload: ActionsPayload) -> int:
        """Accept what is new in pulled actions of one user.

        Args:
            payload: The actions, in the order of their times. `forwarded_at` is the server's time.

        Returns:
            The number of actions that were new.
        """
        product_id, user_id = payload.product_id, payload.user_id
        if user_id is None or not payload.actions:
            return 0
        async with self._lock:
            await self.load()
            pulled = self._pulled.of(product_id, user_id)
            named = self._named.find(product_id, user_id)
            keyed = [(action_key(product_id, user_id, one), one) for one in payload.actions]
            new = [
                (key, one)
                for key, one in keyed
                if key is None or (key not in pulled and (named is None or key not in named))
            ]
            if not new:
                return 0
            # Claimed before the first await: another source may bring them meanwhile.
            claimed = [key for key, _ in new if key is not None]
            pulled.add(claimed)
            try:
                await self._committed()
                origins = await self._catalog.origins(payload, [one for _, one in new])
                # A batch that a stream brought has to stay whole, or its repetition is not known.
                pulled.discard(
                    key
                    for (key, _), origin in zip(new, origins, strict=True)
                    if origin == "named" and key is not None
                )
                fresh = [
                    one for (_, one), origin in zip(new, origins, strict=True) if origin is None
                ]
                await self._take_in(payload, fresh)
            except BaseException:
                pulled.discard(claimed)
                raise
            self.taken += len(fresh)
            return len(fresh)

    async def _take_in(self, payload: ActionsPayload, actions: Sequence[SlimAction]) -> None:
        """Accept new actions, one payload for each session."""
        if not actions:
            return
        cutter = await self._catalog.sessions(payload, actions)
        sessions: dict[str, list[SlimAction]] = {}
        for action in actions:
            name = cutter.session_at(action.timestamp_start)
            if not is_cut_name(name) and action.session_id is None:
                action = msgspec.structs.replace(action, session_id=payload.session_id)  # noqa: PLW2901
            sessions.setdefault(name, []).append(action)
        for name, own in sessions.items():
            part = msgspec.structs.replace(payload, session_id=name, actions=own, count=len(own))
            await self._accept(part, at=arrived_at(part, time.time()))


def _keys(product_id: str, user_id: str, actions: Sequence[SlimAction]) -> list[int]:
    keys = (action_key(product_id, user_id, action) for action in actions)
    return [key for key in keys if key is not None]

"""Takes in pulled actions: those that no other source brought, in the sessions they fall into."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import msgspec

from autoplay_rag.content.identity import people_of
from autoplay_rag.content.passages import storable
from autoplay_rag.content.redaction import RedactionError
from autoplay_rag.content.times import own_time
from autoplay_rag.journal.base import Outcome
from autoplay_rag.journal.finder import AsyncTimeline
from autoplay_rag.journal.timeline import KeptPayload, Wanted
from autoplay_rag.payloads import ActionsPayload, Payload, SlimAction
from autoplay_rag.sources.known import SeenByPerson, action_key
from autoplay_rag.sources.sessions import CUT_PREFIX, IDLE_GAP, SessionCutter, is_cut_name

__all__ = ["HOLD_SECONDS", "PulledActions"]

HOLD_SECONDS: Final = 30.0
"""Beside a source that names sessions, pulled actions wait until they are this old. A connector
forwards an active session about every 10 s."""
_NAMED_SECONDS: Final = 600.0
"""A product whose payloads named sessions within this time has such a source."""
_DAY: Final = 86_400.0
_MOST_SESSIONS: Final = 50
_MOST_PAYLOADS: Final = 20_000
_TOLERANCE: Final = 0.001
"""Times are compared to the millisecond."""


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
        self._redact = redact
        self._begun = False
        self._loaded = False
        self._lock = asyncio.Lock()
        self._pulled = SeenByPerson()
        self._named = SeenByPerson()
        self._named_at: dict[str, float] = {}

    def begin(self) -> None:
        """Remember from now on what other sources bring."""
        self._begun = True

    async def load(self) -> None:
        """Remember what was pulled in the last day, before an earlier run ended."""
        if self._loaded:
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
            payload = msgspec.structs.replace(payload, actions=new, count=len(new))
            keys = [key for key in keys if key not in pulled]
        self._named.of(payload.product_id, user_id).add(key for key in keys if key is not None)
        return payload if payload.actions or not keys else None

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
                known = await self._in_catalog(payload, [one for _, one in new])
                # A batch that a stream brought has to stay whole, or its repetition is not known.
                pulled.discard(
                    key
                    for (key, _), is_known in zip(new, known, strict=True)
                    if is_known and key is not None
                )
                fresh = [one for (_, one), is_known in zip(new, known, strict=True) if not is_known]
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
        cutter = await self._sessions(payload, actions)
        sessions: dict[str, list[SlimAction]] = {}
        for action in actions:
            name = cutter.session_at(action.timestamp_start)
            if not is_cut_name(name) and action.session_id is None:
                action = msgspec.structs.replace(action, session_id=payload.session_id)  # noqa: PLW2901
            sessions.setdefault(name, []).append(action)
        for name, own in sessions.items():
            part = msgspec.structs.replace(payload, session_id=name, actions=own, count=len(own))
            await self._accept(part, at=_arrival(own[-1], payload.forwarded_at))

    async def _sessions(
        self, payload: ActionsPayload, actions: Sequence[SlimAction]
    ) -> SessionCutter:
        """The sessions of the user around these actions."""
        assert payload.user_id is not None
        cutter = SessionCutter(payload.product_id, payload.user_id)
        if (times := _times(actions)) is None:
            return cutter
        spans = await self._timeline.spans(
            Wanted(
                user_id=storable(self._kept_user(payload)),
                product_id=storable(payload.product_id),
                since=times[0] - IDLE_GAP,
                until=times[1] + IDLE_GAP,
            ),
            _MOST_SESSIONS,
        )
        # Those of the product first: of two that are equally near, the first one is taken.
        for span in sorted(spans, key=lambda span: is_cut_name(span.session_id)):
            cutter.remember(*span)
        return cutter

    async def _in_catalog(
        self, payload: ActionsPayload, actions: Sequence[SlimAction]
    ) -> list[bool]:
        """Whether each action is in the catalog."""
        if (times := _times(actions)) is None:
            return [False] * len(actions)
        wanted = Wanted(
            user_id=storable(self._kept_user(payload)),
            product_id=storable(payload.product_id),
            since=times[0] - _TOLERANCE,
            until=times[1] + _TOLERANCE,
        )
        kept: list[KeptPayload] = []
        last, after = await self._timeline.last_seq(), None
        while page := await self._timeline.payloads(wanted, ActionsPayload.kind, after, last):
            kept += page
            after = page[-1].seq
        known: set[int] = set()
        spans: list[tuple[float, float]] = []
        for one in kept:
            if one.owner not in (None, wanted.user_id):
                continue  # another person in the same session
            if isinstance(one.payload, ActionsPayload):
                # Under the names of the pulled ones: a rule of the user's may have changed them.
                known |= set(_keys(payload.product_id, payload.user_id, one.payload.actions))
            elif one.started and one.ended:
                spans.append((one.started - _TOLERANCE, one.ended + _TOLERANCE))
        found = []
        for action in actions:
            at = own_time(action.timestamp_start)
            # Without its body, a stored batch counts as all that happened in its time.
            covered = any(start <= at <= end for start, end in spans)
            keys = set(_keys(payload.product_id, payload.user_id, self._kept(payload, action)))
            found.append(covered or (bool(keys) and keys <= known))
        return found

    def _kept(self, payload: ActionsPayload, action: SlimAction) -> Sequence[SlimAction]:
        """An action as it would be kept."""
        alone = msgspec.structs.replace(payload, actions=[action], count=1)
        try:
            kept = self._redact(alone)
        except RedactionError:
            return ()  # accepting it says what is wrong
        return kept.actions if isinstance(kept, ActionsPayload) else ()

    def _kept_user(self, payload: ActionsPayload) -> str:
        """The user as the catalog has them."""
        alone = msgspec.structs.replace(payload, actions=[], count=0)
        try:
            kept = self._redact(alone)
        except RedactionError:
            kept = alone
        return people_of(kept).user_id or payload.user_id or ""


def _keys(product_id: str, user_id: str | None, actions: Sequence[SlimAction]) -> list[int]:
    keys = (action_key(product_id, user_id or "", action) for action in actions)
    return [key for key in keys if key is not None]


def _times(actions: Sequence[SlimAction]) -> tuple[float, float] | None:
    """The first and the last known time; None if there is none."""
    known = [at for one in actions if (at := own_time(one.timestamp_start)) > 0]
    return (min(known), max(known)) if known else None


def _arrival(last: SlimAction, as_of: float) -> float:
    """When a pulled action would have arrived: as long ago as it was for the server."""
    age = as_of - own_time(last.timestamp_start)
    # An age of days is a replayed recording, or a wrong clock.
    return time.time() - (age if 0.0 <= age <= _DAY else 0.0)

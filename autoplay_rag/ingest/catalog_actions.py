"""What the catalog has of one user's actions: which are in it, and in which sessions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Literal, NamedTuple, TypeAlias

import msgspec

from autoplay_rag.content.identity import people_of
from autoplay_rag.content.passages import storable
from autoplay_rag.content.redaction import RedactionError
from autoplay_rag.content.times import own_time
from autoplay_rag.journal.finder import AsyncTimeline
from autoplay_rag.journal.timeline import KeptPayload, Wanted
from autoplay_rag.payloads import ActionsPayload, Payload, SlimAction
from autoplay_rag.sources.known import action_key
from autoplay_rag.sources.sessions import IDLE_GAP, SessionCutter, is_cut_name

__all__ = ["CatalogActions", "Origin"]

Origin: TypeAlias = Literal["named", "pulled"]
"""Whether an action came from a source that names sessions."""

_MOST_SESSIONS: Final = 50
_TOLERANCE: Final = 0.001
"""Times are compared to the millisecond."""


class _Found(NamedTuple):
    """What the catalog has in some time."""

    named: set[int]
    pulled: set[int]
    spans: list[tuple[float, float]]
    """The times of batches without a body."""


class CatalogActions:
    """Looks up one user's actions and sessions.

    Args:
        timeline: Reads the catalog.
        redact: Returns a payload as it would be kept: the catalog has nothing else.
    """

    def __init__(
        self, timeline: AsyncTimeline, redact: Callable[[ActionsPayload], Payload]
    ) -> None:
        self._timeline = timeline
        self._redact = redact

    async def sessions(
        self, payload: ActionsPayload, actions: Sequence[SlimAction]
    ) -> SessionCutter:
        """Return the sessions of the user around actions."""
        assert payload.user_id is not None
        cutter = SessionCutter(payload.product_id, payload.user_id)
        if (times := _times(actions)) is None:
            return cutter
        wanted = self._wanted(payload, times[0] - IDLE_GAP, times[1] + IDLE_GAP)
        spans = await self._timeline.spans(wanted, _MOST_SESSIONS)
        # Those of the product first: of two that are equally near, the first one is taken.
        for span in sorted(spans, key=lambda span: is_cut_name(span.session_id)):
            cutter.remember(*span)
        return cutter

    async def origins(
        self, payload: ActionsPayload, actions: Sequence[SlimAction]
    ) -> list[Origin | None]:
        """Return which kind of source brought each action; None if it is not in the catalog."""
        if (times := _times(actions)) is None:
            return [None] * len(actions)
        found = await self._find(payload, *times)
        return [self._origin(payload, action, found) for action in actions]

    async def _find(self, payload: ActionsPayload, first: float, last: float) -> _Found:
        wanted = self._wanted(payload, first - _TOLERANCE, last + _TOLERANCE)
        found = _Found(set(), set(), [])
        until, after = await self._timeline.last_seq(), None
        while page := await self._timeline.payloads(wanted, payload.kind, after, until):
            for kept in page:
                if kept.owner in (None, wanted.user_id):  # or another person in the same session
                    _add(found, payload, kept)
            after = page[-1].seq
        return found

    def _origin(self, payload: ActionsPayload, action: SlimAction, found: _Found) -> Origin | None:
        keys = _keys(payload, self._kept(payload, action))
        if keys and keys <= found.pulled:
            return "pulled"
        if keys and keys <= found.named:
            return "named"
        at = own_time(action.timestamp_start)
        # Without its body, a stored batch counts as all that happened in its time.
        return "named" if any(start <= at <= end for start, end in found.spans) else None

    def _wanted(self, payload: ActionsPayload, since: float, until: float) -> Wanted:
        user_id = people_of(self._redacted(payload, [])).user_id or payload.user_id
        return Wanted(
            user_id=storable(user_id or ""),
            product_id=storable(payload.product_id),
            since=since,
            until=until,
        )

    def _kept(self, payload: ActionsPayload, action: SlimAction) -> Sequence[SlimAction]:
        """An action as it would be kept."""
        kept = self._redacted(payload, [action])
        return kept.actions if isinstance(kept, ActionsPayload) else ()

    def _redacted(self, payload: ActionsPayload, actions: list[SlimAction]) -> Payload:
        part = msgspec.structs.replace(payload, actions=actions, count=len(actions))
        try:
            return self._redact(part)
        except RedactionError:
            return part  # accepting it says what is wrong


def _add(found: _Found, payload: ActionsPayload, kept: KeptPayload) -> None:
    if isinstance(kept.payload, ActionsPayload):
        for action in kept.payload.actions:
            cut = is_cut_name(action.session_id) or is_cut_name(kept.session_id)
            (found.pulled if cut else found.named).update(_keys(payload, [action]))
    elif kept.started and kept.ended:
        found.spans.append((kept.started - _TOLERANCE, kept.ended + _TOLERANCE))


def _keys(payload: ActionsPayload, actions: Sequence[SlimAction]) -> set[int]:
    # Under the name that the pulled ones have: a rule of the user's may change it.
    keys = (action_key(payload.product_id, payload.user_id or "", one) for one in actions)
    return {key for key in keys if key is not None}


def _times(actions: Sequence[SlimAction]) -> tuple[float, float] | None:
    """The first and the last known time; None if there is none."""
    known = [at for one in actions if (at := own_time(one.timestamp_start)) > 0]
    return (min(known), max(known)) if known else None

"""Which payloads of a stream make one session's document. Pure: time is an argument."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from autoplay_rag.content.identity import changes_hands, people_of
from autoplay_rag.loading.texts import Keyed
from autoplay_rag.payloads import Payload

__all__ = ["SessionGroups"]

_MAX_PAYLOADS = 500
"""The most payloads of one session: one that never rests is given in parts."""
_MAX_HELD = 10_000
"""The most payloads held in all; beyond, the session silent for longest is given."""

_Session = tuple[str, str]


@dataclass(slots=True)
class _Group:
    payloads: list[Keyed] = field(default_factory=list)
    user_id: str | None = None
    last: float = 0.0


class SessionGroups:
    """Gathers payloads by session until the session is summarised or idle.

    Args:
        idle: Seconds of silence after which a session is given.

    Example:
        >>> from autoplay_rag.payloads import ActionsPayload, SummaryPayload
        >>> groups = SessionGroups(idle=60)
        >>> first, last = ActionsPayload("acme", "s1"), SummaryPayload("acme", "s1")
        >>> groups.add(first, ("key1", first), now=0.0)
        []
        >>> [[key for key, _ in group] for group in groups.add(last, ("key2", last), now=5.0)]
        [['key1', 'key2']]
    """

    def __init__(self, idle: float) -> None:
        self._idle = idle
        self._held = 0
        # In the order of each session's last payload, which is that of becoming idle.
        self._groups: OrderedDict[_Session, _Group] = OrderedDict()

    def add(self, payload: Payload, kept: Keyed | None, now: float) -> list[list[Keyed]]:
        """Take in a payload.

        Args:
            payload: As it came: says which session it is of, and whether that is over.
            kept: What to give of it; None if it is not wanted.
            now: The time.

        Returns:
            The groups that are complete by it.
        """
        if not payload.session_id:
            return [[kept]] if kept else []
        session = (payload.product_id, payload.session_id)
        complete = []
        group = self._groups.pop(session, None) or _Group()
        user_id, _ = people_of(payload)
        if changes_hands(group.user_id, user_id):
            # Another person has the session now: nobody's document holds what another did.
            complete.append(self._given(group))
            group = _Group()
        group.user_id = user_id or group.user_id
        group.last = now
        if kept:
            group.payloads.append(kept)
            self._held += 1
        if payload.kind == "summary" or len(group.payloads) >= _MAX_PAYLOADS:
            complete.append(self._given(group))
        elif group.payloads:
            self._groups[session] = group
        if self._held > _MAX_HELD:
            complete.append(self._pop())
        return [payloads for payloads in complete if payloads]

    def due(self, now: float) -> list[list[Keyed]]:
        """The groups of sessions that have been idle for long enough."""
        found = []
        while (next_due := self.next_due()) is not None and next_due <= now:
            found.append(self._pop())
        return found

    def next_due(self) -> float | None:
        """When `due` will next have something; None while nothing is held."""
        for group in self._groups.values():
            return group.last + self._idle
        return None

    def rest(self) -> list[list[Keyed]]:
        """All groups there are, at the end."""
        found = []
        while self._groups:
            found.append(self._pop())
        return found

    def _pop(self) -> list[Keyed]:
        _, group = self._groups.popitem(last=False)
        return self._given(group)

    def _given(self, group: _Group) -> list[Keyed]:
        self._held -= len(group.payloads)
        return group.payloads

"""Which payloads of a stream make one session's document. Pure: time is an argument."""

from __future__ import annotations

from collections import OrderedDict

from autoplay_rag.loading.texts import Keyed
from autoplay_rag.payloads import Payload

__all__ = ["SessionGroups"]

_MAX_PAYLOADS = 500
"""The most payloads of one session: one that never rests is given in parts."""
_MAX_HELD = 10_000
"""The most payloads held in all; beyond, the session silent for longest is given."""

_Session = tuple[str, str]


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
        self._groups: OrderedDict[_Session, tuple[list[Keyed], float]] = OrderedDict()

    def add(self, payload: Payload, kept: Keyed | None, now: float) -> list[list[Keyed]]:
        """Take in a payload.

        Args:
            payload: As it came: says which session it is of, and whether that is over.
            kept: What to give of it; None if it is not wanted.
            now: The time.

        Returns:
            The groups that are complete by it.
        """
        if payload.session_id is None:
            return [[kept]] if kept else []
        session = (payload.product_id, payload.session_id)
        group, _ = self._groups.pop(session, ([], now))
        if kept:
            group.append(kept)
            self._held += 1
        if group and (payload.kind == "summary" or len(group) >= _MAX_PAYLOADS):
            self._held -= len(group)
            return [group]
        if group:
            self._groups[session] = (group, now)
        return [self._pop()] if self._held > _MAX_HELD else []

    def due(self, now: float) -> list[list[Keyed]]:
        """The groups of sessions that have been idle for long enough."""
        found = []
        while (next_due := self.next_due()) is not None and next_due <= now:
            found.append(self._pop())
        return found

    def next_due(self) -> float | None:
        """When `due` will next have something; None while nothing is held."""
        for _, last in self._groups.values():
            return last + self._idle
        return None

    def rest(self) -> list[list[Keyed]]:
        """All groups there are, at the end."""
        found = []
        while self._groups:
            found.append(self._pop())
        return found

    def _pop(self) -> list[Keyed]:
        _, (group, _) = self._groups.popitem(last=False)
        self._held -= len(group)
        return group

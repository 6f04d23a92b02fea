"""Groups the payloads of a stream into one document per session. Pure: time is an argument."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from dataclasses import dataclass, field

from autoplay_rag.content.identity import changes_hands, people_of
from autoplay_rag.loading.texts import Keyed
from autoplay_rag.payloads import Payload

__all__ = ["SessionGroups"]

_MAX_PAYLOADS = 500
"""The most payloads in one group. A session that is never idle is emitted in parts."""
_MAX_HELD = 10_000
"""The most payloads held in total. Beyond it, the session idle for longest is emitted."""

_Session = tuple[str, str]


@dataclass(slots=True)
class _Group:
    payloads: list[Keyed] = field(default_factory=list)
    user_id: str | None = None
    last: float = 0.0
    queued: float | None = None  # the `last` of its entry in the queue


class SessionGroups:
    """Gathers payloads by session until the session is summarised or idle.

    A session without any known time is never idle: if it is not summarised, `rest` returns it.

    Args:
        idle: Seconds without a payload after which a session is emitted.

    Example:
        >>> from autoplay_rag.payloads import ActionsPayload, SummaryPayload
        >>> groups = SessionGroups(idle=60)
        >>> first, last = ActionsPayload("acme", "s1"), SummaryPayload("acme", "s1")
        >>> groups.add(first, ("key1", first), at=0.0)
        []
        >>> [[key for key, _ in group] for group in groups.add(last, ("key2", last), at=5.0)]
        [['key1', 'key2']]
    """

    def __init__(self, idle: float) -> None:
        self._idle = idle
        self._held = 0
        # In the order of each session's last payload.
        self._groups: OrderedDict[_Session, _Group] = OrderedDict()
        # In the order of becoming idle, which differs from the order above if clocks differ. One
        # entry per session; its time may be outdated.
        self._queue: list[tuple[float, int, _Session, _Group]] = []
        self._numbers = 0

    def add(self, payload: Payload, kept: Keyed | None, at: float) -> list[list[Keyed]]:
        """Add a payload.

        A gap of `idle` seconds or more between a session's own times starts a new group. So the
        grouping of a session does not depend on the times of other sessions.

        Args:
            payload: The original payload. It names the session; a summary ends the session.
            kept: The form of it to emit; None if it is not wanted.
            at: The payload's time; 0 if unknown.

        Returns:
            The groups that this payload completes.
        """
        if not payload.session_id:
            return [[kept]] if kept else []
        session = (payload.product_id, payload.session_id)
        complete = []
        group = self._groups.pop(session, None) or _Group()
        user_id = people_of(payload).user_id
        resumes = bool(group.last) and at - group.last >= self._idle
        # Another person may have the session now. One document must not mix two people.
        if resumes or changes_hands(group.user_id, user_id):
            complete.append(self._given(group))
            group = _Group()
        group.user_id = user_id or group.user_id
        group.last = at or group.last
        if kept:
            group.payloads.append(kept)
            self._held += 1
        if payload.kind == "summary" or len(group.payloads) >= _MAX_PAYLOADS:
            complete.append(self._given(group))
        elif group.payloads:
            self._groups[session] = group
            if group.last:  # otherwise nothing shows that it is idle
                self._enqueue(session, group)
        if self._held > _MAX_HELD:
            complete.append(self._pop())
        return [payloads for payloads in complete if payloads]

    def due(self, now: float) -> list[list[Keyed]]:
        """Return the groups of sessions that have been idle for long enough."""
        found = []
        while (next_due := self.next_due()) is not None and next_due <= now:
            _, _, session, group = heapq.heappop(self._queue)
            del self._groups[session]
            found.append(self._given(group))
        return found

    def next_due(self) -> float | None:
        """Return when `due` next returns a group; None if no payload with a time is held."""
        while self._queue:
            at, _, session, group = self._queue[0]
            if self._groups.get(session) is not group:
                heapq.heappop(self._queue)  # already emitted
            elif at != group.last:
                heapq.heappop(self._queue)
                group.queued = None
                self._enqueue(session, group)
            else:
                return at + self._idle
        return None

    def rest(self) -> list[list[Keyed]]:
        """Return all remaining groups, at the end of the stream."""
        found = []
        while self._groups:
            found.append(self._pop())
        self._queue.clear()
        return found

    def _pop(self) -> list[Keyed]:
        _, group = self._groups.popitem(last=False)
        return self._given(group)

    def _enqueue(self, session: _Session, group: _Group) -> None:
        """Queue a group, unless it has an entry that is not later: `next_due` corrects that one."""
        if group.queued is None or group.last < group.queued:
            group.queued = group.last
            self._numbers += 1
            heapq.heappush(self._queue, (group.last, self._numbers, session, group))

    def _given(self, group: _Group) -> list[Keyed]:
        self._held -= len(group.payloads)
        # The queue may hold the group until it is due: release its payloads now.
        payloads, group.payloads = group.payloads, []
        return payloads

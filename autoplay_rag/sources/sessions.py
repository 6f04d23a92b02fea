"""Cuts the actions of one person into sessions where a source names none. Pure.

Analytics tools end a session after 30 minutes without an action, and after 24 hours. So does this
rule. A session is named after its product, its person and the half hour of its first action. So the
same actions get the same name after a restart, in another process, and from another split of the
batches, as long as the first action is among them or the session is remembered (see
`SessionCutter.remember`).

Two sessions of a person cannot begin in the same half hour, so the name is unique. And the sessions
of a person around a moment have few possible names (`cut_names`): a journal is asked for these.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

import msgspec

from autoplay_rag.content.times import own_time
from autoplay_rag.payloads import ActionsPayload

__all__ = [
    "CUT_PREFIX",
    "IDLE_GAP",
    "LONGEST",
    "CutSession",
    "SessionCutter",
    "cut_name",
    "cut_names",
    "is_cut_name",
    "is_pulled",
]

IDLE_GAP: Final = 30 * 60.0
"""Seconds without an action after which a session has ended."""
LONGEST: Final = 24 * 3600.0
"""Seconds from the first to the last action of a session, at most."""
CUT_PREFIX: Final = "cut_"
"""The beginning of the names of sessions that were cut here."""

_encode = msgspec.msgpack.Encoder().encode


def cut_name(product_id: str, user_id: str, started: float) -> str:
    """Return the name of a session: the same for the same product, person and first action.

    Args:
        product_id: The product.
        user_id: The person. The name does not show it.
        started: The time of the first action, in Unix seconds or milliseconds.

    Example:
        >>> cut_name("acme", "u1", 1712345678.5) == cut_name("acme", "u1", 1712345678500.0)
        True
    """
    return _name(_person(product_id, user_id), own_time(started))


def cut_names(product_id: str, user_id: str, at: float) -> list[str]:
    """Return the names that the sessions of a person around a moment can have.

    Args:
        product_id: The product.
        user_id: The person.
        at: The moment, in Unix seconds.

    Returns:
        The names of all sessions with an action at most `IDLE_GAP` from the moment, among others.

    Example:
        >>> cut_name("acme", "u1", 90_000.0) in cut_names("acme", "u1", 91_000.0)
        True
    """
    person = _person(product_id, user_id)
    steps = round(LONGEST / IDLE_GAP) + 1
    return [_name(person, at + step * IDLE_GAP) for step in range(-steps, steps + 1)]


def is_cut_name(session_id: str | None) -> bool:
    """Whether a session was named here, because its source names none."""
    return session_id is not None and session_id.startswith(CUT_PREFIX)


def is_pulled(payload: ActionsPayload) -> bool:
    """Whether a source that names no sessions brought a payload.

    In a session of the product, its actions keep the name that was cut.

    Example:
        >>> is_pulled(ActionsPayload("acme", "cut_0a1b_2")), is_pulled(ActionsPayload("acme", "s1"))
        (True, False)
    """
    return is_cut_name(payload.session_id) or any(
        is_cut_name(action.session_id) for action in payload.actions
    )


def _person(product_id: str, user_id: str) -> str:
    return blake2b(_encode((product_id, user_id)), digest_size=8).hexdigest()


def _name(person: str, started: float) -> str:
    return f"{CUT_PREFIX}{person}_{int(started // IDLE_GAP)}"


class CutSession(msgspec.Struct, gc=False):
    """A session with the times of its actions so far.

    Attributes:
        name: Its id.
        first: The time of its first action, in Unix seconds.
        last: The time of its last action.
    """

    name: str
    first: float
    last: float

    def distance(self, at: float) -> float:
        """Seconds between a time and the session; 0 if it lies inside."""
        return max(self.first - at, at - self.last, 0.0)

    def may_have(self, at: float, gap: float) -> bool:
        """Whether an action of this time belongs to the session."""
        distance = self.distance(at)
        if not distance:
            return True
        return distance <= gap and max(self.last, at) - min(self.first, at) <= LONGEST


class SessionCutter:
    """Gives the actions of one person their sessions.

    An action belongs to the session it falls into by its time, or to the nearest one that is at most
    `gap` seconds away and does not become longer than `LONGEST`. Otherwise it begins a session. Give the actions of one answer in the order of
    their times. An action without a time belongs to the session of the action before it.

    Args:
        product_id: The product.
        user_id: The person.
        gap: Seconds without an action after which a session has ended; at least `IDLE_GAP`.
        most: The most sessions remembered. The oldest are forgotten first.

    Example:
        >>> cutter = SessionCutter("acme", "u1")
        >>> morning, noon = cutter.session_at(1000.0), cutter.session_at(9000.0)
        >>> cutter.session_at(1060.0) == morning, noon == morning
        (True, False)
    """

    __slots__ = ("_gap", "_latest", "_most", "_product", "_sessions", "_user")

    def __init__(
        self, product_id: str, user_id: str, *, gap: float = IDLE_GAP, most: int = 100
    ) -> None:
        self._product = product_id
        self._user = user_id
        self._gap = gap
        self._most = most
        self._sessions: list[CutSession] = []
        self._latest: CutSession | None = None

    def remember(self, name: str, first: float, last: float) -> None:
        """Add a session that is known already, for example from an earlier run or another source.

        Args:
            name: Its id.
            first: The time of its first action.
            last: The time of its last action.
        """
        first, last = own_time(first), own_time(last)
        for one in self._sessions:
            if one.name == name:
                one.first, one.last = min(one.first, first), max(one.last, last)
                return
        self._add(CutSession(name, first, last))

    def session_at(self, at: float) -> str:
        """Return the id of the session that an action belongs to.

        Args:
            at: The time of the action, in Unix seconds or milliseconds; 0 if it is unknown.
        """
        at = own_time(at)
        if not at and self._latest is not None:
            return self._latest.name
        found = [one for one in self._sessions if one.may_have(at, self._gap)]
        near = min(found, key=lambda one: one.distance(at), default=None)
        if near is None:
            near = self._add(CutSession(cut_name(self._product, self._user, at), at, at))
        near.first, near.last = min(near.first, at), max(near.last, at)
        self._latest = near
        return near.name

    def _add(self, session: CutSession) -> CutSession:
        self._sessions.append(session)
        if len(self._sessions) > self._most:
            self._sessions.remove(min(self._sessions, key=lambda one: one.last))
        return session

"""What is known of one pulled user between two pulls, and what of an answer is new. Time is an argument."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from autoplay_rag.content.times import own_time
from autoplay_rag.payloads import ActionsPayload, SlimAction
from autoplay_rag.sources.activity_endpoint import Activity, Validators
from autoplay_rag.sources.known import SeenActions, action_key
from autoplay_rag.sources.sessions import SessionCutter

__all__ = ["PulledUser", "Taken"]


class Taken(msgspec.Struct, frozen=True, gc=False):
    """What goes on of one answer.

    Attributes:
        payloads: The new actions, one payload for each session, the oldest first.
        keys: The keys of these actions.
        waiting: New actions that are too young.
        validators: The version of the answer.
        is_full: Whether the answer was full and nothing in it was known: earlier actions may be
            missing.
    """

    payloads: list[ActionsPayload]
    keys: list[int]
    waiting: list[SlimAction]
    validators: Validators
    is_full: bool


class PulledUser:
    """One user: the actions that went on already, the sessions, and the version of the answer.

    Args:
        product_id: The product.
        user_id: The user.

    Attributes:
        validators: The version of the last answer whose actions all went on.
    """

    __slots__ = ("_cutter", "_lock", "_product", "_seen", "_user", "_waiting", "validators")

    def __init__(self, product_id: str, user_id: str) -> None:
        self._product = product_id
        self._user = user_id
        self._seen = SeenActions()
        self._cutter = SessionCutter(product_id, user_id)
        self._waiting: list[SlimAction] = []
        self._lock: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None
        self.validators = Validators()

    @property
    def lock(self) -> asyncio.Lock:
        """Held from `take` to `confirm`, so that nothing goes on twice. One for each event loop."""
        loop = asyncio.get_running_loop()
        if self._lock is None or self._lock[0] is not loop:
            self._lock = (loop, asyncio.Lock())
        return self._lock[1]

    def all(self, activity: Activity, *, now: float) -> list[ActionsPayload]:
        """Return all actions of an answer as payloads, one for each session."""
        return self._payloads(_in_order(activity.actions), activity.as_of or now)

    def take(self, activity: Activity | None, *, now: float, hold_back: float, most: int) -> Taken:
        """Return what has to go on. It is known only once it was confirmed.

        Args:
            activity: The answer; None if it is unchanged.
            now: The time, in Unix seconds.
            hold_back: Actions younger than this many seconds wait for a later call.
            most: The number of actions in a full answer.
        """
        actions = self._waiting if activity is None else activity.actions
        as_of = (activity.as_of if activity is not None else 0.0) or now
        keyed = [(self._key(action), action) for action in _in_order(actions)]
        new = [(key, action) for key, action in keyed if key not in self._seen]
        # An action far in the future has a wrong clock: waiting for its time would lose it.
        ripe: list[tuple[int, SlimAction]] = []
        waiting: list[tuple[int, SlimAction]] = []
        for key, action in new:
            age = as_of - own_time(action.timestamp_start)
            (waiting if abs(age) < hold_back else ripe).append((key, action))
        return Taken(
            payloads=self._payloads([one for _, one in ripe], as_of),
            keys=[key for key, _ in ripe],
            waiting=[action for _, action in waiting],
            validators=self.validators if activity is None else activity.validators,
            is_full=activity is not None and most <= len(actions) == len(new),
        )

    def confirm(self, taken: Taken) -> None:
        """Note that what was taken went on."""
        self._seen.add(taken.keys)
        self._waiting = taken.waiting
        self.validators = taken.validators

    def _key(self, action: SlimAction) -> int:
        key = action_key(self._product, self._user, action)
        # Without a time, equal actions of one user count as one: else each pull would repeat them.
        return key if key is not None else hash((action.type, action.title, action.description))

    def _payloads(self, actions: Sequence[SlimAction], as_of: float) -> list[ActionsPayload]:
        sessions: dict[str, list[SlimAction]] = {}
        for action in actions:
            name = self._cutter.session_at(action.timestamp_start)
            sessions.setdefault(name, []).append(action)
        return [
            ActionsPayload(self._product, name, self._user, actions=own, forwarded_at=as_of)
            for name, own in sessions.items()
        ]


def _in_order(actions: Sequence[SlimAction]) -> list[SlimAction]:
    return sorted(actions, key=lambda action: own_time(action.timestamp_start))

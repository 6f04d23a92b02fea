"""Accepted payloads as they come in, for subscribers: bounded for each, with a resume.

A subscriber that reads slowly loses its oldest events, and is told how many. It never slows the
pipeline or another subscriber. All methods are called on the pipeline's event loop.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self

from autoplay_rag._checks import check_above
from autoplay_rag.content.identity import people_of
from autoplay_rag.payloads import ActionsPayload, Payload

__all__ = ["Feed", "FeedEvent", "Subscription"]

_SEVERAL: Final = object()
"""Several people used the session."""
_SESSIONS: Final = 20_000
"""The most sessions whose person is remembered."""


@dataclass(slots=True, eq=False)
class FeedEvent:
    """One accepted payload.

    Attributes:
        seq: Its sequence number in the journal. Later payloads have higher numbers, also after a
            restart.
        at: When it was accepted, in Unix seconds.
        lane: Its session's lane.
        payload: The payload, as the journal keeps it.
        user_id: The person it belongs to: the one it names, or else the only one known to have used
            its session. None if unknown.
        size: The size of its JSON in bytes.
        encoded: Room for what a reader makes of it once for all subscribers. It is forgotten with the
            event.
    """

    seq: int
    at: float
    lane: int
    payload: Payload
    user_id: str | None
    size: int
    encoded: bytes | None = None


class Subscription:
    """The events of one subscriber that wait to be read.

    Args:
        feed: Where it comes from.
        wanted: Selects the events.
        limit: The most events that wait. The oldest are dropped.
        max_bytes: The most bytes of events that wait, by the size of their JSON.

    Attributes:
        closed: Whether no more events come.
    """

    def __init__(
        self, feed: Feed, wanted: Callable[[FeedEvent], bool], limit: int, max_bytes: int
    ) -> None:
        check_above("limit", limit, whole=True)
        check_above("max_bytes", max_bytes)
        self.closed = False
        self._feed = feed
        self._wanted = wanted
        self._limit = limit
        self._max_bytes = max_bytes
        self._half = limit / 2
        self._half_bytes = max_bytes / 2
        self._waiting: deque[FeedEvent] = deque()
        self._bytes = 0
        self._missed = 0
        self._changed = asyncio.Event()
        self._filling = asyncio.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the subscription. What waits can still be taken."""
        self._feed.leave(self)
        self.closed = True
        self._changed.set()
        self._filling.set()

    async def wait(self) -> None:
        """Wait until there is something to take, or the subscription is closed."""
        await self._changed.wait()

    async def gather(self, seconds: float) -> None:
        """Let events gather for so long, or until half of the most that may wait do."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._filling.wait()

    @property
    def waiting(self) -> int:
        """The number of events that wait."""
        return len(self._waiting)

    def take(self, most_bytes: float = math.inf) -> tuple[int, list[FeedEvent]]:
        """Return how many events were dropped since the last call, and those that wait.

        Args:
            most_bytes: Leave events for the next call once these have so many bytes of JSON. One event
                is returned, however large.
        """
        missed, self._missed = self._missed, 0
        events: list[FeedEvent] = []
        size = 0
        while self._waiting and (not events or size + self._waiting[0].size <= most_bytes):
            events.append(self._waiting.popleft())
            size += events[-1].size
        self._bytes -= size
        if not self.closed:
            if not self._waiting:
                self._changed.clear()
            if len(self._waiting) < self._half and self._bytes < self._half_bytes:
                self._filling.clear()
        return missed, events

    def put(self, event: FeedEvent) -> None:
        """Add an event, if it is wanted."""
        if not self._wanted(event):
            return
        # Called for each event and each subscriber.
        waiting = self._waiting
        waiting.append(event)
        self._bytes += event.size
        if len(waiting) >= self._half or self._bytes >= self._half_bytes:
            while len(waiting) > self._limit or (
                self._bytes > self._max_bytes and len(waiting) > 1
            ):
                self._bytes -= waiting.popleft().size
                self._missed += 1
            if len(waiting) >= self._half or self._bytes >= self._half_bytes:
                self._filling.set()
        if len(waiting) == 1:
            self._changed.set()

    def drop(self, forgotten: Callable[[FeedEvent], bool]) -> None:
        """Remove forgotten events that wait."""
        kept = [event for event in self._waiting if not forgotten(event)]
        self._waiting = deque(kept)
        self._bytes = sum(event.size for event in kept)


class Feed:
    """Passes accepted payloads to subscribers, and keeps the latest for those that come back.

    Args:
        kept: The most events kept for a resume.
        kept_bytes: The most bytes of events kept, by the size of their JSON.
    """

    def __init__(self, *, kept: int = 2_000, kept_bytes: int = 8 * 2**20) -> None:
        check_above("kept", kept, whole=True)
        check_above("kept_bytes", kept_bytes)
        self._most = kept
        self._most_bytes = kept_bytes
        self._kept: deque[FeedEvent] = deque()
        self._bytes = 0
        self._complete_after = 0
        self._last = 0
        self._subscriptions: dict[Subscription, None] = {}
        self._people: OrderedDict[int, object] = OrderedDict()

    def __len__(self) -> int:
        """The number of subscribers."""
        return len(self._subscriptions)

    def __repr__(self) -> str:
        return f"<Feed of {len(self)} subscribers>"

    def begin(self, seq: int) -> None:
        """Start after a sequence number. Nothing before it is kept.

        Args:
            seq: The last sequence number that was given.
        """
        self._kept.clear()
        self._bytes = 0
        self._people.clear()
        self._complete_after = self._last = seq

    def know(self, lane: int, payload: Payload) -> None:
        """Note who a session belongs to, from a payload that came before."""
        self._owner(lane, payload)

    def publish(self, seq: int, at: float, lane: int, payload: Payload, size: int) -> None:
        """Pass on a payload that was just accepted."""
        event = FeedEvent(seq, at, lane, payload, self._owner(lane, payload), size)
        self._last = max(self._last, seq)
        self._kept.append(event)
        self._bytes += size
        while len(self._kept) > self._most or self._bytes > self._most_bytes:
            oldest = self._kept.popleft()
            self._bytes -= oldest.size
            self._complete_after = oldest.seq
        for subscription in self._subscriptions:
            subscription.put(event)

    def subscribe(
        self,
        wanted: Callable[[FeedEvent], bool] = lambda _: True,
        *,
        after: int | None = None,
        limit: int = 256,
        max_bytes: int = 2**20,
    ) -> Subscription:
        """Subscribe to what comes in from now on. Close the subscription in the end.

        Args:
            wanted: Selects the events.
            after: Also return the kept events after this sequence number; see `keeps`.
            limit: The most events that wait for the subscriber.
            max_bytes: The most bytes of events that wait.
        """
        subscription = Subscription(self, wanted, limit, max_bytes)
        if after is not None:
            for event in self._kept:
                if event.seq > after:
                    subscription.put(event)
        self._subscriptions[subscription] = None
        return subscription

    def keeps(self, after: int) -> bool:
        """Whether all events after a sequence number are kept."""
        return self._complete_after <= after <= self._last

    def leave(self, subscription: Subscription) -> None:
        """Pass nothing more to a subscription."""
        self._subscriptions.pop(subscription, None)

    @property
    def kept(self) -> list[int]:
        """The sequence numbers of the events that are kept."""
        return [event.seq for event in self._kept]

    def retain(self, seqs: Collection[int]) -> None:
        """Drop the events that have none of these numbers, and forget whose the sessions are."""

        def forgotten(event: FeedEvent) -> bool:
            return event.seq not in seqs

        self._people.clear()
        self._drop(forgotten)

    def forget(self, lanes: Collection[int], *, user_id: str | None = None) -> None:
        """Drop the events of forgotten sessions, except those of other people.

        Args:
            lanes: The lanes of the sessions.
            user_id: The person to forget; None for any.
        """

        def forgotten(event: FeedEvent) -> bool:
            others = user_id is not None and event.user_id not in (None, user_id)
            return event.lane in lanes and not others

        for lane in lanes:
            if user_id is None or self._people.get(lane) == user_id:
                self._people.pop(lane, None)
        self._drop(forgotten)

    def _drop(self, forgotten: Callable[[FeedEvent], bool]) -> None:
        kept = [event for event in self._kept if not forgotten(event)]
        self._kept = deque(kept)
        self._bytes = sum(event.size for event in kept)
        for subscription in self._subscriptions:
            subscription.drop(forgotten)

    def _owner(self, lane: int, payload: Payload) -> str | None:
        named = dict.fromkeys(_named(payload))
        known = self._people.get(lane)
        person = people_of(payload).user_id
        if len(named) > 1 or (named and known not in (None, *named)):
            known = _SEVERAL
        elif person is not None and known is None:
            known = person
        if known is not None and payload.session_id:
            self._people[lane] = known
            self._people.move_to_end(lane)
            if len(self._people) > _SESSIONS:
                self._people.popitem(last=False)
        if person is not None:
            return person
        return known if isinstance(known, str) else None


def _named(payload: Payload) -> Iterator[str]:
    """All people that a payload names."""
    if (person := people_of(payload).user_id) is not None:
        yield person
    if isinstance(payload, ActionsPayload):
        yield from (action.user_id for action in payload.actions if action.user_id)

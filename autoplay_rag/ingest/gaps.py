"""Fills the gaps of a stream from a pull source: a stream replays nothing after a disconnect."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

import msgspec

from autoplay_rag._describe import describe
from autoplay_rag.content.times import own_time
from autoplay_rag.errors import AutoplayError, JournalError, TransientError
from autoplay_rag.ingest.pulled import PulledActions
from autoplay_rag.journal.finder import AsyncTimeline
from autoplay_rag.payloads import ActionsPayload
from autoplay_rag.sources.activity_endpoint import MOST_ACTIONS

__all__ = ["GapFiller", "PullSource"]

_log = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 0.5
_SETTLE_SECONDS: Final = 2.0
"""Seconds after a connect until a gap is filled, so that what the stream brings first comes first."""
_DAY: Final = 86_400.0
_AT_ONCE: Final = 8
_MOST_USERS: Final = 20_000
_LEAST_PAUSE: Final = 0.5


class PullSource(Protocol):
    """A source that can be asked for one user."""

    product_id: str

    @property
    def pause(self) -> float:
        """Seconds until the next request may be sent."""

    async def pull(self, user_id: str) -> list[ActionsPayload]:
        """Return all that it has of a user, one payload for each session."""


@dataclass(slots=True)
class _Watched:
    """What is known of a client of a stream.

    Attributes:
        connections: Its connections so far.
        alive_at: When the stream was last seen working, in Unix seconds; None before the first
            connection.
    """

    connections: int = 0
    alive_at: float | None = None


@dataclass(slots=True)
class _Gap:
    """A time in which a stream was not connected.

    Attributes:
        product_id: The product.
        since: When it began, in Unix seconds.
        until: When it ended.
        due: When it may be filled, on the monotonic clock.
        users: Whom to ask for; None for everybody who was seen before.
    """

    product_id: str
    since: float
    until: float
    due: float
    users: Sequence[str] | None = None


@dataclass(slots=True)
class _Filled:
    recovered: int = 0
    beyond: set[str] = field(default_factory=set)
    held: list[str] = field(default_factory=list)
    """Users with actions that are too young: the stream may still bring them."""


class GapFiller:
    """After each connect of a stream, asks the pull source of its product what was missed.

    It asks for everybody with an action in the day before the gap. A start is a connect too: what
    happened since the last payload of an earlier run is filled.

    Args:
        pulled: Takes in what was missed.
        timeline: Tells who was seen.
        streams: Returns the clients of streams, each with its product.
        source_of: Returns the pull source of a product; None if there is none.

    Attributes:
        recovered: The number of actions taken in from gaps.
        beyond: The number of users with as many actions in a gap as the pull source keeps, or more,
            summed over the gaps.
    """

    def __init__(
        self,
        pulled: PulledActions,
        timeline: AsyncTimeline,
        streams: Callable[[], Iterable[tuple[Any, str]]],
        source_of: Callable[[str], PullSource | None],
    ) -> None:
        self.recovered = 0
        self.beyond = 0
        self._pulled = pulled
        self._timeline = timeline
        self._streams = streams
        self._source_of = source_of
        self._clients: dict[int, _Watched] = {}
        self._gaps: dict[str, _Gap] = {}
        self._before = time.time()
        self._problem = ""

    @property
    def problems(self) -> list[str]:
        """Why a gap is not filled yet."""
        return [self._problem] if self._problem else []

    async def run(self) -> None:
        """Watch the streams and fill their gaps, until cancelled."""
        self._before = await self._timeline.last_arrival() or self._before
        async with asyncio.TaskGroup() as group:
            group.create_task(self._fill_gaps())
            while True:
                self._look()
                await asyncio.sleep(_LOOK_SECONDS)

    def _look(self) -> None:
        """Note the gaps that have ended."""
        found = list(self._streams())
        for number in self._clients.keys() - {id(client) for client, _ in found}:
            del self._clients[number]
        for client, product_id in found:
            with suppress(Exception):  # other people's code
                self._look_at(client, product_id)

    def _look_at(self, client: Any, product_id: str) -> None:
        watched = self._clients.setdefault(id(client), _Watched())
        counts = getattr(client, "counts", None)
        connections = getattr(counts, "connections", 0)
        if connections > watched.connections:
            self._note(product_id, watched.alive_at or self._before)
            watched.connections = connections
        if getattr(client, "state", None) == "connected":
            # A half-open connection looks connected: what came last is nearer to the truth.
            came = getattr(client, "last_event_at", None)
            watched.alive_at = came if isinstance(came, float) else time.time()

    def _note(self, product_id: str, since: float) -> None:
        if self._source_of(product_id) is None:
            return
        known = self._gaps.get(product_id)
        since = since if known is None else min(since, known.since)
        due = time.monotonic() + _SETTLE_SECONDS
        self._gaps[product_id] = _Gap(product_id, since, time.time(), due)

    async def _fill_gaps(self) -> None:
        while True:
            now = time.monotonic()
            for gap in [gap for gap in self._gaps.values() if gap.due <= now]:
                try:
                    held = await self._fill(gap)
                except JournalError as error:
                    _log.error("a gap cannot be filled now; trying again: %s", error)
                    continue
                except AutoplayError as error:
                    held = []
                    self._problem = f"the gap of a stream cannot be filled: {describe(error)}"
                    _log.error("%s", self._problem)
                if self._gaps.get(gap.product_id) is not gap:
                    continue  # the next gap began meanwhile, and includes this one
                del self._gaps[gap.product_id]
                if held:
                    due = time.monotonic() + self._pulled.hold
                    self._gaps[gap.product_id] = replace(gap, due=due, users=held)
            await asyncio.sleep(_LOOK_SECONDS)

    async def _fill(self, gap: _Gap) -> list[str]:
        """Fill one gap.

        Returns:
            The users to ask for again, because they have actions that are too young.

        Raises:
            ConnectorError: If the pull source refuses.
            JournalError: If the catalog cannot be read.
        """
        users = gap.users
        if users is None:
            since = gap.since - _DAY
            users = await self._timeline.people_since(gap.product_id, since, _MOST_USERS + 1)
            if len(users) > _MOST_USERS:
                _log.warning(
                    "more than %d users were seen before a gap: only those seen last are asked for",
                    _MOST_USERS,
                )
        filled = _Filled()
        waiting = deque(users[:_MOST_USERS])
        failure: Exception | None = None
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(_AT_ONCE, len(waiting))):
                    group.create_task(self._ask_each(gap, waiting, filled))
        except ExceptionGroup as errors:
            failure = errors.exceptions[0]
        self._say(gap, filled, whole=failure is None)
        if failure is not None:
            raise failure
        return filled.held

    async def _ask_each(self, gap: _Gap, waiting: deque[str], filled: _Filled) -> None:
        while waiting:
            user_id = waiting.popleft()
            source = self._source_of(gap.product_id)
            payloads: list[ActionsPayload] | None = None
            while payloads is None:
                if source is None:
                    return  # it was detached
                try:
                    payloads = await source.pull(user_id)
                    self._problem = ""
                except TransientError as error:
                    self._problem = f"the gap of a stream is not filled yet: {describe(error)}"
                    await asyncio.sleep(max(source.pause, _LEAST_PAUSE))
                    source = self._source_of(gap.product_id)
            await self._take(gap, user_id, payloads, filled)

    async def _take(
        self, gap: _Gap, user_id: str, payloads: Sequence[ActionsPayload], filled: _Filled
    ) -> None:
        total, first, recovered = 0, float("inf"), 0
        for payload in payloads:
            times = [own_time(action.timestamp_start) for action in payload.actions]
            total += len(times)
            first = min(first, *times)
            ripe = [
                action
                for at, action in zip(times, payload.actions, strict=True)
                if not 0.0 <= payload.forwarded_at - at < self._pulled.hold
            ]
            if len(ripe) < len(times) and user_id not in filled.held:
                filled.held.append(user_id)
            recovered += await self._pulled.take(
                msgspec.structs.replace(payload, actions=ripe, count=len(ripe))
            )
        filled.recovered += recovered
        self.recovered += recovered
        if total >= MOST_ACTIONS and recovered and first > gap.since:
            filled.beyond.add(user_id)

    def _say(self, gap: _Gap, filled: _Filled, *, whole: bool) -> None:
        """Say what became of a gap."""
        lasted = gap.until - gap.since
        self.beyond += len(filled.beyond)
        if filled.recovered or not whole:
            _log.warning(
                "a stream was not connected for %.0f s: %d actions were pulled%s",
                lasted,
                filled.recovered,
                "" if whole else ", then pulling failed",
            )
        if filled.beyond:
            _log.warning(
                "%d users did %d actions or more while a stream was not connected: earlier ones may be "
                "missing",
                len(filled.beyond),
                MOST_ACTIONS,
            )
        if lasted > _DAY and gap.users is None:
            _log.warning(
                "a stream was not connected for %.1f hours: what happened more than 24 hours ago is "
                "missing",
                lasted / 3600,
            )

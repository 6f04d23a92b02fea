"""When a session's payloads become a batch. Pure: time is an argument.

A session's first payload opens a window. When the window closes, the payloads gathered so far
form one batch. A session has at most one batch in flight. Payloads that arrive meanwhile open the
next window; if that closes first, the next batch waits. Sessions are independent of each other, but
their windows close on a common grid, so that chunks of many sessions share an embedding request.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["Batcher", "Gathered"]

_MAX_PAYLOADS = 512
"""The most payloads in one batch. A longer backlog of a session takes several, in order."""
_FINEST_WINDOW = 0.02


@dataclass(slots=True)
class _Lane:
    seqs: list[int] = field(default_factory=list)
    due: float = math.inf
    opened: float = math.inf
    under_way: bool = False
    going_since: float = math.inf


@dataclass(frozen=True, slots=True)
class Gathered:
    """One batch of a session.

    Attributes:
        lane: The session's lane.
        seqs: Its payloads' sequence numbers, in order.
    """

    lane: int
    seqs: list[int]


class Batcher:
    """Gathers sequence numbers by lane.

    Args:
        window: Seconds from the first payload of a batch until the batch is due.

    Example:
        >>> batcher = Batcher(window=10.0)
        >>> batcher.add(lane=7, seq=1, now=100.0)
        >>> batcher.add(lane=7, seq=2, now=104.0)
        >>> batcher.take(now=104.0)
        []
        >>> batcher.take(now=111.0)
        [Gathered(lane=7, seqs=[1, 2])]
    """

    def __init__(self, window: float) -> None:
        self._window = window
        # On a finer grid no windows would close together.
        self._grid = min(window / 20, 0.5) if window >= _FINEST_WINDOW else 0.0
        self._lanes: dict[int, _Lane] = {}
        # (due, order, lane); an entry whose lane has another due by now is skipped.
        self._heap: list[tuple[float, int, int]] = []
        self._order = 0

    def __len__(self) -> int:
        """The number of lanes with payloads that wait or are in flight."""
        return len(self._lanes)

    def add(self, lane: int, seq: int, now: float) -> None:
        """Put a payload into its lane. A lane below 0 holds one payload and has no window."""
        found = self._lanes.get(lane)
        if found is None:
            found = self._lanes[lane] = _Lane()
        if not found.seqs:
            found.opened = now
            self._schedule(lane, found, self._on_grid(now if lane < 0 else now + self._window))
        found.seqs.append(seq)

    def hold(self, lane: int, now: float) -> None:
        """Mark a lane as in flight: an earlier run has planned a batch of it."""
        found = self._lanes.setdefault(lane, _Lane())
        found.under_way, found.going_since = True, now

    def is_under_way(self, lane: int) -> bool:
        """Whether a batch of a lane is in flight."""
        found = self._lanes.get(lane)
        return found is not None and found.under_way

    def take(self, now: float, limit: int = 1000) -> list[Gathered]:
        """The batches that are due, oldest first. Their lanes are in flight until `done`.

        Args:
            now: The time.
            limit: Stop once this many payloads are taken.
        """
        taken: list[Gathered] = []
        count = 0
        while self._heap and self._heap[0][0] <= now and count < limit:
            due, _, lane = heapq.heappop(self._heap)
            found = self._lanes.get(lane)
            if found is None or found.due != due or found.under_way:
                continue
            seqs, found.seqs = found.seqs[:_MAX_PAYLOADS], found.seqs[_MAX_PAYLOADS:]
            found.under_way, found.going_since = True, found.opened
            if not found.seqs:
                found.due = found.opened = math.inf
            taken.append(Gathered(lane, seqs))
            count += len(seqs)
        return taken

    def done(self, lane: int) -> None:
        """Note that a lane's batch has ended. Its next batch goes when it is due."""
        found = self._lanes.pop(lane)
        found.under_way, found.going_since = False, math.inf
        if found.seqs:
            self._lanes[lane] = found  # at the end: others have waited longer
            self._schedule(lane, found, found.due)

    def give_back(self, gathered: Gathered, now: float, *, under_way: bool = False) -> None:
        """Undo a `take`, or part of it: payloads that were not planned are due again at `now`.

        Args:
            gathered: The payloads that were not planned.
            now: The time.
            under_way: Whether the other payloads of the batch were planned.
        """
        found = self._lanes[gathered.lane]
        found.seqs[:0] = gathered.seqs
        found.opened = min(found.opened, found.going_since)
        if not under_way:
            found.under_way, found.going_since = False, math.inf
        self._schedule(gathered.lane, found, now)

    def drop(self, lanes: Callable[[int], bool], *, under_way: bool = True) -> None:
        """Drop the payloads of lanes. They wait in the journal, for another process.

        Args:
            lanes: Tells for a lane whether to drop it.
            under_way: Whether to drop batches in flight too. Without them, `done` is still called.
        """
        for lane in [lane for lane in self._lanes if lanes(lane)]:
            found = self._lanes[lane]
            if found.under_way and not under_way:
                found.seqs.clear()
                found.due = found.opened = math.inf
            else:
                del self._lanes[lane]

    def close_windows(self, now: float) -> None:
        """Make all gathered payloads due."""
        for lane, found in self._lanes.items():
            if found.seqs and found.due > now:
                self._schedule(lane, found, now)

    def close_window(self, lane: int, now: float) -> None:
        """Make the gathered payloads of one lane due."""
        found = self._lanes.get(lane)
        if found is not None and found.seqs and found.due > now:
            self._schedule(lane, found, now)

    def next_due(self) -> float | None:
        """When the next batch is due; None while none waits for a time."""
        while self._heap:
            due, _, lane = self._heap[0]
            found = self._lanes.get(lane)
            if found is not None and found.due == due and not found.under_way:
                return due
            heapq.heappop(self._heap)
        return None

    def oldest(self) -> float | None:
        """About when the payload that has waited longest arrived; None while there is none."""
        # Lanes are ordered by when they were made, or last done.
        found = next(iter(self._lanes.values()), None)
        since = min(found.opened, found.going_since) if found else math.inf
        return None if since == math.inf else since

    def _schedule(self, lane: int, found: _Lane, due: float) -> None:
        found.due = due
        self._order += 1
        heapq.heappush(self._heap, (due, self._order, lane))

    def _on_grid(self, due: float) -> float:
        if not self._grid or math.isinf(due):
            return due
        return math.ceil(due / self._grid) * self._grid

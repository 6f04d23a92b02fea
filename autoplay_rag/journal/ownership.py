"""What several processes of one journal share: who works on which sessions, and what arrived.

All sessions are divided into partitions by their lanes. One process at a time plans, stores and
acknowledges the payloads of a partition. Any process may accept payloads for any partition. A journal
in a file has one process, which owns everything, always, and needs nothing of this.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from autoplay_rag.journal.base import Plan
from autoplay_rag.payloads import Payload

__all__ = [
    "Accepted",
    "AcceptedPayload",
    "Arrivals",
    "Change",
    "Membership",
    "Ownership",
    "Replica",
    "Replicas",
    "SharedProgress",
    "Sharing",
    "owns_everything",
]

T = TypeVar("T")


def owns_everything(_lane: int) -> bool:
    """Whether the only process of a journal works on a session: always."""
    return True


class Change(NamedTuple):
    """What changed since the last call of `Ownership.next_change`.

    Attributes:
        lost: Partitions that this process may no longer work on, because its lease ended.
        leaving: Partitions that another process should have. Finish what is in flight, then call
            `Ownership.give_back`.
        gained: Partitions that this process works on from now on. Empty if `lost` is not: a
            partition that was lost and taken again comes in the next change, when nothing of the
            time before is left.
    """

    lost: frozenset[int] = frozenset()
    leaving: frozenset[int] = frozenset()
    gained: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        """Whether anything changed."""
        return bool(self.lost or self.leaving or self.gained)


class Ownership(ABC):
    """The partitions of one process."""

    @abstractmethod
    def owns(self, lane: int) -> bool:
        """Whether this process may work on a session now."""

    @abstractmethod
    async def next_change(self) -> Change:
        """Wait until partitions come or go.

        The caller has handled the change before when it calls this again. What is gained is owned
        from the return of this call on.
        """

    @abstractmethod
    def give_back(self, partitions: Collection[int]) -> None:
        """Let other processes have these partitions. From this call on, they are not owned."""


class SharedProgress(NamedTuple):
    """How far all processes together are.

    Attributes:
        last: The highest sequence number assigned.
        settled: The watermark: everything up to this number is settled.
        retried: How many retried dead letters wait.
        closing: Windows of payloads up to this number are to be closed, because a process drains.
    """

    last: int
    settled: int
    retried: int
    closing: int


class Arrivals(NamedTuple):
    """Payloads that arrived in some partitions.

    Attributes:
        rows: (seq, lane, whether it is a retried letter), in the order of sequence numbers.
        upto: All payloads of these partitions up to this number were seen: the next call begins
            here. Numbers are visible in their order, so none below it appears later.
        progress: The progress at the same time.
    """

    rows: list[tuple[int, int, bool]]
    upto: int
    progress: SharedProgress


class AcceptedPayload(NamedTuple):
    """A payload that some process accepted, as the journal keeps it.

    Attributes:
        seq: Its sequence number.
        at: When it was accepted, in Unix seconds.
        lane: Its session's lane.
        size: The size of its JSON in bytes.
        payload: The payload.
    """

    seq: int
    at: float
    lane: int
    size: int
    payload: Payload


class Accepted(NamedTuple):
    """What all processes accepted.

    Attributes:
        rows: The payloads, in the order of sequence numbers.
        upto: All payloads up to this number were read.
        more: Whether there are more.
        erasures: The number of the last request to forget. Forgotten payloads are not among the
            rows.
    """

    rows: list[AcceptedPayload]
    upto: int
    more: bool
    erasures: int


@dataclass(frozen=True, slots=True)
class Replica:
    """One process of a journal.

    Attributes:
        name: Its name for people: the machine's name and the number of the process.
        started_at: When it joined, in Unix seconds.
        takes_work: Whether it takes partitions.
        partitions: The partitions that it has.
        sources: The sources that it reads.
        lag: How many seconds the oldest payload of its partitions has waited; 0.0 if none waits.
        is_this: Whether it is this process.
    """

    name: str
    started_at: float
    takes_work: bool
    partitions: tuple[int, ...]
    sources: tuple[str, ...]
    lag: float
    is_this: bool


@dataclass(frozen=True, slots=True)
class Replicas:
    """All processes of a journal.

    Attributes:
        replicas: The processes, in the order in which they joined.
        unowned: The partitions that no process has.
        lag: How many seconds the oldest payload of these has waited; 0.0 if none waits.
    """

    replicas: tuple[Replica, ...]
    unowned: tuple[int, ...]
    lag: float


class Sharing(ABC):
    """The reads that a process needs besides `Queue`, if others write the same journal."""

    @abstractmethod
    async def plans_of(self, partitions: Collection[int]) -> list[Plan]:
        """Return the plans of partitions that are not acknowledged, oldest first."""

    @abstractmethod
    async def waiting_of(
        self, partitions: Collection[int], after: int, limit: int
    ) -> list[tuple[int, int, bool]]:
        """Return queued payloads of partitions, as `Queue.waiting` does."""

    @abstractmethod
    async def arrivals(self, partitions: Collection[int], after: int, *, retried: bool) -> Arrivals:
        """Return the queued payloads of partitions with a higher number.

        Args:
            partitions: The partitions.
            after: The `upto` of the call before.
            retried: Whether to add all retried letters, which keep their numbers.
        """

    @abstractmethod
    async def close_windows(self) -> SharedProgress:
        """Ask all processes to close the windows of what was accepted so far."""


class Membership(Sharing):
    """One process among those of a journal.

    Attributes:
        ownership: What this process works on.
    """

    ownership: Ownership

    @property
    @abstractmethod
    def problems(self) -> list[str]:
        """Current failures, one line each. Readable from any thread."""

    @property
    @abstractmethod
    def is_connected(self) -> bool:
        """Whether the journal answered when it was asked last. Readable from any thread."""

    @abstractmethod
    async def run(
        self, on_arrival: Callable[[], None], on_asked: Callable[[str, str | None], None]
    ) -> None:
        """Keep the membership until cancelled.

        Args:
            on_arrival: Called when there may be arrivals.
            on_asked: Called with a person and a product, or None, when somebody asked the
                assistant at any process.
        """

    @abstractmethod
    async def accepted(self, after: int, limit: int) -> Accepted:
        """Return what any process accepted after a number, oldest first."""

    @abstractmethod
    async def lately_accepted(self, since: float, limit: int) -> Accepted:
        """Return the last payloads that were accepted at a time or later."""

    @abstractmethod
    async def tell_asked(self, user_id: str, product_id: str | None) -> None:
        """Tell the other processes that somebody asked the assistant. They may miss it."""

    @abstractmethod
    async def kept(self, seqs: Collection[int]) -> set[int]:
        """Return those of these numbers whose payloads are not forgotten."""

    @abstractmethod
    async def replicas(self) -> Replicas:
        """Return all processes of the journal, and what each has."""

    @abstractmethod
    async def while_held(self, name: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run work in one process at a time.

        Args:
            name: What identifies the work.
            work: Makes the coroutine. It is cancelled if another process may run it, and made anew
                once this process may.
        """

    @abstractmethod
    async def others(self, *, working: bool = False) -> int:
        """Return how many other processes share the journal now.

        Args:
            working: Whether to count only those that take partitions.
        """

    @abstractmethod
    async def close(self) -> None:
        """Let others have everything. Call it after `run` has ended."""

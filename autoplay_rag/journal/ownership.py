"""Which sessions this process works on.

All sessions are divided into partitions by their lanes. One process plans, stores and acknowledges
the payloads of a partition. Any process may accept payloads for any partition. A journal in a file
has one process, which owns everything, always. In a cluster, partitions come and go.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import NamedTuple

__all__ = ["Change", "Ownership", "OwnsEverything"]


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
    """The partitions of one process.

    Attributes:
        shared: Whether other processes may own partitions.
    """

    shared: bool = True

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


class OwnsEverything(Ownership):
    """The ownership of the only process of a journal."""

    shared = False

    def owns(self, lane: int) -> bool:  # noqa: ARG002
        """Always True."""
        return True

    async def next_change(self) -> Change:
        """Wait forever: nothing changes."""
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    def give_back(self, partitions: Collection[int]) -> None:
        """Do nothing: there is nobody else."""

"""Which partitions a worker takes, and which it gives back. Pure.

All workers compute the same shares from the same rows, so they need no coordinator. The shares
differ by one partition at most. A worker that joins is the last in the order, so it never increases
the share of another one, and a worker that leaves never decreases one. Nothing moves between
workers that have their shares.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

__all__ = ["Moves", "decide", "share_of"]


class Moves(NamedTuple):
    """What one worker should do next.

    Attributes:
        take: Free partitions to take.
        give: Partitions of its own to give back.
    """

    take: list[int]
    give: list[int]


def share_of(rank: int, workers: int, partitions: int) -> int:
    """Return how many partitions a worker should have.

    Args:
        rank: The place of the worker in the order of joining, from 0.
        workers: The number of workers.
        partitions: The number of partitions.

    Example:
        >>> [share_of(rank, 3, 64) for rank in range(3)]
        [22, 21, 21]
    """
    least, more = divmod(partitions, workers)
    return least + (rank < more)


def decide(
    me: str,
    workers: Sequence[str],
    owners: Mapping[int, str | None],
    giving: Collection[int] = (),
) -> Moves:
    """Return what a worker should take and give back now.

    Free partitions are divided among all workers that have too few, so that two workers with the
    same view do not try to take the same one.

    Args:
        me: The worker's id.
        workers: The ids of all live workers that take partitions, in the order of joining.
        owners: The live owner of each partition, by number; None if it is free.
        giving: Partitions that `me` is about to give back already.

    Returns:
        Nothing if `me` is not in `workers`: it gives back what it has when it stops.

    Example:
        >>> decide("b", ["a", "b"], {0: "a", 1: "a", 2: "a", 3: None})
        Moves(take=[3], give=[])
        >>> decide("a", ["a", "b"], {0: "a", 1: "a", 2: "a", 3: None})
        Moves(take=[], give=[2])
    """
    if me not in workers:
        return Moves([], [])
    held: dict[str, list[int]] = {worker: [] for worker in workers}
    free: list[int] = []
    for number, owner in sorted(owners.items()):
        if owner is None:
            free.append(number)
        elif owner in held:
            held[owner].append(number)
    give: list[int] = []
    for rank, worker in enumerate(workers):
        own = held[worker]
        missing = share_of(rank, len(workers), len(owners)) - len(own)
        part, free = free[: max(0, missing)], free[max(0, missing) :]
        if worker == me:
            going = [number for number in own if number in giving]
            staying = [number for number in own if number not in giving]
            surplus = max(0, -missing - len(going))
            give = staying[len(staying) - surplus :]
            return Moves(part, give)
    raise AssertionError("unreachable")

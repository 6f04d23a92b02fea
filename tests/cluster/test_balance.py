"""Which partitions a worker takes and gives back."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag.cluster.balance import Moves, decide, share_of

PARTITIONS = 64


class Cluster:
    """The rows that the workers see, and what they do with them."""

    def __init__(self, partitions: int = PARTITIONS) -> None:
        self.owners: dict[int, str | None] = dict.fromkeys(range(partitions))
        self.workers: list[str] = []
        self.joined = 0
        self.moved: list[tuple[int, str | None, str | None]] = []

    def join(self) -> None:
        self.joined += 1
        self.workers.append(f"w{self.joined}")

    def leave(self, at: int) -> None:
        del self.workers[at]

    def view(self) -> tuple[list[str], dict[int, str | None]]:
        live = {n: one if one in self.workers else None for n, one in self.owners.items()}
        return list(self.workers), live

    def act(self, me: str, view: tuple[list[str], dict[int, str | None]]) -> Moves:
        """Carry out what a worker decides on a view, which may be old, as the database allows it."""
        moves = decide(me, *view)
        for number in moves.take:
            if self.owners[number] not in self.workers:
                self._move(number, me)
        for number in moves.give:
            if self.owners[number] == me:
                self._move(number, None)
        return moves

    def _move(self, number: int, owner: str | None) -> None:
        self.moved.append((number, self.owners[number], owner))
        self.owners[number] = owner

    def round(self) -> int:
        """Let each worker act once; return how many partitions moved."""
        before = len(self.moved)
        for worker in list(self.workers):
            self.act(worker, self.view())
        return len(self.moved) - before

    def sizes(self) -> list[int]:
        counted = Counter(self.owners.values())
        return [counted[worker] for worker in self.workers]


@given(workers=st.integers(1, 100), partitions=st.integers(1, 200))
def test_shares_are_fair_and_complete(workers, partitions):
    shares = [share_of(rank, workers, partitions) for rank in range(workers)]
    assert sum(shares) == partitions
    assert max(shares) - min(shares) <= 1


@given(workers=st.integers(1, 100), partitions=st.integers(1, 200))
def test_one_more_worker_increases_no_other_share(workers, partitions):
    for rank in range(workers):
        now, then = (share_of(rank, count, partitions) for count in (workers, workers + 1))
        assert then <= now


@given(st.data())
def test_any_cluster_becomes_fair_in_two_rounds_and_then_rests(data: Any):
    cluster = Cluster()
    steps = st.sampled_from(["join", "leave", "act"])
    views = {}
    for step in data.draw(st.lists(steps, max_size=40), label="steps"):
        if step == "join" and len(cluster.workers) < 70:
            cluster.join()
        elif step == "leave" and cluster.workers:
            cluster.leave(data.draw(st.integers(0, len(cluster.workers) - 1)))
        elif cluster.workers:
            me = data.draw(st.sampled_from(cluster.workers))
            views.setdefault(me, cluster.view())
            if data.draw(st.booleans(), label="acts on an old view"):
                cluster.act(me, views.pop(me))
            else:
                cluster.act(me, cluster.view())
    if not cluster.workers:
        cluster.join()
    cluster.round()  # some give back what others then take
    cluster.round()
    assert sorted(cluster.sizes(), reverse=True) == cluster.sizes()
    assert sum(cluster.sizes()) == PARTITIONS
    assert max(cluster.sizes()) - min(cluster.sizes()) <= 1
    assert cluster.round() == 0


@given(before=st.integers(1, 70))
def test_a_joiner_moves_no_more_than_its_share(before):
    cluster = Cluster()
    for _ in range(before):
        cluster.join()
    cluster.round()
    assert cluster.round() == 0
    cluster.moved.clear()
    cluster.join()
    cluster.round()
    cluster.round()
    given_back = [move for move in cluster.moved if move[2] is None]
    assert len(given_back) == cluster.sizes()[-1]
    assert {owner for _, before, owner in cluster.moved if before is None} <= {cluster.workers[-1]}


@given(before=st.integers(2, 70), at=st.integers(0, 69))
def test_when_one_leaves_only_its_partitions_move(before, at):
    cluster = Cluster()
    for _ in range(before):
        cluster.join()
    cluster.round()
    left = cluster.workers[at % before]
    cluster.moved.clear()
    cluster.leave(at % before)
    cluster.round()
    assert {owner for _, owner, _ in cluster.moved} <= {left}
    assert sum(cluster.sizes()) == PARTITIONS
    assert cluster.round() == 0


@given(st.integers(1, 20))
def test_workers_with_the_same_view_never_want_the_same_partition(count):
    workers = [f"w{number}" for number in range(count)]
    owners: dict[int, str | None] = dict.fromkeys(range(PARTITIONS))
    taken = [number for me in workers for number in decide(me, workers, owners).take]
    assert sorted(taken) == list(range(PARTITIONS))


def test_what_is_being_given_back_counts_as_given():
    owners: dict[int, str | None] = dict.fromkeys(range(4), "a")
    assert decide("a", ["a", "b"], owners) == Moves([], [2, 3])
    assert decide("a", ["a", "b"], owners, giving=[2, 3]) == Moves([], [])
    assert decide("a", ["a", "b", "c", "d"], owners, giving=[2, 3]) == Moves([], [1])
    # All others left meanwhile: it is taken back once it is free.
    assert decide("a", ["a"], owners, giving=[2, 3]) == Moves([], [])


def test_partitions_of_a_process_that_takes_none_any_more_are_not_free_yet():
    owners: dict[int, str | None] = {0: "leaves", 1: "leaves", 2: None, 3: "a"}
    assert decide("a", ["a"], owners) == Moves([2], [])


@pytest.mark.parametrize("workers", [[], ["b"]])
def test_a_worker_that_takes_none_does_nothing(workers):
    assert decide("a", workers, {0: "a", 1: None}) == Moves([], [])

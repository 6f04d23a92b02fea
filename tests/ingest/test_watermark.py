"""The watermark: compared with a set of numbers, and the calls that wait for it."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag.ingest.watermark import Watermark


class NothingWaits:
    """A queue in which only the given lanes have pending payloads."""

    def __init__(self, settled: dict[int, int]) -> None:
        self.settled = settled

    async def settled_of(self, lane: int) -> int | None:
        return self.settled.get(lane)


def taken(count: int, last: int = 0) -> Watermark:
    watermark = Watermark(NothingWaits({}), last)
    for _ in range(count):
        watermark.take()
    return watermark


def ranges(watermark: Watermark) -> int:
    assert len(watermark._end_of) == len(watermark._start_of)
    return len(watermark._end_of)


# -- compared with a set ----------------------------------------------------------------------


class Model:
    """A naive model: the set of open numbers, and of retried letters."""

    def __init__(self, last: int = 0) -> None:
        self.last = last
        self.open: set[int] = set()
        self.settled: set[int] = set()
        self.retried: set[int] = set()

    @property
    def value(self) -> int:
        return min(self.open, default=self.last + 1) - 1


@st.composite
def histories(draw):
    """What an earlier run left, and then steps: (name, seed of a choice)."""
    last = draw(st.integers(0, 12))
    waiting = draw(st.sets(st.integers(1, last))) if last else set()
    retried = draw(st.sets(st.sampled_from(sorted(waiting)))) if waiting else set()
    steps = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["take", "take", "settle", "settle", "settle all", "retry"]),
                st.integers(0, 10**6),
            ),
            max_size=60,
        )
    )
    return last, sorted(waiting), retried, steps


@given(histories())
def test_it_is_the_highest_number_up_to_which_nothing_is_open(history):
    last, waiting, retried, steps = history
    watermark, model = Watermark(NothingWaits({}), last), Model(last)
    watermark.resume([(seq, seq in retried) for seq in waiting])
    model.open = set(waiting) - retried
    model.retried = set(retried)
    model.settled = set(range(1, last + 1)) - set(waiting)
    before = 0
    for step, choice in steps:
        if step == "take":
            model.last += 1
            assert watermark.take() == model.last
            model.open.add(model.last)
        elif step == "retry" and model.settled:
            seq = sorted(model.settled)[choice % len(model.settled)]
            model.settled.discard(seq)
            model.retried.add(seq)
            watermark.reopen([seq])
        elif step.startswith("settle") and (unsettled := sorted(model.open | model.retried)):
            if step == "settle":
                unsettled = [unsettled[choice % len(unsettled)]]
            elif choice % 2:
                unsettled.reverse()
            model.open -= set(unsettled)
            model.retried -= set(unsettled)
            model.settled |= set(unsettled)
            watermark.settle(unsettled)
        assert watermark.value == model.value
        assert watermark.value >= before  # it never moves back
        before = watermark.value
        # Memory: there is an open number between neighbouring ranges, and before the first one.
        assert ranges(watermark) <= len(model.open)


@given(st.integers(1, 200), st.randoms(use_true_random=False))
def test_nothing_is_kept_once_everything_is_settled(count, source):
    watermark = taken(count)
    order = list(range(1, count + 1))
    source.shuffle(order)
    for seq in order:
        watermark.settle([seq])
    assert watermark.value == count
    assert ranges(watermark) == 0


def test_one_open_number_costs_one_range():
    watermark = taken(100_000)
    watermark.settle(range(100_000, 1, -1))
    assert (watermark.value, ranges(watermark)) == (0, 1)
    watermark.settle([1])
    assert (watermark.value, ranges(watermark)) == (100_000, 0)


def test_after_a_restart_what_the_journal_does_not_hold_is_settled():
    watermark = Watermark(NothingWaits({}), 10)
    watermark.resume([(2, True), (4, False), (5, False), (8, False)])
    assert watermark.value == 3
    watermark.settle([4])
    assert watermark.value == 4
    watermark.settle([8])
    watermark.settle([5])
    assert watermark.value == 10
    assert watermark.take() == 11


# -- waiting ----------------------------------------------------------------------------------


async def waiting(watermark: Watermark) -> asyncio.Task[None]:
    task = asyncio.create_task(watermark.wait())
    await asyncio.sleep(0)
    return task


async def ended(task: asyncio.Task[None]) -> bool:
    for _ in range(3):
        await asyncio.sleep(0)
    return task.done()


async def test_a_call_waits_for_what_was_given_out_before_it_and_no_more():
    watermark = taken(2)
    first = await waiting(watermark)
    watermark.take()
    second = await waiting(watermark)
    watermark.settle([2])
    assert not await ended(first)
    watermark.settle([1])
    assert await ended(first)
    assert not await ended(second)
    watermark.settle([3])
    assert await ended(second)


async def test_with_nothing_open_no_call_waits():
    watermark = taken(1)
    watermark.settle([1])
    assert await ended(await waiting(watermark))
    assert not watermark._waiters


async def test_a_retried_letter_is_waited_for_and_does_not_move_the_watermark():
    watermark = taken(3)
    watermark.settle([1, 2, 3])
    watermark.reopen([2])
    assert watermark.value == 3
    call = await waiting(watermark)
    assert not await ended(call)
    watermark.settle([2])
    assert await ended(call)
    assert watermark.value == 3


async def test_letters_retried_repeatedly_do_not_block_a_wait():
    """Each one is settled once after the call began, but never both at the same moment."""
    watermark = taken(2)
    watermark.settle([1, 2])
    watermark.reopen([1, 2])
    call = await waiting(watermark)
    watermark.settle([1])
    watermark.reopen([1])
    assert not await ended(call)
    watermark.settle([2])
    assert await ended(call)


async def test_a_letter_retried_later_is_not_waited_for():
    watermark = taken(2)
    watermark.settle([1])
    call = await waiting(watermark)
    watermark.reopen([1])
    watermark.settle([2])
    assert await ended(call)


async def test_a_cancelled_call_leaves_nothing_behind():
    watermark = taken(1)
    call = await waiting(watermark)
    call.cancel()
    await asyncio.wait([call])
    assert not watermark._waiters
    watermark.settle([1])
    assert watermark.value == 1


# -- of one session ---------------------------------------------------------------------------


async def test_a_session_is_settled_as_far_as_the_journal_says_and_at_least_as_all_are():
    watermark = Watermark(NothingWaits({7: 4, 8: 0}))
    for _ in range(6):
        watermark.take()
    watermark.settle([1, 2])
    assert await watermark.of(7) == 4
    assert await watermark.of(8) == 2
    assert await watermark.of(9) == 6  # it has no pending payloads

import math

from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag.ingest.batching import Batcher, Gathered


def test_a_window_gathers_what_its_session_sends():
    batcher = Batcher(10.0)
    batcher.add(1, 1, 0.0)
    batcher.add(2, 2, 1.0)
    batcher.add(1, 3, 9.0)
    assert batcher.take(9.9) == []
    assert batcher.take(10.5) == [Gathered(1, [1, 3])]
    assert batcher.take(11.5) == [Gathered(2, [2])]


def test_windows_close_on_a_common_grid_so_that_sessions_share_requests():
    batcher = Batcher(10.0)
    for lane in range(1, 50):
        batcher.add(lane, lane, 0.01 * lane)
    due = batcher.next_due()
    assert len(batcher.take(due)) >= 48


def test_one_batch_of_a_session_is_under_way_at_a_time():
    batcher = Batcher(1.0)
    batcher.add(1, 1, 0.0)
    assert batcher.take(1.0) == [Gathered(1, [1])]
    batcher.add(1, 2, 1.0)
    assert batcher.take(5.0) == []
    assert batcher.next_due() is None
    batcher.done(1)
    assert batcher.take(5.0) == [Gathered(1, [2])]


def test_what_came_meanwhile_still_gets_its_window():
    batcher = Batcher(10.0)
    batcher.add(1, 1, 0.0)
    batcher.take(10.0)
    batcher.add(1, 2, 11.0)
    batcher.done(1)
    assert batcher.take(12.0) == []
    assert batcher.take(21.0) == [Gathered(1, [2])]


def test_a_payload_without_session_waits_for_no_other():
    batcher = Batcher(10.0)
    batcher.add(-1, 1, 0.0)
    batcher.add(-2, 2, 0.0)
    assert batcher.take(0.5) == [Gathered(-1, [1]), Gathered(-2, [2])]


def test_a_window_of_zero_waits_for_nothing():
    batcher = Batcher(0.0)
    batcher.add(1, 1, 3.3)
    assert batcher.take(3.3) == [Gathered(1, [1])]


def test_closing_windows_makes_everything_due_also_behind_a_batch_under_way():
    batcher = Batcher(10.0)
    batcher.add(1, 1, 0.0)
    batcher.take(10.0)
    batcher.add(1, 2, 10.0)
    batcher.add(2, 3, 10.0)
    batcher.close_windows(10.0)
    assert batcher.take(10.0) == [Gathered(2, [3])]
    batcher.done(1)
    assert batcher.take(10.0) == [Gathered(1, [2])]


def test_a_long_backlog_of_one_session_goes_in_several_batches_in_order():
    batcher = Batcher(0.0)
    for seq in range(1200):
        batcher.add(1, seq, 0.0)
    taken = []
    while gathered := batcher.take(0.0):
        taken += gathered[0].seqs
        batcher.done(1)
    assert taken == list(range(1200))


def test_a_returned_payload_comes_first_again():
    batcher = Batcher(0.0)
    batcher.add(1, 1, 0.0)
    (gathered,) = batcher.take(0.0)
    batcher.add(1, 2, 0.0)
    batcher.give_back(gathered, 5.0)
    assert batcher.take(5.0) == [Gathered(1, [1, 2])]


def test_the_rest_of_a_partly_planned_batch_waits_for_its_batch():
    batcher = Batcher(0.0)
    batcher.add(1, 1, 0.0)
    batcher.add(1, 2, 0.0)
    batcher.add(1, 3, 0.0)
    batcher.take(0.0)
    batcher.add(1, 4, 1.0)
    batcher.give_back(Gathered(1, [2, 3]), 5.0, under_way=True)
    assert batcher.take(9.0) == []
    assert batcher.next_due() is None
    assert batcher.oldest() == 0.0
    batcher.done(1)
    assert batcher.take(9.0) == [Gathered(1, [2, 3, 4])]


def test_a_busy_lane_does_not_hide_one_that_is_stuck():
    batcher = Batcher(0.0)
    batcher.add(1, 1, 1.0)
    batcher.add(2, 2, 10.0)
    for now in range(100, 110):
        batcher.take(now)
        batcher.add(1, now, now)
        batcher.done(1)
        assert batcher.oldest() == 10.0


def test_a_payload_in_progress_still_counts_as_pending():
    batcher = Batcher(1.0)
    assert batcher.oldest() is None
    batcher.add(1, 1, 5.0)
    batcher.take(6.0)
    assert batcher.oldest() == 5.0
    batcher.done(1)
    assert batcher.oldest() is None


def test_a_lane_held_by_a_recorded_plan_waits_for_it():
    batcher = Batcher(0.0)
    batcher.hold(1, 0.0)
    assert batcher.oldest() == 0.0
    batcher.add(1, 1, 0.0)
    assert batcher.take(1.0) == []
    batcher.done(1)
    assert batcher.take(1.0) == [Gathered(1, [1])]


def test_the_limit_counts_payloads():
    batcher = Batcher(0.0)
    for seq in range(10):
        batcher.add(seq + 1, seq, 0.0)
    assert len(batcher.take(0.0, limit=4)) == 4
    assert len(batcher.take(0.0)) == 6


def test_a_window_without_end_closes_only_when_it_is_closed():
    batcher = Batcher(math.inf)
    batcher.add(1, 1, 0.0)
    assert batcher.take(1e9) == []
    batcher.close_windows(1.0)
    assert batcher.take(1.0) == [Gathered(1, [1])]


@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.floats(0, 5), st.sampled_from(["take", "done", "close"]))
    ),
    st.floats(0, 3),
)
def test_nothing_is_lost_doubled_or_out_of_order_and_no_lane_is_left(steps, window):
    batcher, now = Batcher(window), 0.0
    sent: dict[int, list[int]] = {}
    got: dict[int, list[int]] = {}
    under_way: list[int] = []
    for seq, (lane, wait, step) in enumerate(steps):
        now += wait
        batcher.add(lane, seq, now)
        sent.setdefault(lane, []).append(seq)
        if step == "close":
            batcher.close_windows(now)
        if step == "done" and under_way:
            batcher.done(under_way.pop())
        for gathered in batcher.take(now, limit=2):
            assert gathered.lane not in under_way
            under_way.append(gathered.lane)
            got.setdefault(gathered.lane, []).extend(gathered.seqs)
    while len(batcher):
        for lane in under_way:
            batcher.done(lane)
        batcher.close_windows(now)
        taken = batcher.take(now)
        under_way = [gathered.lane for gathered in taken]
        for gathered in taken:
            got.setdefault(gathered.lane, []).extend(gathered.seqs)
    assert got == sent

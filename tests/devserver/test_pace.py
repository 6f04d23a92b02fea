"""The pace of a replay, without a clock."""

from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag.devserver.pace import Pace

rates = st.floats(0.01, 10_000)
seconds = st.floats(0, 1_000)


@given(rate=rates, elapsed=seconds)
def test_the_rate_holds_on_the_average(rate, elapsed):
    due = Pace(rate).allowed(elapsed, sent=0)
    assert abs(due - elapsed * rate) <= 1


@given(rate=rates, elapsed=seconds, sent=st.integers(0, 10_000))
def test_an_event_is_due_exactly_when_one_is_allowed(rate, elapsed, sent):
    pace = Pace(rate)
    due_in = pace.due_in(elapsed, sent)
    if due_in > 0:
        assert pace.allowed(elapsed, sent) == 0
        assert pace.allowed(elapsed + due_in + 1e-5, sent) >= 1


def test_without_a_rate_all_may_go_at_once():
    assert Pace(None).allowed(0.0, 10**9) > 10**9
    assert Pace(None).due_in(0.0, 10**9) == 0.0

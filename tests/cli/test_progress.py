"""What is shown while an ingest runs, without one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag.cli.progress import Meter, counts
from autoplay_rag.journal.ledger import Ledger


def test_a_meter_forgets_what_was_long_ago():
    meter = Meter(5.0)
    assert meter.rate(0.0, 0) == 0.0
    assert meter.rate(1.0, 100) == 100.0
    assert meter.rate(7.0, 100) == 0.0


@pytest.mark.parametrize("every", [5.0, 5.01, 60.0])
def test_a_meter_that_is_rarely_asked_tells_the_rate_since_it_was_last_asked(every):
    meter = Meter(5.0)
    shown = [meter.rate(n * every, count) for n, count in enumerate((0, 600, 900, 900))]
    assert shown == pytest.approx([0.0, 600 / every, 300 / every, 0.0])


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=30))
def test_a_meter_of_one_look_a_second_is_the_mean_of_its_span(steps):
    meter = Meter(5.0)
    total, shown = 0, 0.0
    for second, step in enumerate(steps):
        total += step
        shown = meter.rate(float(second), total)
    recent = steps[1:][-5:]
    assert abs(shown - sum(recent) / len(recent)) < 1e-9


def test_what_is_lost_or_dead_is_always_shown_and_what_is_zero_is_not():
    usual = counts(Ledger(received=1))
    assert usual == "received 1 · pending 0 · stored 0"
    assert "overflow 3" in counts(Ledger(overflow=3))
    assert "dead 2" in counts(Ledger(dead=2))

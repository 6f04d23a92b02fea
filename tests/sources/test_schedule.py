"""When users are pulled, and how long all requests pause."""

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag.sources.cooldown import Cooldown
from autoplay_rag.sources.schedule import Schedule


def played(schedule, until, step=0.01):
    """Take everybody who is due, and return who was taken when."""
    found, now = [], 0.0
    while now < until:
        while (user := schedule.take(now)) is not None:
            found.append((now, user))
        due_in = schedule.due_in(now)
        now += max(step, due_in or step)
    return found


@given(st.integers(1, 300), st.integers(0, 2**32))
def test_everybody_is_pulled_once_an_interval_and_never_in_bursts(count, seed):
    schedule = Schedule(30.0, random_source=random.Random(seed))
    users = {f"u{n}" for n in range(count)}
    schedule.watch(users, now=0.0)
    found = played(schedule, until=120.0)
    for user in users:
        own = [at for at, other in found if other == user]
        assert own[0] <= 4.0  # the first within seconds
        assert 3 <= len(own) <= 6
        assert all(26.9 <= b - a <= 36.0 for a, b in pairwise(own))
    for second in range(120):
        assert sum(second <= at < second + 1 for at, _ in found) <= 120


def test_users_come_and_go():
    schedule = Schedule(30.0)
    schedule.watch({"ann", "bob"}, now=0.0)
    assert {user for _, user in played(schedule, 1.0)} == {"ann", "bob"}
    schedule.watch({"bob"}, now=1.0)
    assert "ann" not in schedule
    assert len(schedule) == 1
    schedule.watch(set(), now=2.0)
    assert schedule.due_in(2.0) is None
    assert schedule.take(1000.0) is None
    schedule.again("ann", 2.0)  # no longer watched
    assert schedule.take(1000.0) is None


def test_who_failed_is_due_at_once():
    schedule = Schedule(30.0)
    schedule.watch({"ann"}, now=0.0)
    assert schedule.take(0.0) == "ann"
    schedule.again("ann", now=1.0)
    assert schedule.take(1.0) == "ann"


def test_after_a_pause_the_server_is_not_flooded():
    schedule = Schedule(30.0)
    schedule.watch({f"u{n}" for n in range(3000)}, now=0.0)
    taken = 0
    while schedule.take(1000.0) is not None:
        taken += 1
    assert taken <= 100
    assert 0 < schedule.due_in(1000.0) < 0.1


def test_failures_in_flight_count_once_and_the_pause_grows():
    cooldown = Cooldown(random_source=random.Random(1))
    for _ in range(8):
        cooldown.failed(now=0.0)
    assert cooldown.failures == 1
    assert 0.7 <= cooldown.left(now=0.0) <= 1.0
    waits, now = [], 1.0
    for _ in range(10):
        cooldown.failed(now)
        waits.append(cooldown.left(now))
        now += waits[-1]
    assert waits[0] > 1.4
    assert max(waits) <= 60.0
    cooldown.succeeded()
    assert cooldown.failures == 0


@given(st.floats(0.1, 300.0))
def test_the_server_decides_how_long(asked):
    cooldown = Cooldown()
    cooldown.failed(now=5.0, retry_after=asked)
    assert cooldown.left(now=5.0) >= asked * 0.999
    cooldown.failed(now=5.0)  # another in flight does not shorten it
    assert cooldown.left(now=5.0) >= asked * 0.999

"""One wrong clock in a recording does not affect the other sessions."""

import math
import random

import pytest

from autoplay_rag.connector.recording import RecordingWriter
from autoplay_rag.content.times import own_time
from autoplay_rag.loading import PayloadLoader, RecordingSource
from autoplay_rag.loading.clock import RecordingClock
from autoplay_rag.payloads import ActionsPayload, SlimAction

START = 1_712_345_678.0
WRONG = {
    "milliseconds": lambda at: at * 1e3,
    "microseconds": lambda at: at * 1e6,
    "nanoseconds": lambda at: at * 1e9,
    "a year ahead": lambda at: at + 3.2e7,
    "a minute ahead": lambda at: at + 90,
    "decades ahead": lambda at: at + 2e9,
    "a year behind": lambda at: at - 3.2e7,
    "unknown": lambda at: 0.0,
    "before 1970": lambda at: -at,
    "any": lambda at: random.Random(at).choice([at, at * 1e3, at + 1e8, 0.0, at - 1e8]),
}


def visits(count=12, every=20.0):
    """Sessions of three payloads, 20 seconds apart. A new session begins every 30 seconds."""
    found = [
        (START + 30.0 * n + every * step, f"s{n}", step) for n in range(count) for step in range(3)
    ]
    return sorted(found)


def documents(tmp_path, moments, *, wrong=None, of=()):
    path = tmp_path / "visits.jsonl"
    with RecordingWriter(path) as writer:
        for at, session, step in moments:
            told = wrong(at) if wrong and session in of else at
            action = SlimAction("Export", f"User clicked {session} {step}", timestamp_start=at)
            writer.write(
                ActionsPayload("acme", session, actions=[action], count=1, forwarded_at=told)
            )
    loader = PayloadLoader(RecordingSource(path), group_by="session", session_idle_seconds=25)
    return [(text.metadata["session_id"], text.text) for text in loader.load()]


@pytest.mark.parametrize("of", [["s0"], ["s5"], ["s11"], ["s3", "s9"]], ids=str)
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_clock_changes_nothing_for_other_sessions(tmp_path, wrong, of):
    right = documents(tmp_path, visits())
    found = documents(tmp_path, visits(), wrong=wrong, of=of)
    assert [each for each in found if each[0] not in of] == [e for e in right if e[0] not in of]


@pytest.mark.parametrize("unit", ["milliseconds", "microseconds", "nanoseconds"])
def test_other_units_change_nothing_at_all(tmp_path, unit):
    right = documents(tmp_path, visits())
    everybody = [f"s{n}" for n in range(12)]
    assert documents(tmp_path, visits(), wrong=WRONG[unit], of=everybody) == right


@pytest.mark.parametrize("pause", [26.0, 3600.0, 1e6])
def test_a_pause_still_divides_a_session(tmp_path, pause):
    moments = [(START, "s1", 0), (START + 5, "s1", 1), (START + 5 + pause, "s1", 2)]
    assert len(documents(tmp_path, moments)) == 2
    assert len(documents(tmp_path, moments[:2])) == 1


def test_sessions_are_given_on_the_way_not_only_at_the_end():
    clock = RecordingClock()
    told = [clock.tell(("acme", session), at) for at, session, _ in visits(100)]
    assert all(at - now <= 150 for (at, _, _), now in zip(visits(100), told, strict=True) if now)


def test_two_wrong_clocks_of_five_do_not_move_the_time():
    clock = RecordingClock()
    for n in range(200):
        now = clock.tell(("acme", f"s{n % 3}"), START + n)
        for wrong in ("w1", "w2"):
            now = clock.tell(("acme", wrong), START * 1.5 + n)
    assert START + 190 < now <= START + 200


@pytest.mark.parametrize("at", [0.0, -1.0, START, 1e11, math.inf])
def test_seconds_stay_as_they_are(at):
    assert own_time(at) == at


@pytest.mark.parametrize("factor", [1e3, 1e6, 1e9])
def test_other_units_become_seconds(factor):
    assert own_time(START * factor) == pytest.approx(START)

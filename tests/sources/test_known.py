"""Actions that are recognised in every source, in bounded memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag import SlimAction
from autoplay_rag.payloads import ActionsPayload
from autoplay_rag.sources.age import arrived_at
from autoplay_rag.sources.known import SeenActions, SeenByPerson, action_key

CLICK = SlimAction("Export", "User clicked Export", "https://a.test/p", 3, "click", 1712345678.5)


@pytest.mark.parametrize(
    "other",
    [
        SlimAction("Export", "in other words", "https://a.test/p", 0, "click", 1712345678.5, 9.0),
        SlimAction("Export", "", "https://a.test/p", 3, "click", 1712345678500.0),
        SlimAction("Export", "", "https://a.test/p", 3, "click", 1712345678.5, raw_url="x?y=1"),
    ],
)
def test_what_differs_between_sources_does_not_count(other):
    assert action_key("acme", "ann", CLICK) == action_key("acme", "ann", other)


@pytest.mark.parametrize(
    "other",
    [
        SlimAction("Save", "", "https://a.test/p", 3, "click", 1712345678.5),
        SlimAction("Export", "", "https://a.test/q", 3, "click", 1712345678.5),
        SlimAction("Export", "", "https://a.test/p", 3, "focus", 1712345678.5),
        SlimAction("Export", "", "https://a.test/p", 3, "click", 1712345678.6),
    ],
)
def test_another_action_has_another_key(other):
    assert action_key("acme", "ann", CLICK) != action_key("acme", "ann", other)
    assert action_key("acme", "ann", CLICK) != action_key("acme", "bob", CLICK)
    assert action_key("acme", "ann", CLICK) != action_key("other", "ann", CLICK)


def test_an_action_that_cannot_be_recognised_has_no_key():
    assert action_key("acme", "ann", SlimAction("Export")) is None
    assert action_key("acme", "\ud800", CLICK) is None


@given(st.lists(st.integers(0, 300), max_size=400))
def test_the_latest_hundred_are_kept(keys):
    seen = SeenActions()
    seen.add(keys)
    latest = list(dict.fromkeys(reversed(keys)))[:100]
    assert len(seen) == len(latest)
    assert all(key in seen for key in latest)


def test_people_are_bounded_and_can_be_forgotten():
    seen = SeenByPerson(most=2)
    for user in ("ann", "bob", "ann", "cid"):
        seen.of("acme", user).add([1])
    assert seen.find("acme", "bob") is None
    assert 1 in seen.find("acme", "ann")
    seen.forget("ann")
    seen.forget("cid")
    assert not seen


def test_an_old_recording_arrives_now():
    payload = ActionsPayload("acme", "s", actions=[CLICK], forwarded_at=1712345678.5 + 10)
    assert arrived_at(payload, now=5000.0) == 4990.0
    old = ActionsPayload("acme", "s", actions=[CLICK], forwarded_at=1712345678.5 + 1e6)
    assert arrived_at(old, now=5000.0) == 5000.0
    assert arrived_at(ActionsPayload("acme", "s"), now=5000.0) == 5000.0

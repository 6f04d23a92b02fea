"""Sessions of events that a tool does not name, across requests, restarts and imports."""

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag import IngestPipeline
from autoplay_rag.ingest.events import EventIntake
from autoplay_rag.sources.cutting import DeviceSessions, Known
from autoplay_rag.sources.segment import segment_events
from autoplay_rag.sources.sessions import IDLE_GAP, LONGEST, cut_name, cut_names
from autoplay_rag.stores import MemoryStore

START = 1772524800.0
TIMES = st.lists(st.integers(0, 60 * 60 * 60).map(lambda n: START + n), min_size=1, max_size=30)


def parts_of(times):
    """The times by session, as one pass in their order gives them."""
    sessions, found = DeviceSessions(), {}
    for at in sorted(times):
        found.setdefault(sessions.name("acme", "device d1", at), []).append(at)
    return found


@given(TIMES)
def test_a_session_has_no_gap_and_is_not_too_long(times):
    for some in parts_of(times).values():
        assert some[-1] - some[0] <= LONGEST
        assert all(later - at <= IDLE_GAP for at, later in itertools.pairwise(some))


@given(TIMES)
def test_sessions_apart_have_their_own_names(times):
    ends = sorted((some[0], some[-1]) for some in parts_of(times).values())
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(ends))


@given(TIMES, st.randoms(use_true_random=False))
def test_what_comes_again_gets_the_name_that_it_had(times, random):
    sessions = DeviceSessions()
    random.shuffle(times)
    names = [sessions.name("acme", "device d1", at) for at in times]
    assert [sessions.name("acme", "device d1", at) for at in times[::-1]] == names[::-1]


@given(TIMES, st.randoms(use_true_random=False))
def test_the_possible_names_of_a_journal_are_enough_to_remember(times, random):
    first = DeviceSessions()
    journal = {}
    for at in times:
        name = first.name("acme", "device d1", at)
        begin, end = journal.get(name, (at, at))
        journal[name] = (min(begin, at), max(end, at))
    again = DeviceSessions()
    for at in times:
        if again.lacks("acme", "device d1", at):
            names = cut_names("acme", "device d1", at)
            known = [Known(name, *journal[name]) for name in names if name in journal]
            again.remember("acme", "device d1", at, known)
        assert again.name("acme", "device d1", at) == first.name("acme", "device d1", at)


def test_the_devices_remembered_are_bounded():
    sessions = DeviceSessions(most=3)
    for n in range(10):
        sessions.name("acme", f"device {n}", START)
    assert len(sessions) == 3


def test_events_without_a_time_have_a_session_of_their_own():
    sessions = DeviceSessions()
    assert sessions.name("acme", "device d", 0.0) == cut_name("acme", "device d", 0.0)
    timed = sessions.name("acme", "device d", START)
    assert sessions.name("acme", "device d", 0.0) != timed
    assert not sessions.lacks("acme", "device never seen", 0.0)


def calls(*minutes):
    return segment_events(
        [
            {"type": "track", "event": f"at {n}", "anonymousId": "a1", "timestamp": START + 60 * n}
            for n in minutes
        ]
    ).events


@pytest.mark.parametrize("journal", ["journal.db", None], ids=["file", "memory"])
async def test_after_a_restart_a_retry_is_a_duplicate_and_a_session_goes_on(
    journal, embedder, tmp_path
):
    def make():
        path = tmp_path / journal if journal else None
        return IngestPipeline(MemoryStore(), embedder, journal=path, batch_window=0)

    async with make() as pipeline:
        outcomes = await EventIntake(pipeline).take(calls(0, 10, 100), "acme")
        assert outcomes == {"accepted": 3}
        if journal is None:  # another intake stands for another process
            again = await EventIntake(pipeline).take(calls(10, 100, 25), "acme")
            assert again == {"duplicate": 2, "accepted": 1}
            assert len(await pipeline.sessions()) == 2
            return
    async with make() as pipeline:
        # 25 alone would begin a session; 10 alone as well.
        again = await EventIntake(pipeline).take(calls(25), "acme")
        again += await EventIntake(pipeline).take(calls(10, 100), "acme")
        assert again == {"duplicate": 2, "accepted": 1}
        sessions = await pipeline.sessions()
        assert sorted(one.actions for one in sessions) == [1, 3]


async def test_requests_at_the_same_time_agree_on_the_session(embedder):
    async with IngestPipeline(MemoryStore(), embedder, batch_window=0) as pipeline:
        intake = EventIntake(pipeline)
        some = [intake.take(calls(n), "acme") for n in range(0, 200, 5)]
        await asyncio.gather(*some)
        assert [one.actions for one in await pipeline.sessions()] == [40]


async def test_an_event_that_names_nobody_has_no_session(embedder):
    async with IngestPipeline(MemoryStore(), embedder, batch_window=0) as pipeline:
        events = segment_events({"type": "track", "event": "ping"}).events
        assert await EventIntake(pipeline).take(events, "acme") == {"accepted": 1}
        assert len(await pipeline.sessions()) == 0


async def test_the_times_of_sessions(embedder, make_actions):
    async with IngestPipeline(MemoryStore(), embedder, batch_window=60) as pipeline:
        await pipeline.accept(make_actions("s1", "a", "b", "c", at=1000.0))
        await pipeline.accept(make_actions("s1", "d", at=900.0))
        found = await pipeline.session_times("acme", ["s1", "s3"])
        assert found == {"s1": (900.0, 1002.0)}
        assert await pipeline.session_times("other", ["s1"]) == {}

"""The samples as a stream that does not end: their times are today's, and each visit is its own."""

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag import ActionsPayload, AsyncConnectorClient
from autoplay_rag.connector.recording import read_recording
from autoplay_rag.content.keys import payload_key
from autoplay_rag.devserver import samples
from autoplay_rag.devserver.live_samples import Visits, live_samples

RECORDED = list(read_recording(samples()))


async def receive(url, count):
    """The first payloads of a stream, each with the time of its arrival."""
    found = []
    client = AsyncConnectorClient(url)

    def add(payload):
        found.append((payload, time.time()))
        if len(found) == count:
            client.stop()

    client.on_actions(add).on_summary(add)
    async with asyncio.timeout(30):
        await client.run()
    return found


async def test_a_subscriber_gets_visits_that_ended_just_now_and_then_new_ones():
    async with live_samples(speed=3600) as url:
        found = await receive(url, 2 * len(RECORDED) + 10)
    payloads = [payload for payload, _ in found]
    once, again = payloads[: len(RECORDED)], payloads[len(RECORDED) :]
    assert {p.session_id for p in once} == {p.session_id for p in RECORDED}
    assert max(p.forwarded_at for p in once) <= found[0][1]
    assert all(0 <= arrived - p.forwarded_at < 30 for p, arrived in found[len(RECORDED) :])
    # Nothing that comes again is a duplicate.
    assert len({payload_key(p) for p in payloads}) == len(payloads)
    assert {p.user_id for p in again if p.kind == "actions"} <= {
        p.user_id for p in once if p.kind == "actions"
    }


async def test_it_ends_with_its_block_while_nobody_reads():
    before = asyncio.all_tasks()
    async with live_samples():
        assert len(asyncio.all_tasks() - before) > 0
    assert asyncio.all_tasks() == before


@given(
    st.sampled_from(RECORDED),
    st.floats(1, 1e10),
    st.floats(1, 1e4),
    st.text("-0123456789", max_size=5),
)
def test_moving_keeps_everything_else(payload, begin, speed, suffix):
    visits = Visits(RECORDED[0].forwarded_at, begin, speed, suffix)
    moved = visits.moved(payload)
    back = Visits(begin, RECORDED[0].forwarded_at, 1 / speed).moved(moved)
    assert moved.session_id == (payload.session_id and payload.session_id + suffix)
    assert back.forwarded_at == pytest.approx(payload.forwarded_at, abs=1)
    if isinstance(payload, ActionsPayload):
        assert [a.session_id for a in moved.actions] == [
            a.session_id and a.session_id + suffix for a in payload.actions
        ]
        assert [a.description for a in moved.actions] == [a.description for a in payload.actions]
        assert all(m.timestamp_start <= m.timestamp_end for m in moved.actions)

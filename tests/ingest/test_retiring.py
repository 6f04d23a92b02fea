"""Actions that a summary replaces leave the store, once the summary is stored."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag import SummaryPayload
from autoplay_rag.errors import StoreUnavailableError
from autoplay_rag.ingest.retiring import Retirer, decide
from autoplay_rag.journal.base import Claim
from autoplay_rag.stores import MemoryStore
from autoplay_rag.stores.chroma import ChromaStore

pytestmark = pytest.mark.timeout(60)


async def texts_of(store):
    return sorted([chunk.text async for page in store.scan() for chunk in page])


def summary(replaces, text="Did it all.", at=5000.0, session="s1"):
    return SummaryPayload("acme", session, text, replaces, at)


@pytest.fixture
def make_pipeline(make_pipeline):
    """Pipelines that retire what summaries replace."""
    return lambda *args, **options: make_pipeline(*args, **{"summaries": "replace", **options})


@pytest.fixture(params=["memory", "chroma"])
def store(request, tmp_path):
    return MemoryStore() if request.param == "memory" else ChromaStore(tmp_path / "chroma")


async def test_replaced_actions_leave_the_store_and_stay_findable_by_words(
    make_pipeline, make_actions, store, tmp_path
):
    options = {"journal": tmp_path / "j.db", "batch_window": 0.0}
    async with make_pipeline(store, **options) as pipeline:
        await pipeline.on_actions(make_actions("s1", "opened export", at=1000.0))
        await pipeline.drain()
        await pipeline.on_actions(make_actions("s1", "clicked download", at=2000.0))
        await pipeline.on_actions(make_actions("other", "elsewhere", at=2000.0))
        await pipeline.drain()
        await pipeline.on_summary(summary(2))
        await pipeline.drain()
        assert await texts_of(store) == ["Did it all.", "elsewhere"]
        (session,) = await pipeline.search_sessions("download export", 1, mode="text")
        assert session.session_id == "s1"
        assert "clicked download" in session.text
        hits = await pipeline.search("download", mode="text")
        assert [(hit.text, hit.embedded) for hit in hits] == [("clicked download", False)]
        assert pipeline.ledger.stored == 4
        await pipeline.on_summary(summary(2))  # delivered again
        await pipeline.drain()
        assert pipeline.ledger.duplicate == 1
        assert await texts_of(store) == ["Did it all.", "elsewhere"]
    async with make_pipeline(store, **options) as pipeline:
        assert (await pipeline.verify()).clean


async def test_a_chunk_stays_whole_until_all_its_actions_are_replaced(
    make_pipeline, make_actions, store
):
    async with make_pipeline(store, batch_window=0.0) as pipeline:
        await pipeline.on_actions(make_actions("s1", "a", "b", "c"))
        await pipeline.drain()
        await pipeline.on_summary(summary(2, "Two of three."))
        await pipeline.drain()
        assert await texts_of(store) == ["Two of three.", "a\nb\nc"]
        await pipeline.on_summary(summary(1, "The third."))
        await pipeline.drain()
        assert await texts_of(store) == ["The third.", "Two of three."]


async def test_later_actions_stay_and_late_ones_go(make_pipeline, make_actions, store):
    async with make_pipeline(store, batch_window=0.0) as pipeline:
        await pipeline.on_summary(summary(1_000_000, at=5000.0))  # before its actions
        await pipeline.drain()
        await pipeline.on_actions(make_actions("s1", "late", at=1000.0))
        await pipeline.on_actions(make_actions("s1", "after the summary", at=9000.0))
        await pipeline.drain()
        assert await texts_of(store) == ["Did it all.", "after the summary"]


async def test_a_claim_ends_after_an_hour(make_pipeline, make_actions, store, monkeypatch):
    async with make_pipeline(store, batch_window=0.0) as pipeline:
        await pipeline.on_summary(summary(5))
        await pipeline.drain()
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 3700.0)
        await pipeline._run._journal.tidy()
        await pipeline.on_actions(make_actions("s1", "too late", at=1000.0))
        await pipeline.drain()
        assert await texts_of(store) == ["Did it all.", "too late"]


@pytest.mark.parametrize("replaces", [0, -1])
async def test_a_summary_that_replaces_nothing_removes_nothing(
    make_pipeline, make_actions, store, replaces
):
    async with make_pipeline(store, batch_window=0.0) as pipeline:
        await pipeline.on_actions(make_actions("s1", "a"))
        await pipeline.drain()
        await pipeline.on_summary(summary(replaces))
        await pipeline.drain()
        assert await texts_of(store) == ["Did it all.", "a"]


async def test_actions_can_be_kept(make_pipeline, make_actions, store):
    async with make_pipeline(store, batch_window=0.0, summaries="keep") as pipeline:
        await pipeline.on_actions(make_actions("s1", "a"))
        await pipeline.on_summary(summary(1))
        await pipeline.drain()
        assert await texts_of(store) == ["Did it all.", "a"]


async def test_retiring_survives_an_outage_and_a_restart(
    make_pipeline, make_actions, tmp_path, monkeypatch
):
    store = MemoryStore()
    delete = store.delete

    async def out(_ids):
        raise StoreUnavailableError("refused")

    options = {"journal": tmp_path / "j.db", "batch_window": 0.0, "drain_timeout": 0.0}
    async with make_pipeline(store, **options) as pipeline:
        await pipeline.on_actions(make_actions("s1", "a"))
        await pipeline.drain()
        monkeypatch.setattr(store, "delete", out)
        await pipeline.on_summary(summary(1))
        async with asyncio.timeout(20):
            while pipeline.health.state == "ok":  # noqa: ASYNC110 - the store fails on its own
                await asyncio.sleep(0.01)
        assert "a" in await texts_of(store)
    monkeypatch.setattr(store, "delete", delete)
    async with make_pipeline(store, **options) as pipeline:
        await pipeline.drain()
        assert await texts_of(store) == ["Did it all."]


times = st.lists(st.tuples(st.integers(1, 5), st.lists(st.floats(0, 100), max_size=4)), max_size=6)
claims_given = st.lists(st.tuples(st.floats(0, 100), st.integers(1, 10)), max_size=4)


@given(claims_given, times)
def test_claims_take_the_oldest_and_never_more_than_there_are(asked, payloads):
    open_claims = [Claim(100 + n, 1, until, count) for n, (until, count) in enumerate(asked)]
    numbered = [(seq, own) for seq, (_, own) in enumerate(payloads)]
    decision = decide(open_claims, numbered)
    assert sum(decision.used.values()) == sum(decision.claimed.values())
    for claim in open_claims:
        assert decision.used.get(claim.seq, 0) <= claim.remaining
    for seq, own in numbered:
        assert decision.claimed.get(seq, 0) <= len(own)
    if open_claims:
        latest = max(claim.until for claim in open_claims)
        can = sum(at <= latest for _, own in numbered for at in own)
        assert sum(decision.claimed.values()) <= can
        if len(open_claims) == 1:
            assert sum(decision.claimed.values()) == min(can, open_claims[0].remaining)


async def test_a_summary_stored_during_a_look_is_not_missed():
    class SlowJournal:
        """Has a claim from the second look on."""

        looks = 0

        async def open_claims(self, lane):
            self.looks += 1
            if self.looks == 1:
                retirer.stored([lane], summaries=True)
                await asyncio.sleep(0)
                return [], []
            return [Claim(1, lane, until=9.0, remaining=1)], []

    journal = SlowJournal()
    retirer = Retirer(journal, lambda _: None)
    running = asyncio.create_task(retirer.run())
    retirer.stored([7], summaries=True)
    await asyncio.wait_for(retirer.wait(), 30)
    assert journal.looks == 2
    retirer.stored([7], summaries=False)
    await asyncio.wait_for(retirer.wait(), 30)
    assert journal.looks == 3, "an action that comes later is looked at"
    running.cancel()
    await asyncio.wait([running])

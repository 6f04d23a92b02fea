"""One session drained alone, and how long payloads take to be stored."""

import asyncio
import time

import pytest

from autoplay_rag import IngestPipeline, JournalReader, Ledger
from autoplay_rag.errors import (
    ConfigurationError,
    DrainTimeoutError,
    EmbedderUnavailableError,
    PipelineClosedError,
)
from autoplay_rag.ingest.batching import Batcher
from autoplay_rag.journal.lag import NO_LAG, Lag
from autoplay_rag.stores import MemoryStore


@pytest.fixture(params=["file", "memory"])
async def pipeline(request, embedder, tmp_path):
    journal = tmp_path / "journal.db" if request.param == "file" else None
    async with IngestPipeline(
        MemoryStore(), embedder, journal=journal, batch_window=3600.0
    ) as running:
        yield running


async def test_one_session_is_stored_and_the_others_stay(pipeline, make_actions):
    for session in ("s1", "s2", "s1"):
        await pipeline.on_actions(make_actions(session, f"a{pipeline.ledger.received}"))
    await pipeline.drain(30, session_id="s1")
    assert (pipeline.ledger.stored, pipeline.ledger.pending) == (2, 1)
    await pipeline.drain(30, session_id="s1", product_id="acme")
    await pipeline.drain(30, session_id="s2", product_id="other")
    await pipeline.drain(30, session_id="unknown\ud800")
    assert pipeline.ledger.pending == 1
    await pipeline.drain(30, session_id="s2", product_id="acme")
    assert pipeline.ledger.pending == 0


async def test_what_was_handed_over_and_is_not_committed_yet_is_waited_for(pipeline, make_actions):
    futures = [pipeline.accept(make_actions("s1", f"a{n}")) for n in range(20)]
    await pipeline.drain(30, session_id="s1")
    assert pipeline.ledger.stored == 20
    await asyncio.gather(*futures)


async def test_what_comes_meanwhile_is_not_waited_for(pipeline, make_actions, embedder):
    await pipeline.on_actions(make_actions("s1", "a"))
    begun, go = asyncio.Event(), asyncio.Event()

    async def slow(texts):
        begun.set()
        await go.wait()

    embedder.script = slow
    drained = asyncio.create_task(pipeline.drain(30, session_id="s1"))
    await asyncio.wait_for(begun.wait(), 30)
    await pipeline.on_actions(make_actions("s1", "b"))
    assert not drained.done()
    go.set()
    await drained
    assert (pipeline.ledger.stored, pipeline.ledger.pending) == (1, 1)


async def test_an_outage_ends_the_wait_with_what_is_left(pipeline, make_actions, embedder):
    def fail(texts):
        raise EmbedderUnavailableError("down")

    embedder.script = fail
    await pipeline.on_actions(make_actions("s1", "a"))
    await pipeline.on_actions(make_actions("s2", "b"))
    with pytest.raises(DrainTimeoutError, match=r"1 payloads of the session .*down"):
        await pipeline.drain(0.3, session_id="s1")
    with pytest.raises(DrainTimeoutError):
        await pipeline.drain(0, session_id="s1")
    embedder.script = lambda texts: None
    await pipeline.drain(30, session_id="s1")


async def test_a_dead_letter_of_the_session_ends_the_wait(pipeline, make_actions, embedder):
    embedder.script = lambda texts: [None] if texts[0].endswith("bad") else None
    await pipeline.on_actions(make_actions("s2", "good"))
    await pipeline.on_actions(make_actions("s1", "bad"))
    await pipeline.drain(30, session_id="s2")
    await pipeline.drain(30, session_id="s1")
    assert pipeline.ledger.dead == 1


async def test_what_cannot_work_is_refused(pipeline):
    with pytest.raises(ConfigurationError, match="session_id"):
        await pipeline.drain(product_id="acme")
    await pipeline.aclose()
    with pytest.raises(PipelineClosedError):
        await pipeline.drain(session_id="s1")


async def test_the_ledger_says_how_long_payloads_take(pipeline, make_actions):
    assert (pipeline.ledger.lag_p50, pipeline.ledger.oldest_pending) == (None, None)
    await pipeline.on_actions(make_actions("s1", "a"))
    assert pipeline.ledger.oldest_pending >= 0
    await pipeline.drain()
    ledger = pipeline.ledger
    assert 0 <= ledger.lag_p50 <= ledger.lag_p99 < 60
    assert ledger.oldest_pending is None
    assert "lag_p99" in ledger._repr_html_()


def test_a_measurement_makes_no_other_ledger():
    assert Ledger(received=1, lag_p50=1.0) == Ledger(received=1, oldest_pending=2.0)


async def test_another_process_sees_the_lag(embedder, make_actions, tmp_path):
    path = tmp_path / "journal.db"
    async with IngestPipeline(
        MemoryStore(), embedder, journal=path, batch_window=3600.0, drain_timeout=0.0
    ) as pipeline:
        assert JournalReader(path).status().ledger.lag_p50 is None
        for n in range(5):
            await pipeline.on_actions(make_actions("s1", f"a{n}"))
        await pipeline.drain()
        await pipeline.on_actions(make_actions("s2", "b"))
        now = time.time()
        ledger = JournalReader(path).status().ledger
    assert 0 <= ledger.lag_p50 <= ledger.lag_p99 < 60
    assert 0 <= ledger.oldest_pending <= time.time() - now + 60


def test_quantiles():
    assert Lag.of([float(n) for n in range(1000)]) == (500.0, 990.0)
    assert Lag.of([-1.0]) == (0.0, 0.0), "a clock that was set back"
    assert Lag.of([]) is NO_LAG


def test_one_window_closes_alone():
    batcher = Batcher(window=10.0)
    batcher.add(lane=1, seq=1, now=0.0)
    batcher.add(lane=2, seq=2, now=0.0)
    batcher.close_window(2, now=1.0)
    batcher.close_window(3, now=1.0)
    assert [gathered.lane for gathered in batcher.take(now=1.0)] == [2]
    batcher.add(lane=2, seq=3, now=1.5)
    batcher.close_window(2, now=2.0)
    assert batcher.take(now=2.0) == [], "one batch in flight at a time"
    batcher.done(2)
    assert [gathered.seqs for gathered in batcher.take(now=2.0)] == [[3]]

"""Search results, their restriction to one user, and searches from other threads."""

from __future__ import annotations

import asyncio
import threading

import pytest

from autoplay_rag import Filter
from autoplay_rag.errors import ConfigurationError, PipelineClosedError
from autoplay_rag.stores import Match, VectorStore

pytestmark = pytest.mark.timeout(30)


async def texts_of(pipeline, **conditions) -> list[str]:
    return sorted(hit.text for hit in await pipeline.search("x", 100, **conditions))


async def test_filters_apply_to_the_metadata_of_chunks(make_pipeline, make_actions):
    async with make_pipeline() as pipeline:
        await pipeline.on_actions(make_actions("s1", "a", at=1000.0, user="u1"))
        await pipeline.on_actions(make_actions("s2", "b", at=2000.0, user="u1"))
        await pipeline.on_actions(make_actions("s3", "c", at=3000.0, user="u2"))
        await pipeline.drain()
        assert await texts_of(pipeline, user_id="u1") == ["a", "b"]
        assert await texts_of(pipeline, user_id="u1", since=1500.0) == ["b"]
        assert await texts_of(pipeline, until=2500.0) == ["a", "b"]
        assert await texts_of(pipeline, filter=Filter(session_id="s3")) == ["c"]
        assert await texts_of(pipeline, session_id="nobody") == []
        (hit,) = await pipeline.search("x", 1, session_id="s1")
        assert (hit.session_id, hit.metadata["user_id"]) == ("s1", "u1")
        with pytest.raises(ConfigurationError, match="not both"):
            await pipeline.search("x", filter=Filter(), user_id="u1")
        with pytest.raises(TypeError, match="unexpected keyword argument 'user'"):
            await pipeline.search("x", user="u1")
        with pytest.raises(ConfigurationError, match="empty"):
            await pipeline.search(" ")
        with pytest.raises(ConfigurationError, match="at least 1"):
            await pipeline.search("x", 0)


async def test_results_of_a_store_with_a_wrong_filter_are_filtered_again(make_pipeline):
    class Careless(VectorStore):
        async def upsert(self, chunks, vectors): ...

        async def delete(self, ids): ...

        async def count(self):
            return 0

        async def query(self, vector, k, filter):
            return [
                Match("1", "mine", 0.9, {"user_id": "u1"}),
                Match("2", "yours", 0.8, {"user_id": "u2"}),
            ]

    async with make_pipeline(Careless()) as pipeline:
        assert await texts_of(pipeline, user_id="u1") == ["mine"]


async def test_search_sync_from_other_threads_and_inside_the_loop(make_pipeline, make_actions):
    async with make_pipeline() as pipeline:
        await pipeline.on_actions(make_actions("s", "a"))
        await pipeline.drain()
        found = await asyncio.gather(
            *(asyncio.to_thread(pipeline.search_sync, "x", session_id="s") for _ in range(8))
        )
        assert {hit.text for hits in found for hit in hits} == {"a"}
        assert [hit.text for hit in pipeline.search_sync("x")] == ["a"]
        assert sum(t.name == "autoplay-search" for t in threading.enumerate()) == 1
    assert not any(t.name == "autoplay-search" for t in threading.enumerate())


async def test_closing_the_pipeline_ends_a_running_search(make_pipeline, embedder, make_actions):
    pipeline = make_pipeline()
    await pipeline.start()
    asked = threading.Event()

    async def never(_texts):
        asked.set()
        await asyncio.Event().wait()

    embedder.script = never
    search = asyncio.create_task(asyncio.to_thread(pipeline.search_sync, "x"))
    await asyncio.to_thread(asked.wait, 10)
    await pipeline.aclose()
    with pytest.raises(PipelineClosedError, match="closed during the search"):
        await search


# -- at most so many at once ----------------------------------------------------------------------


class Gated:
    """Holds back the reading of passages, and counts how many searches are at it."""

    def __init__(self, catalog):
        self._read = catalog.passages
        self.inside = 0
        self.began = 0
        self.changed = asyncio.Condition()
        self.open = asyncio.Event()

    async def __call__(self, *args, **options):
        self.inside += 1
        self.began += 1
        async with self.changed:
            self.changed.notify_all()
        try:
            await self.open.wait()
            return await self._read(*args, **options)
        finally:
            self.inside -= 1

    async def wait(self, count):
        async with self.changed:
            await self.changed.wait_for(lambda: self.began >= count)


@pytest.fixture
async def gated(make_pipeline, make_actions, monkeypatch):
    async with make_pipeline() as pipeline:
        await pipeline.on_actions(make_actions("s1", "event", user="u1"))
        await pipeline.drain()
        catalog = pipeline._run.searcher.catalog
        gate = Gated(catalog)
        monkeypatch.setattr(catalog, "passages", gate)
        yield pipeline, gate
        gate.open.set()


@pytest.mark.parametrize("method", ["search", "search_sessions"])
async def test_few_searches_hold_passages_at_once_and_all_are_answered(gated, method):
    pipeline, gate = gated
    found = [asyncio.create_task(getattr(pipeline, method)("event")) for _ in range(30)]
    await gate.wait(4)
    # Two that waited in vain, and one that was inside, leave their places to others.
    for cancelled in (found.pop(), found.pop(), found.pop(0)):
        cancelled.cancel()
        await asyncio.wait([cancelled])
    await gate.wait(5)
    assert gate.inside == 4
    gate.open.set()
    assert [len(hits) for hits in await asyncio.gather(*found)] == [1] * 27
    assert gate.inside == 0


@pytest.mark.parametrize("method", ["search", "search_sessions"])
async def test_a_rerank_that_takes_long_holds_up_no_other_search(gated, method):
    pipeline, gate = gated
    gate.open.set()
    done = asyncio.Event()
    asked = []

    async def slow(question, hits):
        asked.append(question)
        await done.wait()
        return hits

    slows = [asyncio.create_task(getattr(pipeline, method)("event", rerank=slow)) for _ in range(6)]
    assert len(await getattr(pipeline, method)("event")) == 1
    while len(asked) < 6:  # noqa: ASYNC110 - each of them runs
        await asyncio.sleep(0)
    done.set()
    assert [len(hits) for hits in await asyncio.gather(*slows)] == [1] * 6


async def test_an_old_passage_of_a_long_session_is_found_among_many_sessions(
    make_pipeline, make_actions
):
    async with make_pipeline() as pipeline:
        for step in range(60):
            for session in range(40):
                text = "signed the lease" if (session, step) == (7, 3) else f"step {step}"
                at = 1000.0 + 40 * step + session
                await pipeline.on_actions(make_actions(f"s{session}", text, at=at))
            await pipeline.drain()
        (found,) = await pipeline.search_sessions("who signed the lease?", 1)
        assert found.session_id == "s7"
        assert "signed the lease" in [hit.text for hit in found.hits]
        assert found.text.startswith("step 0\nstep 1\nstep 2\nsigned the lease\nstep 4")
        assert found.text.endswith("step 59")
        (dense,) = await pipeline.search("signed the lease", 1, mode="dense")
        assert dense.text == "signed the lease"


async def test_the_text_of_a_session_of_many_short_parts_is_whole(make_pipeline, make_actions):
    said = [f"step {number}" for number in range(150)]
    async with make_pipeline(max_batch_actions=1) as pipeline:
        for number, text in enumerate(said):
            user = "u1" if number % 3 else "u2"
            await pipeline.on_actions(make_actions("s1", text, at=1000.0 + number, user=user))
        await pipeline.drain()
        await pipeline.on_actions(make_actions("s1", "not stored yet", at=2000.0, user="u1"))
        (found,) = await pipeline.search_sessions("step", 1)
        assert (found.user_id, found.started_at, found.ended_at) == (None, 1000.0, 2000.0)
        assert found.text.split("\n") == [*said, "not stored yet"]
        (mine,) = await pipeline.search_sessions("step", 1, user_id="u1")
        assert mine.user_id == "u1"
        assert mine.text.split("\n") == [
            *(text for number, text in enumerate(said) if number % 3),
            "not stored yet",
        ]
        assert (mine.started_at, mine.ended_at) == (1001.0, 2000.0)


async def test_the_text_of_a_long_session_is_its_beginning(make_pipeline, make_actions):
    async with make_pipeline(max_batch_actions=1) as pipeline:
        for number in range(100):
            await pipeline.on_actions(make_actions("s1", f"{number} {'x' * 90}", at=float(number)))
        await pipeline.drain()
        (found,) = await pipeline.search_sessions("99", 1)
        lines = found.text.split("\n")
        assert lines == [*(f"{number} {'x' * 90}" for number in range(len(lines) - 1)), "…"]
        assert 3900 < len(found.text) <= 4002

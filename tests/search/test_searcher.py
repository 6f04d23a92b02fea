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

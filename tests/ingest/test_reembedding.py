"""`pipeline.reembed`: another model takes over while the stream and the searches go on."""

from __future__ import annotations

import asyncio

import pytest

from autoplay_rag.errors import (
    ConfigurationError,
    EmbedderRejectedError,
    EmbedderUnavailableError,
    MissingCapabilityError,
    ReembedError,
    StoreMismatchError,
)
from autoplay_rag.stores import ChromaStore, MemoryStore

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def other(scripted_embedder):
    """An embedder of another model, with another dimension."""

    class Other(scripted_embedder):
        model = "other"

    return Other(12)


@pytest.fixture(params=["memory", "chroma", "postgres"])
def store(request, tmp_path):
    if request.param == "postgres":
        return request.getfixturevalue("make_pg_store")()
    return MemoryStore() if request.param == "memory" else ChromaStore(tmp_path / "chroma")


def precision_of(store):
    """How exact a score is: PostgreSQL has vectors in half precision."""
    return 1e-5 if isinstance(store, MemoryStore | ChromaStore) else 1e-3


async def feed(pipeline, make_actions, numbers, user="ann"):
    await asyncio.gather(
        *(pipeline.on_actions(make_actions(f"s{n}", f"click {n}", user=user)) for n in numbers)
    )


async def texts(store) -> list[str]:
    return sorted([chunk.text async for page in store.scan() for chunk in page])


async def until(condition) -> None:
    """Poll for something that has no event."""
    async with asyncio.timeout(30):
        while not await condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.01)


async def test_all_chunks_move_to_the_new_model(
    make_pipeline, make_actions, store, other, tmp_path
):
    journal = tmp_path / "journal.db"
    told = []
    async with make_pipeline(store, journal=journal) as pipeline:
        await feed(pipeline, make_actions, range(30))
        await pipeline.drain()
        report = await pipeline.reembed(other, on_progress=told.append)
        assert (report.model, report.chunks, report.refused) == ("other", 30, 0)
        assert told[-1].done == told[-1].total == 30
        assert pipeline.reembedding is None
        assert await texts(store) == sorted(f"click {n}" for n in range(30))
        vector = other.vector("click 7")
        assert await store.score(vector, [chunk.id async for p in store.scan() for chunk in p])
        hits = await pipeline.search("click 7", k=1, mode="dense")
        assert hits[0].text == "click 7"
        assert hits[0].dense_score == pytest.approx(1.0, abs=precision_of(store))
        await feed(pipeline, make_actions, [30])
        await pipeline.drain()
        assert (await pipeline.verify()).clean
        assert "click 30" in await texts(store)
    if store.persistent:
        with pytest.raises(StoreMismatchError):
            await make_pipeline(store, journal=journal).start()
    async with make_pipeline(store, journal=journal, embedder=other) as pipeline:
        assert (await pipeline.verify()).clean
        hits = await pipeline.search("click 30", k=1, mode="dense")
        assert hits[0].text == "click 30"


async def test_the_stream_and_the_searches_go_on(
    make_pipeline, make_actions, store, other, tmp_path
):
    often = asyncio.Event()

    async def slow(texts):
        await often.wait()
        await asyncio.sleep(0.005)

    other.script, other.max_inputs = slow, 8
    searched = 0
    async with make_pipeline(store, journal=tmp_path / "journal.db") as pipeline:
        await feed(pipeline, make_actions, range(100))
        await pipeline.drain()
        moving = asyncio.create_task(pipeline.reembed(other))
        number = 100
        while not moving.done():
            await feed(pipeline, make_actions, range(number, number + 3))
            number += 3
            hits = await pipeline.search("click 50", k=1, mode="dense")
            assert hits[0].text == "click 50"
            assert hits[0].dense_score == pytest.approx(1.0, abs=precision_of(store))
            searched += 1
            if searched > 5:
                often.set()
        assert (await moving).refused == 0
        await pipeline.drain()
        assert searched > 5
        assert await texts(store) == sorted(f"click {n}" for n in range(number))
        assert (await pipeline.verify()).clean
        assert pipeline.ledger.dead == 0
        assert pipeline.ledger.stored == number


async def test_changes_during_the_move_reach_the_new_collection(
    make_pipeline, make_actions, other, tmp_path
):
    gate, store = asyncio.Event(), MemoryStore()

    async def wait(texts):
        await gate.wait()

    other.script, other.max_inputs = wait, 4
    async with make_pipeline(store, journal=tmp_path / "journal.db") as pipeline:
        await feed(pipeline, make_actions, range(20), user=None)
        await feed(pipeline, make_actions, range(20, 24), user="eve")
        await pipeline.drain()
        moving = asyncio.create_task(pipeline.reembed(other))
        await other.requested.wait()
        receipt = await pipeline.forget(user_id="eve")
        assert receipt.chunks == 4
        await pipeline.on_actions(
            make_actions("s3", "click 3 again", user="ann")
        )  # links "click 3"
        gate.set()
        await moving
        await pipeline.drain()
        assert await texts(store) == sorted([*(f"click {n}" for n in range(20)), "click 3 again"])
        found = {chunk.text: chunk async for page in store.scan() for chunk in page}
        assert found["click 3"].metadata["user_id"] == "ann"
        assert (await pipeline.verify()).clean
        assert [chunk async for page in store.sibling("next").scan() for chunk in page] == []


async def test_it_goes_on_where_it_stopped(make_pipeline, make_actions, store, other, tmp_path):
    journal = tmp_path / "journal.db"
    async with make_pipeline(store, journal=journal) as pipeline:
        await feed(pipeline, make_actions, range(1200))
        await pipeline.drain()
        embedded = asyncio.Event()

        def stop(texts):
            if sum(map(len, other.requests)) > 600:
                embedded.set()
                raise EmbedderUnavailableError("out of service")

        other.script = stop
        moving = asyncio.create_task(pipeline.reembed(other))
        await embedded.wait()

        async def is_degraded():
            return pipeline.health.state == "degraded"

        await until(is_degraded)
        assert "re-embedding: embedder" in pipeline.health.reasons[0]
        assert pipeline.reembedding.total == 1200
        assert pipeline.reembedding.problem
        moving.cancel()
        await asyncio.wait([moving])
        assert (await pipeline.search("click 7", k=1, mode="dense"))[0].text == "click 7"
        assert (await pipeline.verify()).clean
    with pytest.raises(StoreMismatchError, match=r"500 of 1,200 chunks|holds vectors of another"):
        await make_pipeline(store, journal=journal, embedder=other).start()
    if not store.persistent:
        return
    other.requests, other.script = [], lambda texts: None
    async with make_pipeline(store, journal=journal) as pipeline:
        report = await pipeline.reembed(other)
        assert report.chunks == 700
        assert sum(map(len, other.requests)) == 700
        assert (await pipeline.verify()).clean
        assert len(await texts(store)) == 1200


async def test_a_forgotten_chunk_leaves_an_unfinished_copy_too(
    make_pipeline, make_actions, other, tmp_path
):
    store, journal = MemoryStore(), tmp_path / "journal.db"
    async with make_pipeline(store, journal=journal) as pipeline:
        await feed(pipeline, make_actions, range(3))
        await feed(pipeline, make_actions, [3], user="eve")
        await pipeline.drain()
        blocked = asyncio.Event()

        async def wait(texts):
            if texts[0].endswith("3"):
                blocked.set()
                await asyncio.Event().wait()

        other.script, other.max_inputs = wait, 1
        moving = asyncio.create_task(pipeline.reembed(other))
        await blocked.wait()
        copy = store.sibling("next")

        async def is_filled():
            return "click 0" in await texts(copy)

        await until(is_filled)
        moving.cancel()
        await asyncio.wait([moving])
        receipt = await pipeline.forget(user_id="ann")

        async def is_erased():
            return (await pipeline.receipt(receipt.number)).erased

        await until(is_erased)
        assert await texts(copy) == []
        other.script = lambda texts: None
        await pipeline.reembed(other)
        assert await texts(store) == ["click 3"]


async def test_a_model_that_refuses_changes_nothing(
    make_pipeline, make_actions, store, other, tmp_path
):
    async with make_pipeline(store, journal=tmp_path / "journal.db", max_attempts=1) as pipeline:
        await feed(pipeline, make_actions, range(10))
        await pipeline.drain()

        def refuse(texts):
            raise EmbedderRejectedError("too long")

        other.script = refuse
        with pytest.raises(ReembedError, match="too long"):
            await pipeline.reembed(other)
        assert (await pipeline.search("click 7", k=1, mode="dense"))[0].text == "click 7"
        await feed(pipeline, make_actions, [10])
        await pipeline.drain()
        assert (await pipeline.verify()).clean
        # The embedder in use gives the move up.
        assert (await pipeline.reembed(pipeline._embedder)).chunks == 0
        copy = store.sibling("next")
        await copy.start("any model")
        assert await texts(copy) == []
        await copy.aclose()


async def test_texts_are_rendered_again(make_pipeline, make_actions, store, embedder, tmp_path):
    journal = tmp_path / "journal.db"
    async with make_pipeline(store, journal=journal, max_batch_actions=2) as pipeline:
        await pipeline.on_actions(make_actions("s1", *(f"click {n}" for n in range(5))))
        await feed(pipeline, make_actions, range(10, 20))
        await pipeline.drain()

    def upper(payloads):
        return " / ".join(action.title.upper() for one in payloads for action in one.actions)

    async with make_pipeline(store, journal=journal, max_batch_actions=2, render=upper) as pipeline:
        if not store.persistent:
            await pipeline.drain()
        report = await pipeline.reembed(embedder, render=True)
        assert report.rendered == 13
        found = await texts(store)
        assert found[:3] == ["CLICK 0 / CLICK 1", "CLICK 10", "CLICK 11"]
        assert len(found) == 13
        assert (await pipeline.verify()).clean
        assert (await pipeline.search("CLICK 2 / CLICK 3", k=1))[0].text == "CLICK 2 / CLICK 3"
        assert embedder.requests


async def test_what_cannot_be_moved_is_said_at_once(make_pipeline, other, tmp_path):
    class Plain(MemoryStore):
        @property
        def capabilities(self):
            return super().capabilities - {"exchange"}

    async with make_pipeline() as pipeline:
        with pytest.raises(ConfigurationError, match="needs a journal file"):
            await pipeline.reembed(other)
    async with make_pipeline(Plain(), journal=tmp_path / "journal.db") as pipeline:
        with pytest.raises(MissingCapabilityError, match="exchange"):
            await pipeline.reembed(other)


async def test_texts_are_rendered_again_with_another_division(
    make_pipeline, make_actions, embedder, tmp_path
):
    journal, store = tmp_path / "journal.db", MemoryStore()
    async with make_pipeline(store, journal=journal, max_batch_actions=3) as pipeline:
        await pipeline.on_actions(make_actions("s1", *(f"part {n}" for n in range(5))))
        await asyncio.gather(
            *(pipeline.on_actions(make_actions("s2", f"join {n}", at=10.0 * n)) for n in range(3))
        )
        await pipeline.drain()
        before = await texts(store)
    for size in (1, 2, 4, 20):
        async with make_pipeline(store, journal=journal, max_batch_actions=size) as pipeline:
            await pipeline.drain()
            await pipeline.reembed(embedder, render=True)
            after = await texts(store)
            assert sorted("\n".join(after).split("\n")) == sorted("\n".join(before).split("\n"))
            assert len(after) == len(before)
            assert (await pipeline.verify()).clean
